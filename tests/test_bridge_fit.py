"""Bridges between the bundled models: fitted by the pass of an alignment, by command, and steered across."""

import dataclasses
import json
import re

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from typer.testing import CliRunner

from atlas_jax import AtlasError, Bridge, LanguageModel, Site, Subject, run
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.experiments import (
    SteeringConcept,
    SteeringSettings,
    bridge_layers,
    bridged_difference_of_means,
    difference_of_means,
    directions,
    fit_bridge,
    plan,
    single_features,
)
from atlas_jax.files import directory_hash
from atlas_jax.models import match_tokens, pad_spans
from atlas_jax.pipeline import Alignment

PLACES = {"source": SUBJECT, "target": ATLAS / "model"}
SITES = {"source": Site("z", 1, 2), "target": Site("resid_post", 2)}  # a head is narrow, so few sentences are enough
CUT = 16  # tokens, so that few shapes are compiled
OUTLIER = 1.4  # so low that some tokens and some dimensions are left out


@pytest.fixture(scope="module")
def corpus(bundled_run):
    return Alignment.load(bundled_run).corpus


@pytest.fixture(scope="module")
def texts(corpus):
    return [corpus.fit[i] for i in range(60)], [corpus.eval[i] for i in range(30)]


@pytest.fixture(scope="module")
def sides():
    return [Subject.from_model(LanguageModel.from_pretrained(PLACES[s]), SITES[s], "mean") for s in PLACES]


@pytest.fixture(scope="module")
def fits(sides, texts):
    known = {"outlier": OUTLIER, "max_length": CUT}
    return {level: fit_bridge(*sides, *texts, level=level, **known) for level in ("sentence", "token")}


def _read(side, text):
    tokens = side.model.tokenize([text], max_length=CUT, length=CUT)
    acts = run(side.model, tokens, capture=side.sites, logits=False).acts
    return tokens, np.asarray(acts[side.site][0], np.float64)


def _rows(sides, texts, level):
    """Both sides of every sentence or pair of tokens, one text at a time, without outlying tokens; and weights."""
    rows = []
    for text in texts:
        found, kept, spans = [], [], []
        for side in sides:
            tokens, x = _read(side, text)
            mask, norm = np.asarray(tokens.mask[0]), np.linalg.norm(x, axis=1)
            found.append(x)
            kept.append(mask & (norm <= OUTLIER * np.median(norm[mask])))
            spans.append(pad_spans(side.model.tokenizer.spans([text], CUT), CUT))
        if level == "sentence":
            rows.append((*(x[k].mean(0) for x, k in zip(found, kept, strict=True)), 1.0))
            continue
        match = match_tokens(spans[1], spans[0])[0]
        pairs = [(i, j) for i, j in enumerate(match) if j >= 0 and kept[0][i] and kept[1][j]]
        rows += [(found[0][i], found[1][j], 1 / len(pairs)) for i, j in pairs]
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("level", ["sentence", "token"])
def test_a_fit_is_that_of_the_definition(sides, texts, fits, level):
    fit = fits[level]
    (x, y, weight), (other_x, other_y, other) = (_rows(sides, own, level) for own in texts)
    size = lambda a: np.sqrt(np.average(a * a, axis=0, weights=weight))
    drop_x, drop_y = (size(a) > OUTLIER * np.median(size(a)) for a in (x, y))
    assert fit.facts["outlying_source_dimensions"] == np.flatnonzero(drop_x).tolist() != []
    assert fit.facts["outlying_target_dimensions"] == np.flatnonzero(drop_y).tolist() != []
    shown = dict(fit.tables()[1].texts())["outlying source dimensions"]
    assert shown == f"{drop_x.sum()} ({', '.join(map(str, np.flatnonzero(drop_x)))})"
    assert (fit.facts["rows"], fit.facts["held_out_rows"]) == (len(x), len(other_x))
    translation = fit.bridges["ridge"].translation
    shift = translation.certificate["shift"]
    oracle = Ridge(shift).fit(x[:, ~drop_x], y[:, ~drop_y], weight)
    t = np.asarray(translation.matrix)
    np.testing.assert_allclose(t[np.ix_(~drop_y, ~drop_x)], oracle.coef_, atol=1e-3 * abs(oracle.coef_).max())
    assert not t[drop_y].any()
    assert not t[:, drop_x].any()
    r2 = r2_score(
        other_y[:, ~drop_y], oracle.predict(other_x[:, ~drop_x]), multioutput="variance_weighted", sample_weight=other
    )
    assert fit.rows[0].r2 == pytest.approx(r2, abs=1e-4)
    assert fit.rows[1].r2 < fit.rows[0].r2 < 1
    assert (translation.metadata["level"], translation.pooling) == (level, "mean" if level == "sentence" else None)
    assert fit.facts["cka"] < 1
    assert 1 > fit.facts["mutual_neighbours"] > fit.facts["chance_of_neighbours"]


def test_outlying_tokens_are_counted(sides, texts, fits):
    counts = np.zeros((2, 2))
    for text in texts[1]:
        for i, side in enumerate(sides):
            tokens, x = _read(side, text)
            norm = np.linalg.norm(x, axis=1)[np.asarray(tokens.mask[0])]
            counts[i] += np.sum(norm > OUTLIER * np.median(norm)), norm.size
    for name, (out, of) in zip(("source", "target"), counts, strict=True):
        assert fits["sentence"].facts[f"outlying_{name}_tokens"] == pytest.approx(out / of, abs=2e-3)
        assert out > 0


def test_the_cost_is_counted_from_shapes(fits):
    cost, facts = fits["sentence"].cost, fits["sentence"].facts
    d, e = facts["source_width"], facts["target_width"]
    held = facts["held_out_rows"]
    assert cost["operations"]["statistics"] == 2 * (facts["rows"] + held) * d * (d + e) + 2 * held * e * e
    matrices = 2 * 2 * (d * d + d * e) + 2 * e * e  # twice: two halves, and their rounding errors
    assert 0 < cost["bytes"]["statistics"] / 4 - matrices < 20 * (d + e)
    assert cost["operations"]["text"] > 1e8
    assert fits["token"].facts["matched_tokens"] > 0.5
    assert fits["sentence"].facts["matched_tokens"] is None


def test_a_map_of_layers_is_that_of_single_fits(texts):
    sites = {"source": ["z.1.2", "z.0.0"], "target": ["resid_post.2", "z.1.0"]}
    load = lambda side: Subject.from_model(LanguageModel.from_pretrained(PLACES[side]), sites[side], "mean")
    source, target = load("source"), load("target")
    result = bridge_layers(source, target, *texts, outlier=OUTLIER, max_length=CUT)
    one = [Subject(s.model, (s.sites[k],), "mean") for s, k in ((source, 1), (target, 0))]
    fit = fit_bridge(*one, *texts, outlier=OUTLIER, max_length=CUT)
    assert result.r2[1, 0] == pytest.approx(max(fit.path.r2), abs=1e-5)
    assert result.r2.shape == (2, 2)
    assert result.r2.max() == result.r2[tuple(s.index(x) for s, x in zip(result[:2], result.best, strict=True))]
    with pytest.raises(AtlasError, match=r"statistics of 2 x 2 sites take 0\.\d GB, and at most 0\.0 GB are allowed"):
        bridge_layers(source, target, *texts, most_bytes=1000)


def _invoke(*words):
    found = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def command(bundled_run):
    cut = ["--sentences", 60, "--max-length", CUT]
    return [SUBJECT, ATLAS / "model", "--text", bundled_run / "corpus", *cut, "--json"]


def test_the_command_writes_a_bridge(command, tmp_path, as_for_users):
    out = tmp_path / "bridge"
    options = ["--source-site", "z.1.2", "--target-site", "resid_post.2", "--level", "token", "--out", out]
    printed = _invoke("bridge", "fit", *command, *options)
    assert printed == json.loads((out / "bridge.json").read_text())
    assert [row["method"] for row in printed["rows"]] == ["ridge", "procrustes"]
    bridge, rotation = Bridge.from_pretrained(out), Bridge.from_pretrained(out / "procrustes")
    assert bridge.direction(np.ones(32)).shape == rotation.direction(np.ones(32)).shape == (160,)
    about = bridge.translation.metadata
    assert about["source"] == {"path": str(SUBJECT), "sha256": directory_hash(SUBJECT)}
    assert about["target"]["sha256"] == directory_hash(ATLAS / "model")
    with pytest.raises(AtlasError, match="holds a bridge already"):
        _invoke("bridge", "fit", *command, *options)


@pytest.mark.parametrize("kind", ["svg", "png", "json"])
def test_the_command_draws_layers(command, tmp_path, as_for_users, kind):
    out = tmp_path / f"layers.{kind}"
    sites = ["--source-site", "z.0.0", "--source-site", "z.1.2", "--target-site", "z.1.0"]
    printed = _invoke("bridge", "layers", *command, *sites, "--out", out)
    assert (np.shape(printed["r2"]), printed["source"]) == ((2, 1), ["z.0.0", "z.1.2"])
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "json": b"{"}
    assert out.read_bytes().startswith(starts[kind])
    with pytest.raises(AtlasError, match=r"names no kind of file; end it in \.svg, \.png, \.pdf or \.json"):
        _invoke("bridge", "layers", *command, *sites, "--out", tmp_path / "layers")


@pytest.fixture(scope="module")
def across(fits, tmp_path_factory, sides, texts):
    """A bridge from the foundation model into the subject of the bundled run, saved."""
    home = tmp_path_factory.mktemp("across") / "bridge"
    models = {
        name: {"path": str(place), "sha256": directory_hash(place)}
        for name, place in (("source", ATLAS / "model"), ("target", SUBJECT))
    }
    source, target = (
        Subject.from_model(side.model, site, "mean")
        for side, site in zip(sides[::-1], ("z.1.0", "resid_post.2"), strict=True)
    )
    fit_bridge(source, target, *texts, models=models, max_length=CUT).save(home)
    return home


def test_a_difference_of_means_is_carried_over(bundled_run, across, sides):
    whole, bridge = Alignment.load(bundled_run), Bridge.from_pretrained(across)
    alignment = dataclasses.replace(whole, corpus=whole.corpus.head(40, 10))
    often = np.argsort(np.abs(np.asarray(whole.rate) - 0.3))[:2].tolist()  # in some of few sentences, not in all
    queries = {str(f): whole.atlas.query([f]) for f in often}
    carried = bridged_difference_of_means(alignment, across, queries, [Site("resid_post", 2)])
    made = difference_of_means(alignment, queries, [Site("z", 1, 0)], model=alignment.atlas.model)
    for name in queries:
        right = np.asarray(bridge.translation.matrix) @ made[Site("z", 1, 0), name]
        np.testing.assert_allclose(carried[Site("resid_post", 2), name], right, atol=1e-5)
        assert np.linalg.norm(right) > 0
    concept = SteeringConcept("one", (int(np.argmax(next(iter(queries.values())))),), (1.0,))
    sites, known = (("resid_post.2",),), {"controls": ("diffmean",), "random": 0}
    settings = SteeringSettings((concept,), ("The",), (0.5,), sites, ("covariance",), bridge=str(across), **known)
    assert [cell.method for cell in plan(settings)] == ["unsteered", "covariance", "diffmean", "bridged diffmean"]
    along = directions(alignment, settings).subject
    one, other = (along[name, Site("resid_post", 2), "one"] for name in ("bridged diffmean", "covariance"))
    assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=1e-5)
    assert settings.to_dict()["bridge"] == directory_hash(across)
    assert "bridge" not in SteeringSettings((concept,), ("The",), (0.5,), sites, ("covariance",)).to_dict()


@pytest.mark.parametrize(
    ("change", "site", "says"),
    [
        ({}, "mlp_act.1", "ends at resid_post.2, and mlp_act.1 is to be steered at; give --site resid_post.2 alone"),
        ({"target": {"path": "/a/model", "sha256": "0"}}, "resid_post.2", "ends in /a/model, which is not the subject"),
        ({"target": {}}, "resid_post.2", "ends in a model it does not name, which is not the subject"),
        ({"source": {"path": str(SUBJECT), "sha256": "0"}}, "resid_post.2", "fitted with another model than is at"),
    ],
)
def test_bridges_of_other_models_are_refused(bundled_run, across, tmp_path, change, site, says):
    bridge = Bridge.from_pretrained(across)
    bridge.translation.metadata.update(change)
    place = bridge.save_pretrained(tmp_path / "changed")
    alignment = Alignment.load(bundled_run)
    with pytest.raises(AtlasError, match=re.escape(says)):
        bridged_difference_of_means(alignment, place, single_features(alignment, 1), [Site.parse(site)])
