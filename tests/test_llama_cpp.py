"""Our control vectors in llama.cpp itself."""

import numpy as np
import pytest
from helpers.llama_cpp import MISSING, LlamaCpp, write_model
from typer.testing import CliRunner

import atlas_jax as aj
from atlas_jax.bundled import SUBJECT
from atlas_jax.cli._app import app

pytestmark = pytest.mark.skipif(MISSING, reason="xllamacpp is not installed")
PROMPT, NEW, TOLERANCE = "This function", 24, 0.02  # it keeps keys and values in float16


@pytest.fixture(scope="module")
def lm():
    return aj.LanguageModel.from_pretrained(SUBJECT)


@pytest.fixture
def theirs(lm, tmp_path):
    write_model(SUBJECT, tmp_path / "subject.gguf")
    return LlamaCpp(tmp_path / "subject.gguf", lm.config.vocab_size)


def ours(lm, ids, edits=None):
    return np.asarray(aj.models.run(lm, lm.tokenizer.pad([ids], len(ids), [0]), edits=edits).logits[0, -1])


def test_a_control_vector_does_there_what_it_does_here(lm, theirs, tmp_path, rng):
    ids = lm.tokenizer.encode([PROMPT])[0]
    unsteered = ours(lm, ids)
    np.testing.assert_allclose(theirs.logits(ids), unsteered, atol=TOLERANCE)
    edits = {f"resid_post.{k}": aj.Add(rng.normal(size=128).astype(np.float32), 0.5) for k in (1, 2)}
    theirs.load_control_vector(aj.export_gguf(edits, tmp_path / "v.gguf"))
    steered, elsewhere = ours(lm, ids, edits), ours(lm, ids, {"resid_post.0": edits["resid_post.1"]})
    np.testing.assert_allclose(theirs.logits(ids), steered, atol=TOLERANCE)
    assert min(np.abs(steered - other).max() for other in (unsteered, elsewhere)) > 20 * TOLERANCE


def test_an_exported_concept_turns_the_text_of_llama_cpp_toward_it(lm, theirs, bundled_run, tmp_path):
    options = ["--feature=39", "--site=resid_post.2", "--strength=0.5", "--additive", f"--out={tmp_path / 'v.gguf'}"]
    done = CliRunner().invoke(app, ["export", str(bundled_run), *options])
    assert done.exit_code == 0, done.output
    ids = lm.tokenizer.encode([PROMPT])[0]
    before = lm.tokenizer.decode(theirs.greedy(ids, NEW))
    theirs.load_control_vector(tmp_path / "v.gguf")
    after = lm.tokenizer.decode(theirs.greedy(ids, NEW))
    atlas = aj.Alignment.load(bundled_run).atlas
    active = lambda text: float(aj.experiments.token_features(atlas, PROMPT + text, [39]).values.max())
    assert active(after) > 2 * active(before) + 1
