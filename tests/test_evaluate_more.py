"""Quality by corpus size, domain and layer, and causality of steering, on the bundled run."""

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_jax.cli._app import app
from atlas_jax.corpus import Corpus
from atlas_jax.corpus._files import Half
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import (
    _causality,
    causality,
    evaluate_quality,
    quality_across_domains,
    quality_by_layer,
    quality_curve,
    single_features,
)
from atlas_jax.models import run
from atlas_jax.pipeline import Alignment, Pair, align
from atlas_jax.types import Site

METHODS, FEATURES = ("procrustes", "semantic_lens"), 20
FEW = {"features": FEATURES}


@pytest.fixture(scope="module")
def alignment(bundled_run):
    """The run made again at one site by two methods, of the first tokens of its sentences, in two unlike domains."""
    whole = Alignment.load(bundled_run)
    settings = dataclasses.replace(whole.settings, sites=("resid_post.2",), methods=METHODS, max_length=8)
    subject = dataclasses.replace(whole.subject, sites=(Site("resid_post", 2),))
    corpus = in_domains(whole, lambda i: i % 3 == 0).corpus
    return align(Pair(subject, whole.atlas, whole.sources), corpus, settings)


def in_domains(alignment, first):
    """The same sentences, those of ids that are in the first domain called "a" and all others "b"."""
    corpus, names = alignment.corpus, ["a" if first(i) else "b" for i in range(len(alignment.corpus))]
    split = len(corpus.fit)
    halves = Half(corpus.fit, names[:split]), Half(corpus.eval, names[split:])
    return dataclasses.replace(alignment, corpus=Corpus.of_halves(*halves, corpus.statistics))


@pytest.fixture(scope="module")
def quality(alignment):
    return {row[:2]: row for row in evaluate_quality(alignment, features=FEATURES)[1].rows}


@pytest.fixture(scope="module")
def domains(alignment):
    return quality_across_domains(alignment, least=20, methods=METHODS, **FEW)


def same(ours, theirs, atol=2e-3):
    """Whether two rows of quality agree to rounding, intervals included."""
    return ours[:2] == theirs[:2] and np.allclose(ours[2][:3] + ours[3][:3], theirs[2][:3] + theirs[3][:3], atol=atol)


def test_a_curve_ends_at_the_quality_of_the_run(alignment, quality):
    curve = quality_curve(alignment, [300, 100, 100_000], **FEW)
    assert [point.sentences for point in curve.rows] == [100, 300, 400] * len(METHODS)
    ends = [point.quality for point in curve.rows if point.sentences == 400]
    assert all(same(end, quality[end[:2]]) for end in ends)
    starts = [point.quality for point in curve.rows if point.sentences == 100]
    assert not any(same(start, quality[start[:2]]) for start in starts)
    assert curve.table().rows[0][:3] == ("resid_post.2", METHODS[0], 100)
    assert json.loads(json.dumps(curve.to_dict()))["rows"][0]["sentences"] == 100


def test_a_snapshot_is_a_run_on_its_sentences(alignment):
    """Nothing of the sentences behind a snapshot is in it."""
    first = dataclasses.replace(alignment, corpus=alignment.corpus.head(150, len(alignment.corpus.eval)))
    curve, alone = quality_curve(alignment, [150], **FEW), quality_curve(first, **FEW)
    assert [point.sentences for point in alone.rows] == [150] * len(METHODS)
    assert all(same(a.quality, b.quality) for a, b in zip(curve.rows[::2], alone.rows, strict=True))


def test_statistics_of_domains_merge_into_those_of_the_whole(alignment, domains, quality):
    rows = {(r.fit, r.test, r.quality.method): r.quality for r in domains.rows}
    assert len(rows) == 3 * 3 * len(METHODS)
    assert domains.domains == {"b": (266, 134), "a": (134, 66), "all domains": (400, 200)}
    assert all(
        same(rows["all domains", "all domains", m], quality[rows["all domains", "all domains", m][:2]]) for m in METHODS
    )
    ap, auroc = domains.tables()[:2]
    assert [row[0] for row in ap.rows] == ["b", "a", "all domains", "chance"]
    assert [row[0] for row in auroc.rows] == ["b", "a", "all domains"]


def test_a_cell_is_a_run_on_the_sentences_of_its_domain(alignment, domains):
    """And sentences that are given to the other domain change it."""
    cell = lambda found: next(
        r.quality for r in found.rows if r[:2] == ("a", "all domains") and r.quality[1] == METHODS[0]
    )
    corpus = alignment.corpus
    alone = Half([corpus.fit[i] for i in range(0, 400, 3)], ["a"] * 134)
    half = Half(corpus.eval, ["a"] * 200)
    own = dataclasses.replace(alignment, corpus=Corpus.of_halves(alone, half, corpus.statistics))
    curve = quality_curve(own, **FEW)
    assert same(cell(domains), curve.rows[0].quality)
    moved = quality_across_domains(in_domains(alignment, lambda i: i % 3 == 1), least=20, methods=METHODS, **FEW)
    assert not same(cell(domains), cell(moved))


def test_small_domains_count_in_all_alone(alignment, domains):
    three = in_domains(alignment, lambda i: i % 3 == 0)
    names = ["tiny" if i in (4, 7, 401, 403) else name for i, name in enumerate(three.corpus.domains)]
    halves = Half(three.corpus.fit, names[:400]), Half(three.corpus.eval, names[400:])
    three = dataclasses.replace(three, corpus=Corpus.of_halves(*halves, three.corpus.statistics))
    found = quality_across_domains(three, least=20, methods=METHODS, **FEW)
    assert found.dropped == {"tiny": (2, 2)}
    assert list(found.domains) == ["b", "a", "all domains"]
    assert "1 with fewer than 20 sentences in a half" in found.tables()[0].caption
    whole = lambda d: next(r.quality for r in d.rows if r[:2] == ("all domains", "all domains"))
    assert same(whole(found), whole(domains))


def test_layers_agree_with_the_run_where_it_has_the_site(alignment, quality):
    found = quality_by_layer(alignment, "resid_post", methods=METHODS[:1], **FEW)
    assert [(str(r.site), r.method) for r in found.rows] == [(f"resid_post.{i}", METHODS[0]) for i in range(4)]
    there = next(row for row in quality.values() if row.method == METHODS[0])
    assert [same(row._replace(site=there.site), there) for row in found.rows] == [False, False, True, False]


OPTIONS = {"site": "resid_post.2", "max_new_tokens": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def caused(alignment):
    return causality(alignment, single_features(alignment, 2), ["The", "When"], strength=2.0, **OPTIONS)


def test_conditions_of_causality(alignment, caused):
    conditions = ["unsteered", "steered", "projected out", "steered, projected out", "steered orthogonally"]
    assert [row.condition for row in caused.rows()] == conditions
    texts = {(c.condition, c.concept): c.texts for c in caused.cells}
    one, two = single_features(alignment, 2)
    assert texts["unsteered", one] == texts["unsteered", two]
    assert texts["steered", one] != texts["unsteered", one]
    assert texts["steered orthogonally", one] != texts["steered", one]
    assert all(row.change.n == 2 for row in caused.rows())
    assert caused.rows()[0].change[:3] == (0, 0, 0)
    means = [np.mean([c.activation for c in caused.cells if c.condition == name]) for name in conditions]
    np.testing.assert_allclose([row.activation.mean for row in caused.rows()], means)
    assert json.loads(json.dumps(caused.to_dict()))["site"] == "resid_post.2"
    assert len(caused.table().rows) == 5


def test_without_strength_nothing_changes(alignment):
    still = causality(alignment, single_features(alignment, 2), ["The", "When"], strength=0.0, **OPTIONS)
    texts = {c.condition: c.texts for c in still.cells if c.concept == still.cells[0].concept}
    assert texts["unsteered"] == texts["steered"] == texts["steered orthogonally"]
    assert texts["projected out"] == texts["steered, projected out"]


def test_chunks_change_nothing(alignment, caused, monkeypatch):
    monkeypatch.setattr(_causality, "ROWS", 10)
    parted = causality(alignment, single_features(alignment, 2), ["The", "When"], strength=2.0, **OPTIONS)
    assert [c.texts for c in parted.cells] == [c.texts for c in caused.cells]


def test_edits_do_what_the_conditions_say(alignment):
    """The steered site holds nothing along the concept where it is projected out, and what is orthogonal is."""
    query = next(iter(single_features(alignment, 1).values()))
    here = alignment.subject.sites[0]
    t = alignment.translations[here, "procrustes"]
    along = {here: np.asarray(t.direction(query[None]))}
    decoder = _causality._Decoder(alignment, along, ["The"], 1.5, 4, 0.0, 0)
    texts = decoder._wanted()
    model, s = alignment.subject.model, along[here][0] / np.linalg.norm(along[here][0])
    tokens = model.tokenize(["The size of the file"] * len(texts))
    found = run(model, tokens, capture=[here], edits=decoder._edits(texts)).acts[here]
    share = np.abs(np.asarray(found) @ s) / np.linalg.norm(found, axis=-1)
    out = np.array(["projected out" in text.condition for text in texts])
    assert share[out].max() < 1e-5 < share[~out].max()
    random = decoder._steered(texts[-1])
    assert texts[-1].condition == "steered orthogonally"
    assert abs(random @ s) < 1e-4 * np.linalg.norm(random)
    assert np.linalg.norm(random) == pytest.approx(np.linalg.norm(along[here][0]), rel=1e-5)


def test_later_sites_are_fitted_where_the_run_has_none(alignment):
    found = causality(alignment, single_features(alignment, 1), ["The"], later=["resid_post.3"], **OPTIONS)
    assert [str(s) for s in found.later] == ["resid_post.3"]
    assert len(found.rows()) == len(_causality.CONDITIONS)


BAD = [
    (quality_curve, {"sizes": [0]}, "a size of the curve must be a whole number from 1 up, not 0"),
    (quality_curve, {"sizes": [10, -3]}, "a size of the curve must be a whole number from 1 up, not -3"),
    (quality_curve, {"methods": ["magic"]}, "unknown method 'magic'"),
    (quality_across_domains, {"domains": ["a", "c"]}, "this corpus has no domain 'c'; it has b, a"),
    (quality_across_domains, {"domains": ["a"], "least": 10}, "only 1 of 1 domains hold 10 sentences in each half"),
    (quality_across_domains, {"least": 100}, "only 1 of 2 domains hold 100 sentences in each half"),
    (quality_by_layer, {"sites": ["resid_post.9"]}, "resid_post.9"),
    (quality_by_layer, {"sites": "resid"}, "unknown point 'resid' of a site"),
]


@pytest.mark.parametrize(("function", "options", "sentence"), BAD)
def test_mistakes_in_a_sentence(alignment, function, options, sentence):
    with pytest.raises(AtlasError, match=sentence):
        function(alignment, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"later": ["mlp_act.2"]}, "mlp_act.2 is not behind resid_post.2"),
        ({"site": "resid_post.1"}, "no translation of resid_post.1"),
        ({"strength": float("nan")}, "the strength must be a number, not nan"),
        ({"samples": 0}, "samples must be a whole number from 1 up, not 0"),
        ({"prompts": []}, "causality needs concepts and prompts"),
        ({"concepts": {"nothing": np.zeros(1536, np.float32)}}, "the concept query is zero everywhere"),
    ],
)
def test_mistakes_of_causality_in_a_sentence(alignment, options, sentence):
    given = {"concepts": single_features(alignment, 1), "prompts": ["The"]} | OPTIONS | options
    with pytest.raises(AtlasError, match=sentence):
        causality(alignment, given.pop("concepts"), given.pop("prompts"), **given)


def test_commands_store_what_they_print(alignment, bundled_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    out = tmp_path / "curve.json"
    command = ["evaluate", "curve", str(bundled_run), "--features", "20", "--size", "100"]
    done = CliRunner().invoke(app, [*command, "--json", "--out", str(out)], catch_exceptions=False)
    assert json.loads(done.stdout) == json.loads(out.read_text())
    with pytest.raises(AtlasError, match="exists already"):
        CliRunner().invoke(app, [*command, "--out", str(out)], catch_exceptions=False)
    (tmp_path / "run.json").write_text("{}")
    own = ["evaluate", "domains", str(tmp_path), "--features", "20", "--least", "20"]
    for _ in range(2):
        done = CliRunner().invoke(app, own, catch_exceptions=False)
    assert "AP across domains at resid_post.2 by procrustes" in done.stdout
    assert json.loads((tmp_path / "tables" / "domains.json").read_text())["least"] == 20
