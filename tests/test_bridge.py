"""Bridges: regression paths and measures beside scikit-learn and float64 numpy, maps there and back, bad input."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.float64 import distance
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from atlas_jax import Bridge, LanguageModel, Site, Statistics, Subject, Translation, update
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import fit_bridge, fit_bridge_to_activations, shared_tokens
from atlas_jax.metrics import mutual_neighbours
from atlas_jax.models import Tokenizer
from atlas_jax.pooling import without_outliers
from atlas_jax.statistics import outlying_features, without_features
from atlas_jax.translators import PENALTIES, explained_variance, linear_cka, ridge_path, ridge_paths

NEEDS = "cross", "atlas_gram", "subject_gram"


@pytest.fixture
def halves(rng):
    """Rows of both sides in two halves: correlated columns of different sizes, one dead, means far from zero."""
    mix = rng.standard_normal((9, 9)) * np.geomspace(3, 0.05, 9)
    x = rng.standard_normal((260, 9)) @ mix + 5 * rng.standard_normal(9)
    y = x @ rng.standard_normal((9, 6)) + 0.8 * rng.standard_normal((260, 6)) - 20
    x[:, 4] = 0
    x, y = x.astype(np.float32), y.astype(np.float32)
    return (x[:160], y[:160]), (x[160:], y[160:] + np.float32(0.3))


def _statistics(x, y, batch=50):
    stats = Statistics.init(NEEDS, y.shape[1], x.shape[1])
    for i in range(0, len(x), batch):
        stats = update(stats, y[i : i + batch], x[i : i + batch])
    return stats


def _both(halves):
    return tuple(_statistics(*half) for half in halves)


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0])
def test_a_penalty_is_that_of_scikit_learn(halves, penalty):
    (x, y), (other_x, other_y) = halves
    solution, path = ridge_path(*_both(halves), [penalty])
    oracle = Ridge(solution.certificate["shift"]).fit(x.astype(float), y.astype(float))
    assert distance(solution.matrix, oracle.coef_) < 1e-4
    without = Ridge(solution.certificate["shift"], fit_intercept=False).fit(x.astype(float), y.astype(float))
    assert distance(solution.matrix, without.coef_) > 1e-2
    predicted = oracle.predict(other_x.astype(float))
    assert path.r2[0] == pytest.approx(r2_score(other_y, predicted, multioutput="variance_weighted"), abs=1e-6)
    assert path.r2[0] != pytest.approx(r2_score(other_y, predicted), abs=1e-4)


def test_the_best_penalty_is_that_of_scikit_learn(halves):
    (x, y), (other_x, other_y) = (tuple(a.astype(float) for a in half) for half in halves)
    solution, path = ridge_path(*_both(halves), PENALTIES)
    unit = solution.certificate["shift"] / path.penalty
    split = [(np.arange(len(x)), np.arange(len(x), len(x) + len(other_x)))]
    scores = [
        r2_score(other_y, Ridge(p * unit).fit(x, y).predict(other_x), multioutput="variance_weighted")
        for p in PENALTIES
    ]
    assert path.best == int(np.argmax(scores)) not in (0, len(PENALTIES) - 1)
    np.testing.assert_allclose(path.r2, scores, atol=1e-6)
    error = lambda true, predicted: -((true - predicted) ** 2).sum()
    search = RidgeCV([p * unit for p in PENALTIES], cv=split, scoring=lambda m, a, b: error(b, m.predict(a)))
    assert search.fit(np.vstack([x, other_x]), np.vstack([y, other_y])).alpha_ == pytest.approx(path.penalty * unit)


def test_paths_of_several_targets_are_those_of_each(halves):
    fit, held = _both(halves)
    twice = [_statistics(x, -2 * y) for x, y in halves]
    paths = ridge_paths({"a": fit, "b": twice[0]}, {"a": held, "b": twice[1]}, [1e-3, 1e-1])
    assert paths["a"] == ridge_path(fit, held, [1e-3, 1e-1])[1]
    np.testing.assert_allclose(paths["b"].r2, paths["a"].r2, atol=1e-6)


def test_explained_variance_and_cka_by_definition(halves, rng):
    (x, y), (other_x, other_y) = (tuple(a.astype(float) for a in half) for half in halves)
    fit, held = _both(halves)
    t = rng.standard_normal((6, 9)).astype(np.float32)
    predicted = y.mean(0) + (other_x - x.mean(0)) @ t.T
    right = r2_score(other_y, predicted, multioutput="variance_weighted")
    assert explained_variance(t, fit, held) == pytest.approx(right, rel=1e-5)
    a, b = other_x - other_x.mean(0), other_y - other_y.mean(0)
    gram_a, gram_b = a @ a.T, b @ b.T
    cka = np.sum(gram_a * gram_b) / np.linalg.norm(gram_a) / np.linalg.norm(gram_b)
    assert linear_cka(held) == pytest.approx(cka, rel=1e-5)
    assert 0 < cka < 0.99


@pytest.mark.parametrize("k", [1, 7])
def test_mutual_neighbours_by_definition(rng, k):
    x = rng.standard_normal((60, 5)) + 3
    y = x @ rng.standard_normal((5, 8)) + rng.standard_normal((60, 8))

    def nearest(a):
        a = a - a.mean(0)
        a = a / np.linalg.norm(a, axis=1, keepdims=True)
        cosine = a @ a.T
        np.fill_diagonal(cosine, -2)
        return [set(row[-k:]) for row in np.argsort(cosine, axis=1)]

    right = np.mean([len(p & q) / k for p, q in zip(nearest(x), nearest(y), strict=True)])
    assert mutual_neighbours(x.astype(np.float32), y.astype(np.float32), k) == pytest.approx(right)
    assert k / 59 < right < 1


def test_outlying_tokens_and_dimensions_are_left_out(rng, halves):
    x = np.ones((2, 5, 3), np.float32)
    x[0, 0], x[0, 3], x[1, 4] = 40, 12, np.nan
    mask = np.array([[True] * 5, [True, True, False, False, True]])
    kept = without_outliers(jnp.asarray(x), jnp.asarray(mask), 10.0)
    assert kept.tolist() == [[False, True, True, False, True], mask[1].tolist()]
    assert without_outliers(jnp.asarray(x), jnp.asarray(mask), 20.0)[0].tolist() == [False, True, True, True, True]
    assert without_outliers(jnp.asarray(x), jnp.asarray(mask), None).tolist() == mask.tolist()
    a, b = halves[0]
    a = a * np.where(np.arange(9) == 2, 1000, 1).astype(np.float32)
    stats = _statistics(a, b)
    drop = outlying_features(stats.atlas.raw, stats.weight, 10.0)
    assert np.flatnonzero(drop).tolist() == [2]
    less = _statistics(np.where(drop, np.float32(0), a), b)
    for got, right in zip(without_features(stats, np.zeros(6, bool), drop)[:4], less[:4], strict=True):
        for one, other in zip(*map(_leaves, (got, right)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def _bridge(matrix, mean_target, mean_source, site="resid_post.2", source="resid_post.1", **known):
    means = jnp.asarray(mean_target, jnp.float32), jnp.asarray(mean_source, jnp.float32)
    metadata = {"source_site": source, "source": {"path": "a"}, "target": {"path": "b"}}
    return Bridge(Translation(jnp.asarray(matrix, jnp.float32), *means, "ridge", Site.parse(site), {}, metadata))


def test_there_and_back_and_one_after_the_other(rng):
    wide, narrow = rng.standard_normal((7, 4)), rng.standard_normal((4, 7))
    out = _bridge(wide, rng.standard_normal(7), rng.standard_normal(4))
    x = rng.standard_normal((5, 4)).astype(np.float32)
    t = out.translation
    right = np.asarray(t.mean_subject, float) + (x - np.asarray(t.mean_atlas, float)) @ wide.T
    np.testing.assert_allclose(out(x), right, atol=1e-5)
    np.testing.assert_allclose(out.direction(x), x @ wide.T, atol=1e-5)
    back = out.inverse()
    np.testing.assert_allclose(back(out(x)), x, atol=1e-4)
    assert (str(back.source), str(back.target)) == ("resid_post.2", "resid_post.1")
    assert {k: back.translation.metadata[k]["path"] for k in ("source", "target")} == {"source": "b", "target": "a"}
    home = _bridge(narrow, rng.standard_normal(4), rng.standard_normal(7), "resid_post.3", "resid_post.2")
    both = out.then(home)
    np.testing.assert_allclose(both(x), home(out(x)), atol=1e-4)
    np.testing.assert_allclose(both.direction(x), home.direction(out.direction(x)), atol=1e-4)
    assert (str(both.source), str(both.target)) == ("resid_post.1", "resid_post.3")
    with pytest.raises(AtlasError, match=r"starts at resid_post\.1 \(4 wide\), and the first ends at resid_post\.2"):
        out.then(out)
    with pytest.raises(AtlasError, match=r"takes vectors of 4 numbers, those of its source at resid_post\.1"):
        out.direction(np.ones(7))
    with pytest.raises(AtlasError, match="not an array of shape"):
        out(3.0)
    with pytest.raises(AtlasError, match="what goes over a bridge"):
        out.direction([1.0, np.nan, 0.0, 0.0])
    out.translation.metadata["target"]["sha256"], home.translation.metadata["source"]["sha256"] = "1", "2"
    with pytest.raises(AtlasError, match="the second bridge starts in another model than the first ends in"):
        out.then(home)


def test_a_bridge_is_saved_as_a_translation(tmp_path):
    bridge = _bridge([[1.0, 2.0]], [3.0], [0.5, 0.25])
    again = Bridge.from_pretrained(bridge.save_pretrained(tmp_path / "bridge"))
    assert again.translation.metadata == bridge.translation.metadata
    assert again(np.ones(2)).tolist() == bridge(np.ones(2)).tolist()
    plain = dataclasses.replace(bridge.translation, metadata={})
    with pytest.raises(AtlasError, match="this translation is from an atlas"):
        Bridge.from_pretrained(plain.save_pretrained(tmp_path / "plain"))


def test_given_activations_by_definition(halves):
    x, y = (np.concatenate(side) for side in zip(*halves, strict=True))
    fit = fit_bridge_to_activations(x, y, held_out=0.25, sites=("resid_post.3", "resid_post.5"), outlier=None)
    order = np.random.default_rng(0).permutation(len(x))
    few, many = order[:65], order[65:]
    bridge = fit.bridges["ridge"]
    oracle = Ridge(bridge.translation.certificate["shift"]).fit(x[many].astype(float), y[many].astype(float))
    np.testing.assert_allclose(bridge(x[few]), oracle.predict(x[few].astype(float)), atol=1e-3)
    assert (str(bridge.source), str(bridge.target)) == ("resid_post.3", "resid_post.5")
    for row in fit.rows:
        predicted, mean = np.asarray(fit.bridges[row.method](x[few]), float), y[many].mean(0, dtype=float)
        assert row.r2 == pytest.approx(r2_score(y[few], predicted, multioutput="variance_weighted"), abs=1e-4)
        cosine = lambda a, b: np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
        assert row.cosine == pytest.approx(cosine(predicted, y[few].astype(float)), abs=1e-5)
        assert row.centred_cosine == pytest.approx(cosine(predicted - mean, y[few] - mean), abs=1e-4)
    t = np.asarray(fit.bridges["procrustes"].translation.matrix, float)
    scale = fit.bridges["procrustes"].translation.certificate["scale"]
    np.testing.assert_allclose(t @ t.T, scale**2 * np.eye(6), atol=1e-4 * scale**2)
    a, b = (side[many].astype(float) - side[many].mean(0, dtype=float) for side in (x, y))
    error = lambda factor: np.linalg.norm(b - factor * a @ t.T)
    assert error(1) < min(error(0.99), error(1.01))


@pytest.mark.parametrize(
    ("source", "target", "ids", "said"),
    [
        ((30, 3), (29, 2), None, "the two sides have 30 and 29 rows; give the same sentences on both"),
        ((30, 3), (30, 2), (range(30), range(29)), "the two sides have 30 and 29 rows"),
        ((30, 3), (30, 2), (range(30), [*range(28), 29, 28]), "row 28 is '28' in the source and '29' in the target"),
        ((30, 3), (30, 2), (["a"] * 30, ["b"] * 30), "row 0 is 'a' in the source and 'b' in the target"),
        ((30,), (30, 2), None, r"activations are matrices \[n, d\], not arrays of shape \(30,\)"),
        (
            (30, 24),
            (30, 2),
            None,
            "from 24 dimensions needs at least 25 rows to fit on, and there are 24; give",
        ),
    ],
)
def test_sides_that_do_not_fit_are_refused(rng, as_for_users, source, target, ids, said):
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in (source, target))
    with pytest.raises(AtlasError, match=said):
        fit_bridge_to_activations(x, y, ids=ids)


@pytest.mark.parametrize(
    ("penalties", "said"), [([], "give at least one"), ([-1.0], "a penalty"), ([float("nan")], "a penalty")]
)
def test_penalties_are_checked(halves, penalties, said):
    with pytest.raises(AtlasError, match=said):
        ridge_path(*_both(halves), penalties)


def test_bridges_of_models_are_checked(as_for_users):
    model = LanguageModel.from_pretrained(SUBJECT)
    one, two = (Subject.from_model(model, sites) for sites in ("resid_post.1", ["resid_post.1", "resid_post.2"]))
    with pytest.raises(AtlasError, match="unknown level 'word' of a bridge; known are sentence, token"):
        fit_bridge(one, one, ["a"], ["b"], level="word")
    with pytest.raises(AtlasError, match=r"needs at least 129 rows to fit on, and there is 1; give more text"):
        fit_bridge(one, one, ["a"], ["b"])
    with pytest.raises(AtlasError, match=r"needs at least 129 rows to fit on, and there are 5; give more text"):
        fit_bridge(one, one, ["the font of a text"], ["b"], level="token")
    with pytest.raises(AtlasError, match=r"one site is needed here, and this subject has resid_post\.1, resid_post\.2"):
        fit_bridge(two, two, ["a"], ["b"])
    with pytest.raises(AtlasError, match=r"two representations|samples"):
        mutual_neighbours(np.ones((4, 2), np.float32), np.ones((4, 3), np.float32), k=3)
    with pytest.raises(AtlasError, match="a row a sample"):
        mutual_neighbours(np.ones((4, 2), np.float32), np.ones((5, 3), np.float32), k=1)


def test_shared_tokens_of_the_bundled_tokenizers():
    a, b = Tokenizer.load(SUBJECT), Tokenizer.load(ATLAS / "model")
    words = [
        {word.replace("Ġ", " ").replace("▁", " ") for word in t.backend.get_vocab(with_added_tokens=False)}
        for t in (a, b)
    ]
    assert shared_tokens(a, b) == len(words[0] & words[1]) / len(words[0] | words[1])
    assert 0.1 < shared_tokens(a, b) < 0.9
