"""What does not fit: sites read in several passes, and statistics in the memory of the host."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.logged import logged
from typer.testing import CliRunner

from atlas_jax import Alignment, AlignSettings, align, build_corpus, load_pair, pipeline
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.corpus import installed_documentation
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import Chooser
from atlas_jax.pipeline import Checkpoints, known_device
from atlas_jax.translators import Member

WIDE = "mlp_act.0", "mlp_act.2"
MEMORY = 40 * 2**20  # bytes: for the statistics of one site, not of two
SITES = "z.0", "resid_post.1", "z.2"  # of one width
SETTINGS = AlignSettings(SITES, ("procrustes", "semantic_lens"), max_length=16, token_budget=1024, top_k=5)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(installed_documentation(max_bytes=100_000), n_fit=160, n_eval=60)


@pytest.fixture(scope="module")
def pair():
    return load_pair(SUBJECT, ATLAS, SETTINGS)


@pytest.fixture(scope="module")
def whole(pair, corpus):
    return align(pair, corpus, SETTINGS)


def assert_same(ours: Alignment, theirs: Alignment) -> None:
    for known, others in ((ours.translations, theirs.translations), (ours.steering, theirs.steering)):
        assert set(known) == set(others)
        for key, translation in known.items():
            a, b = (np.asarray(t.matrix) for t in (translation, others[key]))
            assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b), key
            assert translation.token_norm == pytest.approx(others[key].token_norm, rel=1e-5)
    np.testing.assert_array_equal(ours.rate, theirs.rate)
    assert ours.left_out == theirs.left_out


def test_several_passes_give_what_one_gives(pair, corpus, whole):
    several = align(pair, corpus, SETTINGS, at_once=1)
    assert_same(several, whole)
    assert all(isinstance(t.matrix, np.ndarray) for t in several.translations.values())


def test_a_run_stopped_in_the_second_pass_does_not_read_for_the_first_again(pair, corpus, whole, tmp_path):
    class Stop(Exception):
        pass

    counted = []

    def stop(stage, done, total, tokens):
        counted.append((stage, done))
        if counted.count(("align", 0)) == 2 and done:
            raise Stop

    with pytest.raises(Stop):
        align(pair, corpus, SETTINGS, at_once=2, progress=stop, checkpoints=Checkpoints(tmp_path, every=0.0))
    assert Checkpoints(tmp_path).exist()
    with logged() as said:
        again = align(pair, corpus, SETTINGS, at_once=2, checkpoints=Checkpoints(tmp_path, every=0.0))
    assert "going on with the fit pass after 160 of 160 sentences" in said[0]
    assert_same(again, whole)


def test_a_choice_in_several_passes_is_that_of_one(pair, corpus):
    chooser = Chooser(("detect",), (Member(0.5, 0.0), Member(1.0, 0.0)))
    settings = dataclasses.replace(SETTINGS, methods=("covariance",), sites=SITES[:2])
    pair = pair._replace(subject=dataclasses.replace(pair.subject, sites=pair.subject.sites[:2]))
    one, several = (align(pair, corpus, settings, chooser=chooser, at_once=n) for n in (None, 1))
    assert_same(several, one)
    assert several.choice.members == one.choice.members
    assert [r["site"] for r in several.choice.record["chosen"]] == [r["site"] for r in one.choice.record["chosen"]]
    assert len(several.choice.record["grid"]) == len(one.choice.record["grid"])


def test_statistics_are_held_where_the_models_are_not(pair, corpus, whole):
    """The models are on another device than the host's, and everything that is added comes over from there."""
    there = jax.devices()[3]
    moved = pair._replace(subject=jax.device_put(pair.subject, there), atlas=jax.device_put(pair.atlas, there))
    assert_same(align(moved, corpus, SETTINGS, at_once=2, host_statistics=True), whole)
    chooser = Chooser(("detect",), (Member(0.5, 0.0),))
    with pytest.raises(AtlasError, match="statistics in host memory are for one device and without a chooser"):
        align(pair, corpus, SETTINGS, chooser=chooser, host_statistics=True)


def test_the_command_splits_what_does_not_fit(corpus, tmp_path, monkeypatch):
    """On a device with room for the statistics of one site."""
    corpus.save(tmp_path / "corpus")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    small = lambda name=None: known_device("cpu")._replace(name="small", memory=MEMORY)
    monkeypatch.setattr(pipeline, "known_device", small)
    words = ["align", "--subject", SUBJECT, "--atlas", ATLAS, "--text", tmp_path / "corpus", "--method", "covariance"]
    words += ["--max-length", 16, "--token-budget", 256, "--out", tmp_path / "run"]
    words += [word for site in WIDE for word in ("--site", site)]
    planned = CliRunner().invoke(app, [*map(str, words), "--plan", "--json"], catch_exceptions=False)
    assert json.loads(planned.stdout)["at_once"] == 1
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "in 2 passes over the text for one site at once" in " ".join(done.output.split())
    assert [str(site) for site, _ in Alignment.load(tmp_path / "run").translations] == [*WIDE]
