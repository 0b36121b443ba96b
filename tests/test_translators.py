"""Translators against float64 numpy and scipy, on well-posed, ill-conditioned and rank-deficient problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.activations import N, draw, statistics_of
from helpers.float64 import distance, polar64, unit

from atlas_jax import translators
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import Statistics, layout, lens_init, lens_update, update
from atlas_jax.translators import METHODS, needs_of

SHAPES = [(12, 20), (16, 16), (20, 12)]


def oracle(method, a_s, a_c):
    """Each method by its definition, in float64, with all the rows in memory."""
    s, c = a_s.astype(np.float64), a_c.astype(np.float64)
    x, y = s - s.mean(0), c - c.mean(0)
    if method == "covariance":
        return x.T @ y / N
    if method == "correlation":
        with np.errstate(invalid="ignore"):
            return np.nan_to_num((x / x.std(0)).T @ (y / y.std(0)) / N)
    if method == "least_squares":
        return np.linalg.lstsq(c, s, rcond=1e-7)[0].T
    if method == "ridge":
        penalty = 1e-2 * (y**2).sum(0)[c.any(0)].mean()
        return np.linalg.lstsq(
            np.vstack([c, np.sqrt(penalty) * np.eye(c.shape[1])]), np.pad(s, ((0, c.shape[1]), (0, 0)))
        )[0].T
    if method == "procrustes":
        return polar64(unit(s).T @ unit(c))
    if method == "semantic_lens":
        return np.stack([c[np.argsort(-column, kind="stable")[:5]].mean(0) for column in s.T])
    if method == "whitened_lens":
        values, vectors = np.linalg.eigh(y.T @ y)
        keep = values > 1e-9 * values[-1]
        values = values + 1e-2 * np.trace(y.T @ y) / c.any(0).sum()
        lens = np.where(s.any(0)[:, None], oracle("semantic_lens", a_s, a_c) - c.mean(0), 0)
        return lens @ (vectors[:, keep] / np.sqrt(values[keep])) @ vectors[:, keep].T
    if method == "whitened":
        values, vectors = np.linalg.eigh(unit(s).T @ unit(s))
        keep = values > 1e-9 * values[-1]
        return (vectors[:, keep] / np.sqrt(values[keep])) @ vectors[:, keep].T @ unit(s).T @ unit(c)
    raise NotImplementedError(method)


def test_from_a_stream_to_every_matrix():
    """The whole road once: update in batches, second pass, solve."""
    a_s, a_c = draw(np.random.default_rng(2), 12, 20)
    methods = sorted(METHODS.keys() - {"random", "procrustes_exact"})
    stats = Statistics.init(needs_of(methods), 12, 20, top_k=5)
    for half in np.split(np.arange(N), 2):
        stats = update(stats, a_s[half], a_c[half])
    lens = lens_update(lens_init(stats.top, 20), np.arange(N, dtype=np.int32), a_c)
    stats = stats._replace(lens=lens)
    for method in methods:
        assert distance(METHODS[method].solve(stats).matrix, oracle(method, a_s, a_c)) < 1e-5, method


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def problem(request):
    a_s, a_c = draw(np.random.default_rng(1), *request.param)
    return a_s, a_c, statistics_of(a_s, a_c)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("random", "procrustes_exact")])
def test_each_method_is_its_definition(problem, method):
    a_s, a_c, stats = problem
    result = METHODS[method].solve(stats)
    assert result.matrix.dtype == jnp.float32
    assert distance(result.matrix, oracle(method, a_s, a_c)) < 1e-5


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_dead_features_are_exactly_zero(problem, method):
    matrix = np.asarray(METHODS[method].solve(problem[2]).matrix)
    assert np.isfinite(matrix).all()
    assert not matrix[:, 2].any()
    assert method == "semantic_lens" or not matrix[1].any()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_declared_needs_suffice(method):
    a_s, a_c = draw(np.random.default_rng(1), 12, 20)
    stats = statistics_of(a_s, a_c, tuple(sorted(METHODS[method].needs)))
    assert METHODS[method].solve(stats).matrix.shape == (12, 20)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_missing_needs_are_named(method):
    with pytest.raises(AtlasError, match="lack|second pass"):
        METHODS[method].solve(Statistics.init([], 3, 4))


READING = [name for name in METHODS if name != "random"]


@pytest.mark.parametrize("method", READING)
@pytest.mark.parametrize("fault", ["nothing added", "rows that are not finite", "rows of weight zero"])
def test_statistics_of_no_rows_are_refused(method, fault):
    """A matrix of zeros would be a perfect solution of nothing."""
    stats = Statistics.init(METHODS[method].needs, 3, 4)
    if fault != "nothing added":
        value, weight = (np.nan, np.ones(2)) if fault == "rows that are not finite" else (1.0, np.zeros(2))
        stats = update(stats, np.full((2, 3), value, "f"), np.ones((2, 4), "f"), weight.astype("f"))
    if METHODS[method].second_pass:
        stats = stats._replace(lens=lens_init(stats.top, 4))
    why = r"hold no rows \(2 were left out, for they were not finite\)" if fault.endswith("finite") else "hold no rows;"
    with pytest.raises(AtlasError, match="no selected samples" if METHODS[method].second_pass else why):
        METHODS[method].solve(stats)


T = translators


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: T.whitened(s, alpha=np.nan), "alpha must be a number, not nan"),
        (lambda s: T.whitened(s, beta="1"), "beta must be a number, not '1'"),
        (lambda s: T.whitened(s, ridge=-1.0), "the ridge must be a number from 0 up, not -1.0"),
        (lambda s: T.whitened(s, cut=np.inf), "cut must be a number from 0 up, not inf"),
        (lambda s: T.whitened_family(s, []), "members of one view are diagonalised together, got 0 views"),
        (lambda s: T.ridge(s, penalty=np.nan), "the penalty must be a number from 0 up, not nan"),
        (lambda s: T.ridge(s, penalty=-0.1), "the penalty must be a number from 0 up, not -0.1"),
        (lambda s: T.least_squares(s, cut=-1), "cut must be a number from 0 up, not -1"),
        (lambda s: T.procrustes(s, solver="svd"), "unknown solver 'svd'; use auto, host, device"),
        (lambda s: T.procrustes_exact(s, tolerance=np.nan), "tolerance must be a number from 0 up, not nan"),
        (lambda s: T.procrustes_exact(s, max_steps=0), "max_steps must be a whole number from 1 up, not 0"),
        (lambda s: T.random(jax.random.key(0), 3, 0), "d_c must be a whole number from 1 up, not 0"),
        (lambda s: T.random(jax.random.key(0), 2.5, 3), "d_s must be a whole number from 1 up, not 2.5"),
        (lambda s: T.polar(np.array([[1.0, np.inf]])), r"the matrix is inf at \[0, 1\]"),
        (lambda s: T.polar(np.zeros(3)), r"of a matrix, not of an array of shape \(3,\)"),
        (lambda s: needs_of("magic"), "unknown method 'magic'"),
    ],
)
def test_options_that_make_no_sense(as_for_users, call, message):
    with pytest.raises(AtlasError, match=message):
        call(statistics_of(*draw(np.random.default_rng(1), 6, 8)))


@pytest.mark.parametrize("method", ["least_squares", "procrustes", "procrustes_exact"])
def test_a_planted_rotation_is_recovered(rng, method):
    """A_s = A_c R^T exactly: every method that models the map finds R."""
    rotation = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    a_c = rng.normal(size=(N, 16)) + 1
    result = METHODS[method].solve(statistics_of((a_c @ rotation.T).astype(np.float32), a_c.astype(np.float32)))
    assert distance(result.matrix, rotation) < 1e-5


@pytest.mark.parametrize("method", ["covariance", "correlation", "semantic_lens", "whitened", "ridge"])
def test_a_planted_permutation_is_recovered(rng, method):
    """Each subject feature is one atlas feature with noise: the largest entry of its row says which."""
    order = rng.permutation(16)
    a_c = np.maximum(rng.normal(size=(N, 16)), 0)
    a_s = a_c[:, order] + 0.1 * rng.normal(size=(N, 16))
    matrix = METHODS[method].solve(statistics_of(a_s.astype(np.float32), a_c.astype(np.float32))).matrix
    assert np.argmax(matrix, axis=1).tolist() == order.tolist()


def test_least_squares_of_a_rank_deficient_gram(rng):
    a_s, a_c = draw(rng, 12, 20)
    a_c[:, 7], a_c[:, 8] = a_c[:, 5], a_c[:, 5] + a_c[:, 6]
    result = translators.least_squares(statistics_of(a_s, a_c))
    assert (result.certificate["solver"], result.certificate["rank"]) == ("eigh", 17)
    expected = np.linalg.lstsq(a_c.astype(np.float64), a_s.astype(np.float64), rcond=1e-5)[0].T
    assert distance(result.matrix, expected) < 1e-4


def test_centring_and_normalisation_options(rng):
    a_s, a_c = draw(rng, 12, 20)
    stats = statistics_of(a_s, a_c)
    s, c = a_s.astype(np.float64), a_c.astype(np.float64)
    x, y, us, uc = s - s.mean(0), c - c.mean(0), unit(s), unit(c)
    procrustes = lambda **options: translators.procrustes(stats, **options).matrix
    assert distance(procrustes(normalize_rows=False), polar64(s.T @ c)) < 1e-5
    assert distance(procrustes(centre=True), polar64((us - us.mean(0)).T @ (uc - uc.mean(0)))) < 1e-5
    assert distance(procrustes(normalize_rows=False, centre=True), polar64(x.T @ y)) < 1e-5
    assert distance(translators.least_squares(stats, centre=True).matrix, np.linalg.lstsq(y, x, rcond=1e-7)[0].T) < 1e-5


def test_whitened_family_contains_its_members(rng):
    stats = statistics_of(*draw(rng, 12, 20, dead=False))
    options = {"normalize_rows": False, "centre": True}
    family = translators.whitened_family(stats, [(0, 0), (0, 1), (1, 0), (0.5, 0.5)], **options)
    assert distance(family[0, 0].matrix, N * translators.covariance(stats).matrix) < 1e-5
    assert distance(family[0, 1].matrix, translators.least_squares(stats, centre=True).matrix) < 1e-4
    singular = np.linalg.svd(family[0.5, 0.5].matrix, compute_uv=False)
    assert (singular < 1 + 1e-5).all()
    ridged = translators.whitened(stats, alpha=1.0, ridge=1e9, **options).matrix
    covariance = np.asarray(translators.covariance(stats).matrix)
    cosine = (ridged * covariance).sum() / np.linalg.norm(ridged) / np.linalg.norm(covariance)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_random_is_seeded_and_has_unit_rows_on_average():
    one, two = (translators.random(jax.random.key(seed), 50, 4000).matrix for seed in (0, 1))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=0.06)
    assert abs(float(jnp.vdot(one, two))) < 1.0
    stats = Statistics.init([], 16, 24)
    spread = jax.tree.map(jax.device_put, stats, layout(stats, make_mesh(model=2)))
    one, two = (METHODS["random"].solve(s).matrix for s in (stats, spread))
    np.testing.assert_array_equal(one, two)
    assert two.addressable_shards[0].data.shape == (4, 12)


def test_second_pass_that_missed_samples_is_refused(rng):
    a_s, a_c = draw(rng, 12, 20)
    stats = statistics_of(a_s, a_c, ("top_k",))
    lens = stats.lens._replace(found=stats.lens.found - 1)
    with pytest.raises(AtlasError, match="missed .* selected samples"):
        translators.semantic_lens(stats._replace(lens=lens))


def test_registry():
    assert needs_of(["covariance", "least_squares"]) == {"cross", "atlas_gram"}
    assert needs_of("covariance") == {"cross"}
    with pytest.raises(AtlasError, match="unknown method 'magic'; known are covariance"):
        needs_of(["magic"])
