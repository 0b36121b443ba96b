"""Table 4 in bounded memory: queries in blocks, and no more sentences than make sense."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import _retrieval, semantic_retrieval
from atlas_jax.pipeline import Alignment


@pytest.fixture(scope="module")
def alignment(bundled_run):
    """The run with four of its translations."""
    whole = Alignment.load(bundled_run)
    few = {key: t for key, t in whole.translations.items() if t.method in ("procrustes", "covariance")}
    return dataclasses.replace(whole, translations={k: t for k, t in few.items() if str(t.site) != "mlp_act.2"})


def retrieval(alignment, **options):
    return semantic_retrieval(alignment.stream("eval"), alignment.translations, **options)


def test_blocks_change_nothing(alignment, monkeypatch):
    """Not even where they do not divide the features."""
    whole = retrieval(alignment, sentences=7)
    monkeypatch.setattr(_retrieval, "QUERIES", 100)
    parted = retrieval(alignment, sentences=7)
    assert parted.candidates == whole.candidates
    assert max(whole.candidates.values()) > 100
    for ours, theirs in zip(parted.rows, whole.rows, strict=True):
        assert ours.mrr == pytest.approx(theirs.mrr, abs=1e-3)
        assert ours.mpp == pytest.approx(theirs.mpp, abs=1e-5)


def test_no_more_sentences_than_half_of_those_there_are(alignment, bundled_run, monkeypatch):
    """Queries over all sentences would be the same for every feature."""
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    command = ["evaluate", "retrieval", str(bundled_run), "--json", "--sentences"]
    found, most = (CliRunner().invoke(app, [*command, count], catch_exceptions=False) for count in ("100000", "100"))
    told = "queries are averaged over 100 sentences, not over 100000: over at most half of the 200 held out"
    assert told in " ".join(found.stderr.split())
    assert "queries are averaged" not in most.stderr
    assert json.loads(found.stdout) == json.loads(most.stdout)
    assert json.loads(most.stdout)["sentences"] == 100


@pytest.mark.parametrize("sentences", [0, -3, 2.5])
def test_sentences_are_a_number_of_them(alignment, as_for_users, sentences):
    with pytest.raises(AtlasError, match=f"sentences of a query must be a whole number from 1 up, not {sentences}"):
        retrieval(alignment, sentences=sentences)
