"""The minimiser of Eq. 2: against the polar factor, closed forms, other stationary points and the same on a mesh."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.activations import draw, statistics_of
from helpers.float64 import polar64, unit

from atlas_jax import translators
from atlas_jax.translators._procrustes_exact import minimise

NEEDS = ("cross", "unit_cross", "atlas_gram", "unit_atlas_gram")


def easy(rng, d_s=14, d_c=40):
    """Subject activations that are a rotation of some of the atlas', and noise: no multiplier is positive."""
    a_c = rng.normal(size=(800, d_c)) * np.geomspace(1, 1e-2, d_c) + 0.2
    q = np.linalg.qr(rng.normal(size=(d_c, d_s)))[0]
    a_s = 3 * a_c @ q + 0.05 * rng.normal(size=(800, d_s))
    a_s[:, 1], a_c[:, 2] = 0, 0
    return a_s.astype(np.float32), a_c.astype(np.float32)


def loss_of(a_s, a_c, normalize_rows):
    s, c = (unit(a.astype(np.float64)) if normalize_rows else a.astype(np.float64) for a in (a_s, a_c))
    return lambda t: np.linalg.norm(s - c @ np.asarray(t, np.float64).T) ** 2


@pytest.mark.parametrize("normalize_rows", [True, False])
def test_it_beats_the_polar_factor_and_all_around_it(rng, normalize_rows):
    a_s, a_c = draw(rng, 12, 20)
    stats, loss = statistics_of(a_s, a_c), loss_of(a_s, a_c, normalize_rows)
    polar_factor = translators.procrustes(stats, normalize_rows=normalize_rows)
    exact = translators.procrustes_exact(stats, normalize_rows=normalize_rows)
    assert (exact.certificate["converged"], exact.certificate["within_tolerance"]) == (True, True)
    assert loss(exact.matrix) < 0.95 * loss(polar_factor.matrix)
    t = np.delete(np.asarray(exact.matrix, np.float64), 1, axis=0)
    np.testing.assert_allclose(t @ t.T, np.eye(11), atol=1e-6)
    assert exact.certificate["loss_change"] == pytest.approx(loss(exact.matrix) - loss(polar_factor.matrix), rel=1e-3)
    for _ in range(20):
        direction = rng.normal(size=(12, 20)) * np.asarray(exact.matrix).any(1)[:, None] * a_c.any(0)[None, :]
        nearby = polar64(np.asarray(exact.matrix, np.float64) + 1e-2 * direction)
        assert loss(exact.matrix) <= loss(nearby) * (1 + 1e-9)


@pytest.mark.parametrize("normalize_rows", [True, False])
def test_a_global_minimum_is_told_and_no_start_finds_a_lower_one(rng, normalize_rows):
    a_s, a_c = easy(rng)
    stats, loss = statistics_of(a_s, a_c, NEEDS), loss_of(a_s, a_c, normalize_rows)
    exact = translators.procrustes_exact(stats, normalize_rows=normalize_rows)
    assert exact.certificate["gap"] <= 1e-9
    assert exact.certificate["steps"] < 15
    others = [polar64(rng.normal(size=(14, 40)) * (np.arange(14) != 1)[:, None] * a_c.any(0)) for _ in range(10)]
    assert loss(exact.matrix) < min(map(loss, others))


def test_a_gap_bounds_what_is_lost():
    """Minimise ``t . D t / 2 - t . m`` on the sphere with m in the flattest direction: e_1, and no multiplier exceeds.

    With m orthogonal to that direction the two minima are equal, one is found, and the bound says so too.
    """
    d = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    solve = lambda m: minimise(jnp.asarray([m]), d, tolerance=1e-6, max_steps=50)
    t, certificate = solve([0.1, 0.0, 0.0])
    np.testing.assert_allclose(t[0], [1, 0, 0], atol=1e-6)
    assert certificate["gap"] == 0
    t, certificate = solve([0.0, 0.1, 0.0])
    np.testing.assert_allclose(np.abs(t[0]), [0.99**0.5, 0.1, 0], atol=1e-5)
    assert certificate["gap"] < 1e-4


@pytest.mark.parametrize("shape", [(16, 16), (20, 12)])
def test_it_is_the_polar_factor_for_no_fewer_subject_features(rng, shape):
    stats = statistics_of(*draw(rng, *shape, dead=False))
    np.testing.assert_array_equal(translators.procrustes_exact(stats).matrix, translators.procrustes(stats).matrix)


def test_rows_become_independent_where_the_cross_product_has_low_rank(rng):
    """Fewer sentences than subject features, and copies: T T^T = I all the same."""
    a_s, a_c = (rng.normal(size=(10, d)).astype(np.float32) for d in (16, 40))
    a_s[:, 5] = a_s[:, 4]
    found = translators.procrustes_exact(statistics_of(a_s, a_c, NEEDS))
    t = np.asarray(found.matrix, np.float64)
    np.testing.assert_allclose(t @ t.T, np.eye(16), atol=1e-6)
    assert found.certificate["converged"]


def test_what_did_not_converge_is_not_accepted(rng):
    found = translators.procrustes_exact(statistics_of(*draw(rng, 12, 20), NEEDS), max_steps=1)
    assert (found.certificate["converged"], found.certificate["within_tolerance"]) == (False, False)
