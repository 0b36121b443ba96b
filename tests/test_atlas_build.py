"""Building atlases: parts that fit, parts that do not, a manifest that notices changes, and nothing half-built."""

import gzip
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.plain_text import sentences
from typer.testing import CliRunner

from atlas_jax.atlas import ConceptAtlas, Manifest, assemble, same_place, write_atlas
from atlas_jax.atlas._build import Parts
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Label, Labels
from atlas_jax.models import LanguageModel
from atlas_jax.sae import SAEConfig, SparseAutoencoder
from atlas_jax.types import Site

MODEL, SAE, LABELS = ATLAS / "model", ATLAS / "sae", ATLAS / "labels.jsonl"
NAMED = {"model_name": ["foundation"]}
TEXTS = ["Return the sum of the array.", "Dates and times.", "The font size of a figure is 10."]


@pytest.fixture(scope="module")
def parts():
    return assemble(MODEL, SAE, LABELS, **NAMED)


@pytest.fixture(scope="module")
def bundled():
    return ConceptAtlas.from_pretrained(ATLAS)


def random_sae(kind="jumprelu", d=160, m=64, **config):
    rng = np.random.default_rng(0)
    arrays = {"W_enc": rng.normal(size=(d, m)), "b_enc": np.zeros(m), "W_dec": rng.normal(size=(m, d))}
    arrays |= {"b_dec": np.zeros(d)} | ({"threshold": np.ones(m)} if kind in ("jumprelu", "batchtopk") else {})
    return SparseAutoencoder.build(SAEConfig(kind, d, m, **config), **arrays)


def save_labels(path, n, width=None, **fields):
    rows = [{"index": str(i), "description": f"feature {i}", **fields} for i in range(n)]
    rows += [] if width is None else [{"index": str(width - 1), "description": "the last", **fields}]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("link", [False, True])
def test_a_built_atlas_computes_what_its_parts_do(parts, bundled, tmp_path, link):
    mean = np.arange(1536, dtype=np.float32)
    write_atlas(parts, tmp_path / "a", link=link, mean=mean, metadata={"measured": {"L0": 9.5}})
    atlas = ConceptAtlas.from_pretrained(tmp_path / "a")
    assert jnp.array_equal(atlas.activations(TEXTS), bundled.activations(TEXTS))
    assert atlas.labels.entries == bundled.labels.entries
    assert atlas.search("font", 5) == bundled.search("font", 5)
    np.testing.assert_array_equal(atlas.mean, mean)
    assert (tmp_path / "a" / "model").exists() != link
    manifest = Manifest.read(tmp_path / "a")
    assert manifest.metadata["measured"] == {"L0": 9.5}
    assert manifest.check(tmp_path / "a", contents=True) == sum(map(len, manifest.files.values()))
    assert manifest.files["model"]["model.safetensors"].bytes == (MODEL / "model.safetensors").stat().st_size


@pytest.mark.parametrize("part", ["labels.jsonl", "sae/sae.safetensors", "model/config.json"])
def test_changed_files_are_noticed(parts, tmp_path, part):
    write_atlas(parts, tmp_path / "a")
    file = tmp_path / "a" / part
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    Manifest.read(tmp_path / "a").check(tmp_path / "a")
    with pytest.raises(AtlasError, match=f"{file.name} is not what the atlas"):
        Manifest.read(tmp_path / "a").check(tmp_path / "a", contents=True)
    file.write_bytes(original + b"\n")
    with pytest.raises(AtlasError, match=f"{file.name} is not what the atlas"):
        ConceptAtlas.from_pretrained(tmp_path / "a")
    file.unlink()
    with pytest.raises(AtlasError, match=f"has lost .*{file.name}"):
        ConceptAtlas.from_pretrained(tmp_path / "a")


def test_a_linked_model_that_moved_is_named(tmp_path):
    shutil.copytree(MODEL, tmp_path / "foundation")
    write_atlas(assemble(tmp_path / "foundation", SAE), tmp_path / "a", link=True)
    shutil.rmtree(tmp_path / "foundation")
    with pytest.raises(AtlasError, match="foundation' is not a directory"):
        ConceptAtlas.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "groupmax", "relu"])
def test_every_kind_of_sae_survives_exactly(bundled, tmp_path, kind):
    sae = random_sae(kind, k=4 if kind in ("topk", "groupmax") else None, apply_b_dec_to_input=True, advertised_l0=3.0)
    atlas = ConceptAtlas.from_parts(bundled.model, sae, "resid_post.3", Labels.empty(64))
    write_atlas(Parts(atlas, str(MODEL), {}), tmp_path / "a", link=True)
    again = ConceptAtlas.from_pretrained(tmp_path / "a").sae
    assert again.config == sae.config
    assert all(jnp.array_equal(sae.parameters[name], value) for name, value in again.parameters.items())


def test_a_model_of_another_name_is_refused(tmp_path):
    assert assemble(MODEL, SAE).atlas.width == 1536  # a folder may be called anything
    with pytest.raises(AtlasError, match="of the model 'foundation', and this model goes by 'other', of another name"):
        assemble(MODEL, SAE, model_name=["owner/other"])
    shutil.copytree(MODEL, tmp_path / "x")
    config = json.loads((MODEL / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps(config | {"_name_or_path": "Somebody/FOUNDATION"}))
    assert assemble(tmp_path / "x", SAE).atlas.width == 1536


def test_an_sae_of_the_base_model_is_taken_with_a_note(tmp_path):
    random_sae(site=Site("resid_post", 3), model="google/gemma-2-2b").save_pretrained(tmp_path / "sae")
    told = assemble(MODEL, tmp_path / "sae", model_name=["gemma-2-2b-it"])
    assert told.notes == (
        "the SAE is of the model 'google/gemma-2-2b' and is used on 'gemma-2-2b-it': only one of them is "
        "instruction-tuned",
    )
    assert assemble(MODEL, tmp_path / "sae", model_name=["gemma-2-2b"]).notes == ()
    with pytest.raises(AtlasError, match=r"'google/gemma-2-2b' \(gemma, 2, 2B\), and this model goes by 'gemma-2-9b'"):
        assemble(MODEL, tmp_path / "sae", model_name=["gemma-2-9b"])


def test_sites_come_from_the_sae_and_may_not_contradict_it(tmp_path):
    assert assemble(MODEL, SAE, site="resid_pre.4", **NAMED).atlas.site == Site("resid_pre", 4)
    with pytest.raises(AtlasError, match="by its own files the SAE reads resid_post.3, not resid_post.2"):
        assemble(MODEL, SAE, site="resid_post.2", **NAMED)
    random_sae().save_pretrained(tmp_path / "silent")
    with pytest.raises(AtlasError, match="do not say where it reads"):
        assemble(MODEL, tmp_path / "silent")
    random_sae(site=Site("resid_post", 20)).save_pretrained(tmp_path / "deep")
    with pytest.raises(AtlasError, match=r"resid_post.20 is past the last layer"):
        assemble(MODEL, tmp_path / "deep")
    random_sae(d=96).save_pretrained(tmp_path / "narrow")
    with pytest.raises(AtlasError, match="the SAE reads 96 features, and resid_post.1 of the model has 160"):
        assemble(MODEL, tmp_path / "narrow", site="resid_post.1")


def test_contributions_are_one_site_only_where_nothing_normalises_them():
    gemma, llama = (LanguageModel.from_pretrained(d).config for d in (MODEL, SUBJECT))
    assert same_place(llama, Site("mlp_out_post", 1)) == same_place(llama, Site("mlp_out", 1))
    assert same_place(gemma, Site("mlp_out_post", 1)) != same_place(gemma, Site("mlp_out", 1))


@pytest.mark.parametrize(
    ("fields", "count", "width", "message"),
    [
        ({"modelId": "gemma-2-2b"}, 1536, None, "the labels are of the model 'gemma-2-2b'"),
        ({"layer": "20-gemmascope-res-16k"}, 1536, None, "of layer 20 .* the SAE reads resid_post.3"),
        ({"layer": "3-gemmascope-res-16k"}, 1536, None, "an SAE with 16384 features .* this one has 1536"),
        ({}, 512, None, "features 0 to 511 nearly without gap and none of the 1024"),
        ({}, 1537, None, "names feature 1536, and there are 1536"),
    ],
)
def test_labels_of_something_else_are_refused(tmp_path, fields, count, width, message):
    path = save_labels(tmp_path / "l.json", count, width, **fields)
    with pytest.raises(AtlasError, match=message) as caught:
        assemble(MODEL, SAE, path, **NAMED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw | {"site": 3},
        lambda raw: raw | {"sae": None},
        lambda raw: raw | {"pooling": ["max"]},
        lambda raw: raw | {"metadata": "none"},
        lambda raw: raw | {"files": {"model": [], "sae": [], "labels": []}},
        lambda raw: raw | {"files": raw["files"] | {"sae": {"sae.json": ["7", 5]}}},
        lambda raw: raw | {"extra": 1},
        lambda raw: [raw],
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path, damage):
    (tmp_path / "atlas.json").write_text(json.dumps(damage(json.loads((ATLAS / "atlas.json").read_text()))))
    with pytest.raises(AtlasError, match="atlas.json is damaged") as caught:
        Manifest.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"junk", b"", None])
def test_a_damaged_mean_is_one_sentence(parts, tmp_path, content):
    write_atlas(parts, tmp_path / "a", link=True, mean=np.ones(1536))
    file = tmp_path / "a" / "mean.npy"
    if content is None:
        np.save(file, np.ones(7))
    else:
        file.write_bytes(content)
    manifest = json.loads((tmp_path / "a" / "atlas.json").read_text())
    manifest["files"]["mean"]["mean.npy"][0] = file.stat().st_size
    (tmp_path / "a" / "atlas.json").write_text(json.dumps(manifest))
    with pytest.raises(AtlasError, match="mean.npy (is damaged|should be 1536 numbers, and 7 were given)"):
        ConceptAtlas.from_pretrained(tmp_path / "a")


def test_labels_that_say_they_fit_are_taken(tmp_path):
    path = save_labels(tmp_path / "l.json", 512, 1536, modelId="Foundation", layer="3-res-1536")
    assert len(assemble(MODEL, SAE, path, **NAMED).atlas.labels.described()) == 513
    few = save_labels(tmp_path / "few.json", 512)
    assert assemble(MODEL, SAE, few, partial_labels=True, **NAMED).atlas.labels.coverage == 512 / 1536


@pytest.mark.parametrize("what", ["labels", "sae", "model"])
def test_nothing_is_half_built(tmp_path, what):
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"index": 0, "description": "a"}\n' * 50)[:-9])
    shutil.copytree(MODEL, tmp_path / "unknown")
    config = json.loads((MODEL / "config.json").read_text()) | {"model_type": "mamba"}
    (tmp_path / "unknown" / "config.json").write_text(json.dumps(config))
    arguments = {"model": str(MODEL), "sae": str(SAE), "labels": str(LABELS), "out": str(tmp_path / "out")}
    arguments |= {
        "labels": {"labels": str(tmp_path / "bad.jsonl.gz")},
        "sae": {"sae": str(tmp_path / "unknown")},
        "model": {"model": str(tmp_path / "unknown")},
    }[what]
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    found = CliRunner().invoke(app, ["atlas", "build", *flags, "--model-name", "foundation"])
    assert isinstance(found.exception, AtlasError)
    assert not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_failure_while_writing_leaves_the_old_atlas(parts, tmp_path, monkeypatch):
    write_atlas(parts, tmp_path / "a")
    before = (tmp_path / "a" / "atlas.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Labels, "save", full)
    with pytest.raises(AtlasError, match="No space left"):
        write_atlas(parts, tmp_path / "a")
    assert (tmp_path / "a" / "atlas.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_no_atlas_is_not_replaced(parts, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(AtlasError, match="exists and is not a Concept Atlas"):
        write_atlas(parts, tmp_path / "notes")
    shutil.copytree(MODEL, tmp_path / "old" / "model")
    (tmp_path / "old" / "atlas.json").write_text("{}")
    with pytest.raises(AtlasError, match="the model lies in"):
        write_atlas(parts._replace(model=str(tmp_path / "old" / "model")), tmp_path / "old")


def test_the_command_builds_verifies_and_searches(tmp_path):
    out, labels = tmp_path / "atlas", tmp_path / "own.csv"
    rows = [f"{i},{words}" for i, words in enumerate(["dates and times", "fonts", "probability"] * 512)]
    labels.write_text("\n".join(["feature_id,words", *rows]))
    flags = ["--model", MODEL, "--model-name", "foundation", "--sae", SAE, "--labels", labels, "--out", out, "--link"]
    facts = command("build", *flags, "--column", "index=feature_id", "--column", "description=words")
    assert (facts["label coverage"], facts["labelled"], facts["site"]) == (1.0, 1536, "resid_post.3")
    assert command("info", out, "--verify")["verified"] > 5
    for embedder in ("static", "bm25"):
        hits = command("search", "font", "--atlas", out, "--embedder", embedder, "-k", 3)
        assert [h["label"] for h in hits] == ["fonts"] * 3
        assert [h["weight"] for h in hits] == [1.0] * 3
    assert command("search", "--atlas", out, "--like", TEXTS[0])[0]["weight"] == 1.0
    for wrong in (["x", "--like", "y"], [], ["--unlike", "y"]):
        assert isinstance(CliRunner().invoke(app, ["atlas", "search", *wrong]).exception, AtlasError)


def test_info_says_on_which_text_and_keeps_the_saes_own_figures_apart(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(" ".join(sentences(700)))
    sae = random_sae(site=Site("resid_post", 3), advertised_l0=30.0)
    sae.save_pretrained(tmp_path / "sae", format="native")
    flags = ["--model", MODEL, "--sae", tmp_path / "sae", "--out", tmp_path / "a", "--link", "--text", mine]
    facts = command("build", *flags, "--sentences", 100)
    assert facts["text"] == str(mine)
    shown = command("info", tmp_path / "a", "--text", mine, "--sentences", 100)
    assert shown["text"] == str(mine)
    assert shown["check"]["advertised"] == {"l0": 30.0, "fvu": None, "dead": None}
    built = Manifest.read(tmp_path / "a").metadata["measured"]
    poor = built["FVU"] > 0.7
    assert shown["check"]["when_built"]["fvu"] == (None if poor else built["FVU"])
    shown = command("info", tmp_path / "a", "--sentences", 100)
    assert shown["text"] == "documentation of Python and installed packages, no --text being given"


def test_the_index_beside_the_labels_is_used_only_while_it_fits(parts, tmp_path):
    write_atlas(parts, tmp_path / "a", link=True)
    atlas = ConceptAtlas.from_pretrained(tmp_path / "a")
    index = tmp_path / "a" / "index"
    assert isinstance(_opened(atlas.labels, index).dense["lsa"].documents, np.memmap)
    rows = [Label(0, "zebra"), *[Label(i, str(atlas.labels[i])) for i in atlas.labels.described()[1:]]]
    other = Labels.from_rows(rows, 1536)
    assert not isinstance(_opened(other, index).dense["lsa"].documents, np.memmap)
    assert _opened(other, index).search("zebra", method="bm25")[0].index == 0
    (index / "features.npy").write_bytes(b"junk")
    with pytest.raises(AtlasError, match="search index .* is damaged"):
        _opened(atlas.labels, index)


def command(*arguments):
    """What a command prints as JSON."""
    found = CliRunner().invoke(app, ["atlas", *map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def _opened(labels, directory):
    from atlas_jax.labels import open_index

    return open_index(labels, directory)
