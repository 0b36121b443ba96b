"""Stored activations: an alignment of them is that of the live model, and files that are not whole are refused."""

import json
import shutil

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from helpers.commands import command_line
from safetensors.numpy import load_file, save_file

from atlas_jax import LanguageModel, Subject
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import measured
from atlas_jax.files import directory_hash, sha256
from atlas_jax.pipeline import Alignment, AlignSettings, align, extract_activations, load_pair
from atlas_jax.stored import Manifest, StoredModel, StoredRows, text_hash, writing_activations
from atlas_jax.types import Site

SITE = Site("mlp_act", 1)
OPTIONS = {"max_length": 16, "token_budget": 512}
TEXTS = [f"sentence {i}" for i in range(6)]


def _settings(rows):
    return AlignSettings(
        (str(SITE),), ("procrustes", "covariance"), steer_pooling="mean" if rows == "token" else None, **OPTIONS
    )


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(installed_documentation(max_bytes=100_000), n_fit=160, n_eval=100)


@pytest.fixture(scope="module")
def pair():
    return load_pair(SUBJECT, ATLAS, _settings("token"))


@pytest.fixture(scope="module")
def live(pair, corpus):
    return measured(align(pair, corpus, _settings("token")))


@pytest.fixture(scope="module")
def places(pair, corpus, tmp_path_factory):
    """Of the subject token and sentence rows, of the atlas its features and what its SAE reads."""
    directory = tmp_path_factory.mktemp("stored")
    foundation = Subject.from_model(pair.atlas.model, [pair.atlas.site])
    for name, space in (("subject", pair.subject), ("atlas", pair.atlas)):
        for rows in ("token", "sentence"):
            space = foundation if (name, rows) == ("atlas", "token") else space
            space = pair.atlas if (name, rows) == ("atlas", "sentence") else space
            extract_activations(
                space, corpus, directory / f"{name}-{rows}", model=name, rows=rows, shard_bytes=300_000, **OPTIONS
            )
    return directory


@pytest.mark.parametrize("rows", ["token", "sentence"])
@pytest.mark.parametrize("of_atlas", [None, "token", "sentence"])
def test_an_alignment_of_stored_activations_is_that_of_the_live_models(live, places, corpus, rows, of_atlas):
    settings, subject = _settings(rows), places / f"subject-{rows}"
    stored = {} if of_atlas is None else {"atlas_activations": places / f"atlas-{of_atlas}"}
    pair = load_pair(subject, ATLAS, settings, **stored)
    assert len(StoredRows(subject).manifest.shards) > 1
    found = measured(align(pair, corpus, settings))
    assert found.fault is None
    for key, translation in found.alignment.translations.items():
        expected = live.alignment.translations[key]
        np.testing.assert_allclose(translation.matrix, expected.matrix, atol=2e-6 * np.abs(expected.matrix).max())
        assert (translation.token_norm == expected.token_norm) == (rows == "token")
    for key, translation in found.alignment.steering.items():
        expected = live.alignment.steering[key]
        np.testing.assert_allclose(translation.matrix, expected.matrix, atol=2e-6 * np.abs(expected.matrix).max())
    assert bool(found.alignment.steering) == (rows == "token")
    for mine, theirs in zip(found.quality.rows, live.quality.rows, strict=True):
        assert mine.auroc.mean == pytest.approx(theirs.auroc.mean, abs=1e-5)
    top, expected = (x.alignment.strongest(SITE) for x in (found, live))
    np.testing.assert_allclose(top.values, expected.values, rtol=1e-6)
    assert (top.position == (expected.position if rows == "token" else -1)).all()


def test_a_run_of_stored_activations_is_read_back_and_used(places, corpus, tmp_path):
    corpus.save(tmp_path / "corpus")
    place, run = places / "subject-sentence", tmp_path / "run"
    given = ["--subject-activations", place, "--atlas", ATLAS, "--atlas-activations", places / "atlas-sentence"]
    given += ["--site", SITE, "--text", tmp_path / "corpus", "--out", run, "--max-length", 16, "--token-budget", 512]
    done = command_line("align", *given, "--method", "covariance", "--json")
    assert done.returncode == 0, done.stderr
    assert "max-pooled, so no translation is made for steering" in " ".join(done.stderr.split())
    assert Alignment.load(run).translation(SITE, "covariance").pooling == "max"
    done = command_line("identify", run, "--site", SITE, "--feature", 3, "--json")
    assert len(json.loads(done.stdout)["identified"]) == 5, done.stderr
    done = command_line("steer", run, "--site", SITE, "--feature", 3, "--prompt", "The", "--strength", 1)
    assert done.returncode == 2
    assert "this needs the model itself" in " ".join(done.stderr.split())


@pytest.mark.parametrize("what", ["tokenize", "logits", "edit", "spans"])
def test_what_needs_the_model_says_so(places, what):
    import atlas_jax as aj

    subject = Subject.from_model(StoredModel.open(places / "subject-token"), [SITE])
    tokens = LanguageModel.from_pretrained(SUBJECT).tokenize(["a text"])
    calls = {
        "tokenize": lambda: subject.tokenize(["new text"]),
        "logits": lambda: aj.models.forward(subject.model.decoder, tokens),
        "edit": lambda: aj.models.forward(
            subject.model.decoder, tokens, edits={SITE: aj.Ablate(3)}, capture=[SITE], logits=False
        ),
        "spans": lambda: subject.model.tokenizer.spans(["a text"]),
    }
    with pytest.raises(AtlasError, match="are activations without their model; this needs the model itself"):
        calls[what]()


def _rows(rng, n):
    return rng.normal(size=(n, 3)).astype(np.float32)


def _store(place, rng, kind="safetensors", rows="sentence", dtype="float32", **changes):
    """Stored activations of TEXTS in two shards written by hand, with other arrays where ``changes`` name them."""
    place.mkdir()
    lengths, shards = np.array([2, 1, 3]), []
    for k, texts in enumerate((TEXTS[:3], TEXTS[3:])):
        n = 3 if rows == "sentence" else 6
        types = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
        arrays = {"resid_post.3": _rows(rng, n=n).astype(types[dtype])}
        arrays |= {"sentence": np.arange(3 * k, 3 * k + 3), "text": text_hash(texts)}
        if rows == "token":
            arrays |= {"offsets": np.concatenate([[0], np.cumsum(lengths)]), "length": lengths}
            arrays |= {"counts": np.array([False, True, True, True, True, True])}
        if k == 1:
            arrays |= {name: make(arrays) for name, make in changes.items()}
        name = {"safetensors": f"{k}.safetensors", "arrow": f"{k}.arrow", "stream": f"{k}.arrow", "npy": str(k)}[kind]
        _write(place / name, arrays, kind)
        digest = directory_hash(place / name) if kind == "npy" else sha256(place / name)
        shards.append({"file": name, "rows": n, "sha256": digest})
    pooling = "max" if rows == "sentence" else None
    Manifest("other", rows, "block", dtype, {"resid_post.3": 3}, shards, pooling).write(place)
    return place


def _write(path, arrays, kind):
    if kind == "safetensors":
        save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    elif kind == "npy":
        path.mkdir()
        for name, x in arrays.items():
            np.save(path / f"{name}.npy", x)
    else:
        columns = {n: pa.array(list(x) if x.ndim == 2 else x) for n, x in arrays.items()}
        table = pa.table(columns)
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("kind", ["safetensors", "npy", "arrow", "stream"])
def test_every_format_gives_the_rows_of_a_sentence(tmp_path, rng, kind):
    rows = StoredRows(_store(tmp_path / "x", rng, kind))
    again = _rows(np.random.default_rng(0), n=3)
    ids = np.array(rows.encode([TEXTS[4], TEXTS[0]])).ravel()
    assert ids.tolist() == [4, 0]
    assert (rows.read("resid_post.3", np.array([0, 1, 2])) == again).all()
    tokens = rows.batch(np.array([[4], [0]]), np.array([[True], [True]]), np.array([7, 9]))
    assert (tokens.acts[Site("resid_post", 3)][1, 0] == again[0]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_rows_are_widened(tmp_path, rng, dtype):
    rows = StoredRows(_store(tmp_path / "x", rng, dtype=dtype))
    assert rows.read("resid_post.3", np.arange(6)).dtype == np.float32


def test_token_rows_are_padded_cut_and_counted(tmp_path, rng):
    rows = StoredRows(_store(tmp_path / "x", rng, rows="token"))
    assert rows.encode([TEXTS[2], TEXTS[3]], max_length=2) == [[3, 4], [6, 7]]
    tokens = rows.batch(np.array([[6, 7], [2, 0]]), np.array([[True, True], [True, False]]), np.array([3, 1]))
    assert tokens.mask.tolist() == [[False, True], [True, False]]
    assert (tokens.acts[Site("resid_post", 3)][1, 1] == 0).all()


FAULTS = {
    "another width": ("sentence", {"resid_post.3": lambda a: np.ones((3, 4), np.float32)}, r"resid_post.3 is \[3, 4\]"),
    "another dtype": (
        "sentence",
        {"resid_post.3": lambda a: np.ones((3, 3))},
        "float64, and the manifest says float32",
    ),
    "too few rows": ("sentence", {"resid_post.3": lambda a: a["resid_post.3"][:2]}, r"is \[2, 3\], where"),
    "a doubled id": ("sentence", {"sentence": lambda a: np.array([3, 3, 5])}, "sentence id of sentence 3 twice"),
    "an id of the other shard": ("sentence", {"sentence": lambda a: np.array([3, 4, 0])}, "sentence id of sentence 0"),
    "a doubled text": ("sentence", {"text": lambda a: a["text"][[0, 1, 0]]}, "text of sentence 3 twice, again at 5"),
    "ids without texts": ("sentence", {"sentence": lambda a: np.arange(2)}, r"sentence and text are \[2\] and \[3\]"),
    "a prefix cache": ("token", {"length": lambda a: np.array([2, 4, 3])}, "rows for 1 of the 4 tokens.*prefix cache"),
    "offsets past the end": ("token", {"offsets": lambda a: np.array([0, 2, 3, 9])}, "counts has 6 rows"),
    "offsets of others": ("token", {"offsets": lambda a: np.array([0, 2, 6])}, "are not those of its 3 sentences"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_shards_that_are_not_as_they_should_be_are_refused(tmp_path, rng, fault):
    rows, changes, said = FAULTS[fault]
    place = _store(tmp_path / "x", rng, rows=rows, **changes)
    with pytest.raises(AtlasError, match=said):
        StoredRows(place)


def _half(place):
    path = place / "1.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    _manifest(shards=lambda s: [s[0], s[1] | {"sha256": sha256(path)}])(place)


def _manifest(**changes):
    def change(place):
        raw = json.loads((place / "activations.json").read_text())
        (place / "activations.json").write_text(json.dumps(raw | {k: f(raw.get(k)) for k, f in changes.items()}))

    return change


def _without(name):
    def change(place):
        raw = json.loads((place / "activations.json").read_text())
        del raw[name]
        (place / "activations.json").write_text(json.dumps(raw))

    return change


DAMAGE = {
    "a half-written shard": (_half, "1.safetensors' is damaged"),
    "a changed shard": (lambda p: (p / "1.safetensors").write_bytes(b"x"), "SHA-256 is not the manifest's"),
    "a lost shard": (lambda p: (p / "0.safetensors").unlink(), "0.safetensors' is missing"),
    "no manifest": (lambda p: (p / "activations.json").unlink(), "holds no stored activations"),
    "half a manifest": (lambda p: (p / "activations.json").write_text('{"model": '), "activations.json' is damaged"),
    "no convention": (_without("layers"), "does not state layers"),
    "an unknown convention": (_manifest(layers=lambda _: "embedding first"), "it is block or hidden_states"),
    "a site of another convention": (_manifest(layers=lambda _: "hidden_states"), "write hidden_states.K"),
    "an unknown dtype": (_manifest(dtype=lambda _: "int8"), "it is float32 or float16 or bfloat16"),
    "pooling of token rows": (_manifest(rows=lambda _: "token"), "pooling of token rows"),
    "no shard": (_manifest(shards=lambda _: []), "has no shard"),
    "another count": (_manifest(shards=lambda s: [s[0] | {"rows": 4}, s[1]]), "the manifest says 4"),
    "a word too many": (_manifest(layer=lambda _: 3), "it states layer, which is not known"),
    "no width": (_manifest(sites=lambda _: {"resid_post.3": "wide"}), "activations.json' is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path, rng, damage):
    change, said = DAMAGE[damage]
    change(_store(tmp_path / "x", rng))
    with pytest.raises(AtlasError, match=said):
        StoredModel.open(tmp_path / "x")


@pytest.mark.parametrize(("name", "site"), [("hidden_states.4", "resid_post.3"), ("hidden_states.0", "resid_pre.0")])
def test_hidden_states_count_from_the_embedding(name, site):
    manifest = Manifest("vllm", "token", "hidden_states", "float32", {name: 8}, ())
    assert manifest.widths == {Site.parse(site): 8}
    lens = Manifest("lens", "token", "block", "float32", {"blocks.3.hook_resid_post": 8}, ())
    assert lens.widths == {Site("resid_post", 3): 8}


def test_sentences_are_found_whatever_their_order_and_missed_where_they_are_not(tmp_path, rng):
    model = StoredModel.open(_store(tmp_path / "x", rng))
    model.check_corpus((TEXTS[4:], TEXTS[:2]), "another")
    for texts, said in (
        ([*TEXTS[:2], "none", *TEXTS[2:]], "no activations of 1 of the 7 sentences, the first is sentence 2"),
        (["these", "are", "others"], "activations of another corpus"),
    ):
        with pytest.raises(AtlasError, match=said):
            model.check_corpus((texts, []), "another")
    _manifest(corpus=lambda _: "this")(tmp_path / "x")
    model = StoredModel.open(tmp_path / "x")
    model.check_corpus((TEXTS[:4], TEXTS[4:]), "this")
    with pytest.raises(AtlasError, match="it calls sentence 1 of this corpus sentence 2"):
        model.check_corpus(([TEXTS[i] for i in (0, 2, 1, 3, 4, 5)], []), "this")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sites": ("mlp_act.3",)}, "has no activations of mlp_act.3; it has mlp_act.1"),
        ({"pooling": "mean", "steer_pooling": None}, "max-pooled rows, of which no mean pooling"),
        ({"steer_pooling": "mean"}, "max-pooled rows, of which no mean pooling"),
        ({"max_length": 32, "steer_pooling": None}, "cut at 16 tokens, not at 32; give --max-length 16"),
    ],
)
def test_settings_that_stored_rows_cannot_serve_are_refused(places, settings, said):
    asked = {"sites": (str(SITE),), "methods": ("covariance",), "steer_pooling": None} | OPTIONS | settings
    with pytest.raises(AtlasError, match=said):
        load_pair(places / "subject-sentence", ATLAS, AlignSettings(**asked))


def test_rows_that_are_not_finite_are_left_out(places, pair, corpus, tmp_path):
    place = shutil.copytree(places / "subject-sentence", tmp_path / "nan")
    manifest = json.loads((place / "activations.json").read_text())
    path = place / manifest["shards"][0]["file"]
    arrays = load_file(path)
    row = int(np.flatnonzero(arrays["sentence"] < len(corpus.fit))[0])
    arrays["mlp_act.1"][row, 7] = np.nan
    save_file(arrays, path)
    manifest["shards"][0]["sha256"] = sha256(path)
    (place / "activations.json").write_text(json.dumps(manifest))
    run = align(load_pair(place, ATLAS, _settings("sentence")), corpus, _settings("sentence"))
    assert run.left_out == (arrays["sentence"][row],)


def test_a_stopped_extraction_goes_on_and_ends_with_the_same_rows(pair, corpus, places, tmp_path):
    options = {"model": "subject", "rows": "token", "shard_bytes": 300_000} | OPTIONS

    def stop(stage, done, total, tokens):
        if stage == "eval half" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_activations(pair.subject, corpus, tmp_path / "x", progress=stop, **options)
    assert not (tmp_path / "x").exists()
    kept = len(list((tmp_path / "x.partial" / "shards").glob("*.safetensors")))
    with pytest.raises(AtlasError, match="is another one .*dtype was float32 and is float16"):
        extract_activations(pair.subject, corpus, tmp_path / "x", dtype="float16", **options)
    seen = []
    go_on = {"progress": lambda stage, *a: seen.append(stage)}
    extract_activations(pair.subject, corpus, tmp_path / "x", **go_on, **options)
    expected = {f.name: sha256(f) for f in (places / "subject-token").iterdir()}
    assert kept > 1
    assert len(seen) < 20
    assert not (tmp_path / "x.partial").exists()
    assert {f.name: sha256(f) for f in (tmp_path / "x").iterdir()} == expected


def test_a_writer_refuses_rows_that_do_not_fit(tmp_path):
    manifest = Manifest("m", "sentence", "block", "float32", {"resid_post.3": 2}, (), "max")
    for values, said in (
        ({"resid_post.3": np.ones((1, 2))}, r"is \[1, 2\], where \[2, 2\] is needed"),
        ({"resid_post.3": np.ones((2, 3))}, r"is \[2, 3\]"),
        ({"resid_post.4": np.ones((2, 2))}, "the sites are resid_post.3"),
    ):
        with pytest.raises(AtlasError, match=said), writing_activations(tmp_path / "x", manifest) as writer:
            writer.add(["a", "b"], values)
    with pytest.raises(AtlasError, match="no activations were given"), writing_activations(tmp_path / "x", manifest):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["align", "--atlas", ATLAS, "--site", "mlp_act.1", "--out", "x"], "give the subject in one way"),
        (["activations", "extract", "--out", "x"], "give --model with at least one --site, or --atlas alone"),
        (["activations", "extract", "--out", "x", "--model", SUBJECT], "give --model with at least one --site"),
    ],
)
def test_the_commands_say_what_is_missing(arguments, said, tmp_path):
    done = command_line(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
