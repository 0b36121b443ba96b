"""The whitened family where sharded statistics are, against the host; and eigenvectors found by a ring of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P
from test_procrustes import largest_buffer
from test_regression_mesh import MESHES, on_mesh
from test_translators import distance, draw, statistics_of

from atlas_jax import translators
from atlas_jax.mesh import make_mesh
from atlas_jax.statistics import Statistics
from atlas_jax.translators import Member, Whitening, _spectrum_rows as rows
from atlas_jax.translators._eigen_rows import Eigen, eigen
from atlas_jax.translators._ring import Ring

NEEDS = tuple(prefix + need for prefix in ("", "unit_") for need in ("cross", "subject_gram", "atlas_gram"))
POWERS = [(0, 0), (0.5, 0), (1, 0), (0, 1), (0.5, 0.5)]
VIEWS = [(unit, centre) for unit in (True, False) for centre in (True, False)]
PLACED = [*((MESHES[0], *view) for view in VIEWS), *((mesh, *VIEWS[0]) for mesh in MESHES[1:])]


def pair(rng, d_s=40, d_c=56):
    """Dead features on both sides, a copy and a sum, so that both Gram matrices are rank-deficient."""
    a_s, a_c = draw(rng, d_s, d_c, rank=2 * d_c)
    a_s[:, 6], a_c[:, 7], a_c[:, 8] = a_s[:, 5], a_c[:, 5], a_c[:, 5] + a_c[:, 6]
    return a_s, a_c


@pytest.fixture(scope="module")
def stats():
    return statistics_of(*pair(np.random.default_rng(0)), NEEDS)


@pytest.mark.parametrize(("mesh", "unit", "centre"), PLACED, ids=str)
def test_sharded_as_the_host(stats, mesh, unit, centre):
    options = {"normalize_rows": unit, "centre": centre, "ridge": 0.1 if centre else 0.0}
    sharded = on_mesh(stats, mesh)
    host = translators.whitened_family(stats, POWERS, **options)
    found = translators.whitened_family(sharded, POWERS, **options)
    for powers, (matrix, certificate) in found.items():
        known = host[powers]
        assert distance(matrix, np.asarray(known.matrix, np.float64)) < 1e-6, powers
        assert matrix.sharding.is_equivalent_to(sharded.cross.raw.sharding, 2)
        assert not np.asarray(matrix)[1].any()
        assert not np.asarray(matrix)[:, 2].any()
        assert certificate["solver"] == ("jacobi" if any(powers) else "moments")
        assert certificate.get("accepted", True)
        shared = certificate.keys() & known.certificate.keys() - {"solver"}
        assert shared >= {"alpha", *["rank_subject"] * bool(powers[0]), *["dead_atlas"] * bool(powers[1])}
        for name in shared:
            assert certificate[name] == pytest.approx(known.certificate[name], rel=1e-6), name


def test_turned_rows_are_those_of_the_host(stats, rng):
    members = [Member(a, b, True, False, r) for a in (0, 0.5, 1) for b in (0, 0.5, 1) for r in (0.0, 0.1)]
    q = rng.normal(size=(5, 56)).astype(np.float32)
    scores = []
    for place in (lambda stats: stats, on_mesh):
        turned = Whitening.of(place(stats), members).turned()
        scores.append([np.asarray(turned.queries(q)) @ np.asarray(turned.rows(m)).T for m in members])
    for member, host, found in zip(members, *scores, strict=True):
        assert distance(found, host.astype(np.float64)) < 3e-4, member


def test_the_solver_can_be_chosen(stats):
    solver = lambda stats, **options: translators.whitened(stats, **options).certificate["solver"]
    plain = jax.tree.map(np.asarray, stats)
    assert [solver(x) for x in (stats, plain, on_mesh(stats))] == ["eigh", "eigh", "jacobi"]
    assert [solver(x, solver="device") for x in (stats, plain)] == ["jacobi"] * 2
    assert solver(on_mesh(stats), solver="host") == "eigh"


def test_devices_without_float64_cut_more(stats, monkeypatch):
    monkeypatch.setattr("atlas_jax.translators._solution.DOUBLE", ())
    host = translators.whitened(stats, ridge=0.1, solver="host")
    found = translators.whitened(on_mesh(stats), ridge=0.1)
    assert (found.certificate["precision"], found.certificate["accepted"]) == ("float32", True)
    assert distance(found.matrix, np.asarray(host.matrix, np.float64)) < 1e-3


def test_where_every_feature_is_dead_all_is_zero():
    found = translators.whitened(on_mesh(Statistics.init(NEEDS, 16, 24)._replace(weight=jnp.float32(1))), beta=0.5)
    assert not np.asarray(found.matrix).any()
    assert (found.certificate["rank_subject"], found.certificate["dead_atlas"]) == (0, 24)


def spectra(p):
    yield "graded", np.geomspace(1, 1e-12, p)
    yield "one far above the rest, half of them zero", np.r_[1, np.geomspace(1e-4, 1e-9, p // 2 - 1), np.zeros(p // 2)]
    yield "equal and negative", np.r_[np.ones(p // 4), -np.ones(p // 4), np.full(p // 2, 0.5)]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_eigenvectors(rng, size):
    mesh = Mesh(np.array(jax.devices()[:size]), ("rows",))
    ring, spec, p = Ring(("rows",), size), P("rows", None), 48
    with jax.enable_x64(True):
        work = lambda g: eigen(ring, g)
        out = Eigen(P("rows"), spec, P(), P())
        solve = jax.jit(jax.shard_map(work, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False))
        for name, values in spectra(p):
            q = np.linalg.qr(rng.normal(size=(p, p)))[0]
            found = solve((q * values) @ q.T)
            v = np.asarray(found.vectors)
            np.testing.assert_allclose(found.values, np.sort(values), atol=1e-13, err_msg=name)
            np.testing.assert_allclose(v @ v.T, np.eye(p), atol=1e-12, err_msg=name)
            np.testing.assert_allclose((v.T * np.asarray(found.values)) @ v, (q * values) @ q.T, atol=1e-13)


@pytest.mark.parametrize("mesh", MESHES[:1], ids=str)
def test_no_device_holds_a_whole_matrix(mesh):
    """No buffer of the compiled programs, which are per device, has half the elements of the smaller square."""
    empty = on_mesh(Statistics.init(NEEDS, 512, 640), mesh)
    cross, gram, mesh = empty.cross.raw, empty.atlas.raw.gram, make_mesh(*mesh)
    with jax.enable_x64(True):
        cross, gram = (jax.device_put(x.astype(jnp.float64), x.sharding) for x in (cross, gram))
        found = jax.eval_shape(lambda: rows._diagonalise(gram, np.zeros(640), mesh))
        assert found.vectors.shape == (640, 640)
        put = lambda x: jax.device_put(
            jnp.zeros(x.shape, x.dtype), jax.sharding.NamedSharding(mesh, P(mesh.axis_names))
        )
        vectors, alive, factors = put(found.vectors), np.ones((1, 640), bool), np.ones(640)
        programs = {
            "diagonalise": rows._diagonalise.lower(gram, np.zeros(640), mesh),
            "raise": rows._raise.lower(vectors, alive, cross.T, factors, mesh),
            "columns": rows._columns.lower(vectors, factors, 640),
        }
        largest = {name: largest_buffer(program.compile().as_text()) for name, program in programs.items()}
    assert all(size < 512**2 / 2 for size in largest.values()), largest
