"""Steering vectors as files: the same text after a round trip, and what llama.cpp would add."""

import json

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from atlas_jax import Add, AtlasError, LanguageModel, Replace, Steer, export_gguf, generate, load_edits, run, save_edits
from atlas_jax.bundled import SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site


@pytest.fixture(scope="module")
def model():
    return LanguageModel.from_pretrained(SUBJECT)


@pytest.fixture
def edits(rng):
    draw = lambda: rng.standard_normal(128).astype(np.float32)
    return {"resid_post.2": Steer(draw(), 3.0), "resid_post.1": Add(jnp.asarray(draw()), -1.5)}


def test_edits_come_back_as_they_were(model, edits, tmp_path):
    kept = load_edits(save_edits(edits, tmp_path / "v.safetensors"))
    assert list(kept) == [Site("resid_post", 2), Site("resid_post", 1)]
    for site, edit in edits.items():
        assert type(kept[Site.parse(site)]) is type(edit)
        np.testing.assert_array_equal(kept[Site.parse(site)].direction, edit.direction)
    texts = [generate(model, ["Return the"], max_new_tokens=12, edits=e).texts for e in (edits, kept, {})]
    assert texts[0] == texts[1] != texts[2]


def _read(path):
    """Architecture, hint, and vectors by layer, as the package that defines the format reads them."""
    reader = gguf.GGUFReader(path)
    words = [reader.get_field(k).contents() for k in ("general.architecture", "controlvector.model_hint")]
    return (*words, {int(t.name.removeprefix("direction.")): np.array(t.data) for t in reader.tensors})


def test_a_control_vector_does_in_transformers_what_the_sum_does_here(model, edits, tmp_path):
    """Added to the output of each block it names, as llama.cpp adds it."""
    architecture, hint, vectors = _read(export_gguf(edits, tmp_path / "v.gguf", family="mistral", additive=True))
    assert (architecture, hint, sorted(vectors)) == ("controlvector", "llama", [1, 2])
    peer = transformers.AutoModelForCausalLM.from_pretrained(SUBJECT, dtype=torch.float32)
    for layer, vector in vectors.items():
        added = torch.tensor(vector)
        peer.model.layers[layer].register_forward_hook(lambda _, __, a, v=added: a + v)
    tokens = model.tokenize(["A file of numbers and a list"])
    sums = {site: Add(e.direction, e.strength) for site, e in edits.items()}
    with torch.no_grad():
        theirs = peer(torch.tensor(np.asarray(tokens.ids))).logits.numpy()
    np.testing.assert_allclose(run(model, tokens, edits=sums).logits, theirs, atol=3e-4)
    assert np.abs(run(model, tokens, edits=edits).logits - theirs).max() > 0.05  # Eq. 4 is another thing


@pytest.mark.parametrize(
    ("edits", "additive", "says"),
    [
        ({"resid_post.2": Steer(np.ones(4), 1.0)}, False, "scales activations back to their norm"),
        ({"mlp_act.2": Add(np.ones(4), 1.0)}, True, "resid_post, not at mlp_act.2"),
        ({"resid_pre.2": Add(np.ones(4), 1.0)}, True, "not at resid_pre.2"),
        ({"resid_post.0": Add(np.ones(4), 1.0)}, True, "no control vector after block 0"),
        ({"resid_post.1": Add(np.ones(4), 1.0), "resid_post.2": Add(np.ones(5), 1.0)}, True, "one width"),
        ({"resid_post.1": Replace(np.ones(4))}, True, "only Steer and Add .* is Replace"),
        ({"resid_post.1": Add(np.ones((2, 4)), 1.0)}, True, "has several, one a row"),
        ({"resid_post.1": Add(np.ones(4), np.ones(2))}, True, "has several, one a row"),
        ({"resid_post.1": Add(np.full(4, np.nan), 1.0)}, True, "finite"),
        ({}, True, "there is no edit"),
    ],
)
def test_what_a_format_cannot_express_is_refused(edits, additive, says, tmp_path):
    with pytest.raises(AtlasError, match=says):
        export_gguf(edits, tmp_path / "v.gguf", additive=additive)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_file_that_holds_no_edits_is_named(content, tmp_path):
    path = tmp_path / "v.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AtlasError, match="v.safetensors"):
        load_edits(path)


def test_the_command_writes_either(bundled_run, tmp_path, monkeypatch):
    alignment = Alignment.load(bundled_run)
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    options = ["export", str(bundled_run), "--feature", "17", "--site", "resid_post.2", "--strength", "0.25", "--json"]

    def command(*more):
        return CliRunner().invoke(app, [*options, *map(str, more)])

    done = command("--method", "procrustes", "--out", tmp_path / "v.safetensors")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sites"] == "resid_post.2"
    (edit,) = load_edits(tmp_path / "v.safetensors").values()
    direction = alignment.translation("resid_post.2", "procrustes").direction(alignment.atlas.query([17]))
    np.testing.assert_allclose(edit.direction, direction, rtol=1e-6)
    assert edit.strength == 0.25
    done = command("--method", "procrustes", "--out", tmp_path / "v.bin", "--format", "repeng", "--additive")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(_read(tmp_path / "v.bin")[2][2], 0.25 * np.asarray(direction), rtol=1e-6)
    for more, says in {
        ("--out", tmp_path / "w.gguf"): "ask for the additive form",
        ("--out", tmp_path / "w.pt"): "unknown format 'pt' of vectors; give --format safetensors, gguf, repeng",
        ("--out", tmp_path / "v.bin", "--format", "gguf"): "exists",
    }.items():
        done = command(*more)
        assert isinstance(done.exception, AtlasError), done.output
        assert says in str(done.exception)
