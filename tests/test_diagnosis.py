"""What speaks against a result: said where it applies, and nowhere else."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_jax.cli._app import app
from atlas_jax.experiments import Coverage, beyond_sense, coverage, diagnose, median_perplexities, stored_ap, weak_sites
from atlas_jax.experiments._diagnosis import early_layers, single_feature, uncovered, weak_translation
from atlas_jax.experiments._steering import Steered
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site

SITE = Site("mlp_act", 1)


@pytest.fixture(scope="module")
def alignment(bundled_run):
    return Alignment.load(bundled_run)


@pytest.fixture
def command(alignment, bundled_run, monkeypatch):
    """The notes of a command on the run, and what it printed."""
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)

    def run(*arguments):
        done = CliRunner().invoke(app, [arguments[0], str(bundled_run), *arguments[1:], "--json"])
        assert done.exit_code == 0, done.output
        json.loads(done.stdout)
        return " ".join(done.stderr.split())

    return run


def one_hot(*features, width=40):
    query = np.zeros(width, np.float32)
    query[list(features)] = 1
    return query


def test_coverage_of_a_run_is_that_of_its_sentences(bundled_run, alignment):
    """Counted from the activations themselves."""
    texts = list(alignment.corpus.fit)
    tokens = alignment.atlas.tokenize(texts, max_length=alignment.settings.max_length)
    counts = (np.asarray(alignment.atlas.encode(tokens)[alignment.atlas.site]) > 0).sum(axis=0)
    stored = json.loads((bundled_run / "tables" / "coverage.json").read_text())
    assert stored == coverage(alignment).to_dict()
    assert stored["sentences"] == len(texts)
    assert (stored["rare"], stored["never"]) == (int((counts < 10).sum()), int((counts == 0).sum()))
    assert stored["share"] == stored["rare"] / len(counts)
    assert coverage(alignment, least=3).rare == int((counts < 3).sum())


@pytest.mark.parametrize(("rare", "said"), [(3, False), (4, True), (40, True)])
def test_coverage_is_told_from_a_tenth_on(rare, said):
    counts = np.full(40, 10)
    counts[:rare] = 9
    note = Coverage.from_counts(counts, 500).note()
    assert (note is not None) == said
    assert not said or note.startswith(f"{rare / 40:.0%} of the 40 atlas features fire in fewer than 10 of the 500")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (one_hot(3, 20), None),
        (one_hot(20, 1, 2), "of the 3 atlas features of this query 2 fire in fewer than 10 of the 500 .* (1, 2)"),
        (one_hot(1), "the atlas feature of this query fires in fewer than 10 of the 500 sentences aligned on (1)"),
        (one_hot(20) + 0.01 * one_hot(1), None),
        (one_hot(20) - one_hot(2), "of the 2 atlas features of this query 1 fires in fewer than 10 .* (2)"),
        (np.ones(40, np.float32), "of the 40 atlas features of this query 3 fire .* (0, 1, 2)"),
    ],
)
def test_features_of_a_query_that_the_text_hardly_activates(query, said):
    counts = np.full(40, 10)
    counts[:3] = [0, 5, 9]
    found = uncovered(query, counts, 500)
    assert (found is None) == (said is None)
    for part in (said or "").split(" .* "):
        assert part in (found or "")


@pytest.mark.parametrize(("last", "layers", "said"), [(15, 32, True), (16, 32, False), (1, 4, True), (2, 4, False)])
def test_early_layers(last, layers, said):
    sites = [Site("mlp_act", 0), Site("resid_post", last)]
    assert (early_layers(sites, layers) is not None) == said
    assert early_layers([Site("mlp_act", 0)], 1) is None


def test_a_single_feature():
    assert "combine related features" in single_feature(one_hot(3))
    assert single_feature(one_hot(3) + 0.5 * one_hot(4)) is None


def test_a_low_ap():
    said = weak_translation({SITE: 0.12, Site("mlp_act", 2): 0.2}, "covariance")
    assert said.startswith("the AP of covariance on held-out sentences is 0.12 at mlp_act.1, below 0.2:")
    assert weak_translation({SITE: 0.2}, "covariance") is None
    best = {("mlp_act.1", "ridge"): 0.3, ("mlp_act.1", "random"): 0.02, ("mlp_act.2", "random"): 0.02}
    assert weak_sites(best).startswith("no method has an AP of 0.2 or more at mlp_act.2:")
    assert weak_sites({key: ap for key, ap in best.items() if key[0] == "mlp_act.1"}) is None


@pytest.mark.parametrize(
    ("perplexities", "said"),
    [
        ({0.0: 10.0, 1.0: 20.0, -1.0: 5.0}, None),
        ({0.0: 10.0, 1.0: 20.1}, "at strength 1 (2.0 times)"),
        ({0.0: 10.0, 50.0: 300.0, -50.0: 45.0, 10.0: 19.0}, "at strengths -50 (4.5 times), 50 (30.0 times)"),
        ({0.0: 10.0, 50.0: None}, None),
        ({1.0: 10.0, 50.0: 100.0}, None),
        ({0.0: None, 50.0: 100.0}, None),
    ],
)
def test_strengths_beyond_sense(perplexities, said):
    found = beyond_sense(perplexities)
    assert (found is None) == (said is None)
    assert (said or "") in (found or "")


def test_perplexities_are_medians_over_prompts():
    rows = [Steered("p", s, "t", 0.0, x) for s, x in ((0.0, 3.0), (0.0, 5.0), (0.0, 100.0), (1.0, 7.0), (1.0, None))]
    assert median_perplexities([*rows, Steered("p", 2.0, "", 0.0)]) == {0.0: 5.0, 1.0: 7.0, 2.0: None}


def test_commands_say_what_applies_and_no_more(command, alignment, bundled_run):
    ap = stored_ap(bundled_run)
    counts = np.rint(alignment.rate * len(alignment.corpus.fit))
    rare, known = int(np.argmin(counts)), int(np.argmax(counts))
    steer = ("--prompt", "The", "--max-new-tokens", "2", "--method", "random")
    early = command("steer", "--site", "mlp_act.1", "--feature", str(rare), *steer)
    assert "the AP of random on held-out sentences is" in early
    assert f"sentences aligned on ({rare})" in early
    assert "a single atlas feature" in early
    assert "only layers up to 1 of 0 to 3 are steered" in early
    site, method = max(ap, key=ap.get)
    quiet = command("identify", "--site", site, "--method", method, "--feature", str(known))
    assert ap[site, method] >= 0.2
    assert quiet == ""


@pytest.mark.parametrize("table", ["{", '{"rows": [{"site": "mlp_act.1"}]}', "[]"])
def test_a_damaged_table_is_told_and_not_needed(alignment, tmp_path, monkeypatch, table):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "quality.json").write_text(table)
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    known = str(np.argmax(alignment.rate))
    done = CliRunner().invoke(app, ["identify", str(tmp_path), "--site", "mlp_act.1", "--feature", known])
    assert done.exit_code == 0, done.output
    assert "quality.json' is damaged" in " ".join(done.stderr.split())
    assert "delete it, or align again" in " ".join(done.stderr.split())


def test_a_run_without_a_table_is_not_judged(alignment, tmp_path):
    assert stored_ap(tmp_path) == {}
    known = int(np.argmax(alignment.rate))
    assert diagnose(alignment, [SITE], "random", query=alignment.atlas.query([known]), ap={}) == []
