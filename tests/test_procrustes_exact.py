"""The minimiser of Eq. 2: against the polar factor, closed forms, other stationary points and the same on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_procrustes import largest_buffer
from test_regression_mesh import MESHES, on_mesh
from test_translators import distance, draw, polar64, statistics_of, unit

from atlas_jax import translators
from atlas_jax.mesh import make_mesh
from atlas_jax.statistics import Statistics
from atlas_jax.translators import _stiefel_rows as rows

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
    assert (exact.certificate["converged"], exact.certificate["accepted"]) == (True, True)
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
    minimise = lambda m: rows.minimise(jnp.asarray([m]), d, np.zeros(3), tolerance=1e-6, max_steps=50)
    t, certificate = minimise([0.1, 0.0, 0.0])
    np.testing.assert_allclose(t[0], [1, 0, 0], atol=1e-6)
    assert certificate["gap"] == 0
    t, certificate = minimise([0.0, 0.1, 0.0])
    np.testing.assert_allclose(np.abs(t[0]), [0.99**0.5, 0.1, 0], atol=1e-5)
    assert certificate["gap"] < 1e-4


@pytest.mark.parametrize("shape", [(16, 16), (20, 12)])
def test_it_is_the_polar_factor_for_no_fewer_subject_features(rng, shape):
    stats = statistics_of(*draw(rng, *shape, dead=False))
    np.testing.assert_array_equal(translators.procrustes_exact(stats).matrix, translators.procrustes(stats).matrix)


def test_sharded_as_on_one_device(rng):
    stats = statistics_of(*easy(rng), NEEDS)
    one, sharded = translators.procrustes_exact(stats, centre=True), on_mesh(stats)
    found = translators.procrustes_exact(sharded, centre=True)
    assert found.certificate["accepted"]
    assert distance(found.matrix, np.asarray(one.matrix, np.float64)) < 1e-5
    assert found.matrix.sharding.is_equivalent_to(sharded.cross.unit.sharding, 2)
    for name in ("rank", "dead_rows", "dead_columns", "loss_change"):
        assert found.certificate[name] == pytest.approx(one.certificate[name], rel=1e-6), name


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
    assert (found.certificate["converged"], found.certificate["accepted"]) == (False, False)


def test_devices_without_float64(rng, monkeypatch):
    stats = statistics_of(*easy(rng), NEEDS)
    one = translators.procrustes_exact(stats, centre=True)
    monkeypatch.setattr("atlas_jax.translators._solution.DOUBLE", ())
    found = translators.procrustes_exact(on_mesh(stats), centre=True)
    assert (found.certificate["precision"], found.certificate["accepted"]) == ("float32", True)
    assert distance(found.matrix, np.asarray(one.matrix, np.float64)) < 2e-2
    change = lambda x: x.certificate["loss_change"]
    assert change(found) == pytest.approx(change(one), rel=1e-3)


@pytest.mark.parametrize("mesh", MESHES[:1], ids=str)
def test_no_device_holds_a_whole_matrix(mesh):
    """No buffer of the compiled programs, which are per device, has half the elements of the smaller square."""
    empty, shape = on_mesh(Statistics.init(NEEDS, 512, 640), mesh), (512, 640)
    cross, gram, mesh = empty.cross.raw, empty.atlas.raw.gram, make_mesh(*mesh)
    with jax.enable_x64(True):
        cross, gram = (jax.device_put(x.astype(jnp.float64), x.sharding) for x in (cross, gram))
        problem = rows._problem.lower(cross, gram, np.zeros(640), mesh).compile()
        of = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        known = jax.tree.map(
            of, jax.eval_shape(rows._problem, cross, gram, np.zeros(640), mesh), problem.output_shardings
        )
        start = rows._start.lower(known, shape, mesh).compile()
        t = of(known.m, known.m.sharding)
        step = rows._step.lower(known, t, 1.0, 1e-6, mesh).compile()
        finish = rows._finish.lower(known, t, mesh, shape, cross.sharding).compile()
        programs = {"problem": problem, "start": start, "step": step, "finish": finish}
        largest = {name: largest_buffer(program.as_text()) for name, program in programs.items()}
    assert all(size < 512**2 / 2 for size in largest.values()), largest
