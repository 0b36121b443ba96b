"""Least squares and ridge where sharded statistics are, against the host and float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P
from test_procrustes import largest_buffer
from test_translators import distance, draw, statistics_of

from atlas_jax import translators
from atlas_jax.mesh import make_mesh
from atlas_jax.statistics import Statistics, layout
from atlas_jax.translators import _regression_rows as rows
from atlas_jax.translators._ring import Ring

NEEDS = ("cross", "atlas_gram")
MESHES = [(4, 2), (8, 1), (1, 8)]
METHODS = {"least_squares": translators.least_squares, "ridge": translators.ridge}
each_method = pytest.mark.parametrize("method", METHODS)
centred_or_not = pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])


def on_mesh(stats, mesh=MESHES[0]):
    return jax.tree.map(jax.device_put, stats, layout(stats, make_mesh(*mesh)))


def deficient(rng, d_s=96, d_c=128):
    """A dead feature, a copy of another, and a sum of two."""
    a_s, a_c = draw(rng, d_s, d_c, rank=2 * d_c)
    a_c[:, 7], a_c[:, 8] = a_c[:, 5], a_c[:, 5] + a_c[:, 6]
    return a_s, a_c


def graded(rng, smallest):
    """Atlas activations whose centred Gram matrix has eigenvalues from 1 down to ``smallest``, each direction used."""
    u, v = (np.linalg.qr(rng.normal(size=(n, 64)))[0] for n in (800, 64))
    a_c = ((u - u.mean(0)) * np.geomspace(1, smallest**0.5, 64)) @ v.T
    return (a_c @ rng.normal(size=(64, 48)) + 1e-3 * rng.normal(size=(800, 48))), a_c


@each_method
@centred_or_not
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("shape", "dead"), [((96, 128), True), ((128, 96), True), ((64, 64), False)], ids=str)
def test_sharded_as_the_host(rng, method, centre, mesh, shape, dead):
    stats = statistics_of(*draw(rng, *shape, rank=2 * max(shape), dead=dead), NEEDS)
    host = METHODS[method](stats, centre=centre)
    sharded = on_mesh(stats, mesh)
    found = METHODS[method](sharded, centre=centre)
    assert (host.certificate["solver"], found.certificate["solver"]) == ("cholesky", "elimination")
    assert distance(found.matrix, np.asarray(host.matrix, np.float64)) < 1e-7
    assert found.matrix.sharding.is_equivalent_to(sharded.cross.raw.sharding, 2)
    assert (found.certificate["accepted"], found.certificate["precision"]) == (True, "float64")
    shared = found.certificate.keys() & host.certificate.keys() - {"solver", "floor", "normal_residual"}
    assert {"rank", "dead_columns"} <= shared
    for name in shared:
        assert found.certificate[name] == pytest.approx(host.certificate[name], rel=1e-6), name
    assert not np.asarray(found.matrix)[:, 2].any() if dead else np.asarray(found.matrix).all()


@centred_or_not
@pytest.mark.parametrize("place", [on_mesh, lambda stats: stats], ids=["eight devices", "one device"])
def test_a_rank_deficient_gram_is_said_and_solved(rng, centre, place):
    """The solution of least norm, as the host finds it from eigenvectors; with what was added told."""
    stats = statistics_of(*deficient(rng), NEEDS)
    host = translators.least_squares(stats, centre=centre)
    found = translators.least_squares(place(stats), centre=centre, solver="device")
    assert (host.certificate["solver"], found.certificate["solver"]) == ("eigh", "iterated_tikhonov")
    assert host.certificate["rank"] == found.certificate["rank"] == 125
    assert 0 < found.certificate["floor"] < found.certificate["regularised_by"]
    assert found.certificate["accepted"]
    assert distance(found.matrix, np.asarray(host.matrix, np.float64)) < 1e-6


def test_the_host_takes_over_where_the_spectrum_has_no_gap(rng):
    """Eigenvalues on both sides of the floor and close to it: what counts as zero is for the eigenvectors to say."""
    stats = statistics_of(*graded(rng, 1e-10), NEEDS)
    found = translators.least_squares(on_mesh(stats), centre=True)
    assert (found.certificate["solver"], found.certificate["escalated_from"]) == ("eigh", "iterated_tikhonov")
    host = translators.least_squares(stats, centre=True)
    np.testing.assert_array_equal(found.matrix, host.matrix)
    assert found.certificate == host.certificate | {"escalated_from": "iterated_tikhonov"}


@pytest.mark.parametrize(("smallest", "accepted"), [(1e-1, True), (1e-3, True), (1e-8, False)])
def test_devices_without_float64_say_so(rng, monkeypatch, smallest, accepted):
    monkeypatch.setattr("atlas_jax.translators._solution.DOUBLE", ())
    a_s, a_c = graded(rng, smallest)
    cross, gram = (jnp.asarray(x, jnp.float32) for x in (a_s.T @ a_c, a_c.T @ a_c))
    t, certificate = rows.regress(cross, gram, np.zeros(64), cut=1e-7)
    assert (certificate["precision"], certificate["accepted"]) == ("float32", accepted)
    exact = np.linalg.solve(np.asarray(gram, np.float64), np.asarray(cross, np.float64).T).T
    assert (distance(t, exact) < rows.LIMITS_SINGLE["change"]) == accepted


@each_method
def test_the_solver_can_be_chosen(rng, method):
    stats = statistics_of(*draw(rng, 24, 32, rank=64), NEEDS)
    solver = lambda stats, **options: METHODS[method](stats, **options).certificate["solver"]
    plain = jax.tree.map(np.asarray, stats)
    assert [solver(x) for x in (stats, plain, on_mesh(stats))] == ["cholesky", "cholesky", "elimination"]
    assert [solver(x, solver="device") for x in (stats, plain)] == ["elimination"] * 2
    assert solver(on_mesh(stats), solver="host") == "cholesky"


def test_where_every_feature_is_dead_all_is_zero():
    stats = on_mesh(Statistics.init(NEEDS, 16, 24)._replace(weight=jnp.float32(1)))
    for method in METHODS.values():
        found = method(stats)
        assert not np.asarray(found.matrix).any()
        assert (found.certificate["rank"], found.certificate["dead_columns"]) == (0, 24)


@pytest.mark.parametrize("block", [1, 4, 12])
def test_the_inverse(rng, block):
    a = rng.normal(size=(96, 96))
    mesh = make_mesh()
    spec = P(mesh.axis_names, None)
    with jax.enable_x64(True):
        work = lambda w: Ring(mesh.axis_names, mesh.size).inverse(w, block)
        inverse = jax.jit(jax.shard_map(work, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        np.testing.assert_allclose(inverse(a @ a.T), np.linalg.inv(a @ a.T), rtol=1e-6)
        assert np.isnan(inverse(a + a.T)).any()


@pytest.mark.parametrize("shape", [(512, 640), (640, 512)], ids=str)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_no_device_holds_a_whole_matrix(mesh, shape):
    """No buffer of the compiled programs, which are per device, has half the elements of the smaller square."""
    stats = on_mesh(Statistics.init(NEEDS, *shape), mesh)
    cross, gram, mesh = stats.cross.raw, stats.atlas.raw.gram, make_mesh(*mesh)
    spread = lambda k: jax.device_put(jnp.zeros((shape[1], k)), NamedSharding(mesh, P(mesh.axis_names, None)))
    with jax.enable_x64(True):
        cross, gram = (jax.device_put(x.astype(jnp.float64), x.sharding) for x in (cross, gram))
        square, right = (x.astype(jnp.float64) for x in (spread(shape[1]), spread(shape[0])))
        programs = {
            "equations": rows._equations.lower(cross, gram, np.zeros(shape[1]), (1e-7, 0.0), mesh, 40),
            "invert": rows._invert.lower(square, 0.0, mesh, 40),
            "apply": rows._apply.lower(square, square, right, 2, mesh),
            "sift": rows._sift.lower(square, right, 1.0, mesh),
            "finish": rows._finish.lower(right, square, right, mesh, shape[1], cross.sharding),
        }
        largest = {name: largest_buffer(program.compile().as_text()) for name, program in programs.items()}
    assert all(size < min(shape) ** 2 / 2 for size in largest.values()), largest
