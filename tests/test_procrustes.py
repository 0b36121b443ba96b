"""The polar factor on the host and spread over devices, against float64 SVDs; certificates against planted faults."""

import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers.float64 import distance, polar64
from jax.sharding import NamedSharding, PartitionSpec as P

from atlas_jax import translators
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import Statistics, update
from atlas_jax.translators import certify_rows, polar, polar_express
from atlas_jax.translators._certificate import Factor, certify
from atlas_jax.translators._polar import ROUTES

LAYOUTS = [((4, 2), P("data", "model")), ((8, 1), P("data", None)), ((2, 4), P(None, "model"))]
KINDS = {"1e4": 1e-5, "1e6": 1e-4, "pooled": 1e-4}


def planted(rng, d_s, d_c, kind):
    """A matrix of known singular values; "pooled" has one 300 times the rest, as the mean of max-pooled rows has."""
    r = min(d_s, d_c)
    s = np.geomspace(1, 1 / float(kind), r) if kind != "pooled" else np.append(1, np.geomspace(1 / 300, 1e-6, r - 1))
    u, v = (np.linalg.qr(rng.normal(size=(d, r)))[0] for d in (d_s, d_c))
    return ((u * s) @ v.T).astype(np.float32)


def with_dead(rng, m):
    """2% of the rows and 20% of the columns are zero."""
    m = m.copy()
    m[rng.permutation(m.shape[0])[: round(m.shape[0] / 50)]] = 0
    m[:, rng.permutation(m.shape[1])[: m.shape[1] // 5]] = 0
    return m


def spread(m, shape=(4, 2), spec=LAYOUTS[0][1]):
    return jax.device_put(jnp.asarray(m), NamedSharding(make_mesh(*shape), spec))


SOLVERS = [polar, lambda m: polar_express(jnp.asarray(m)), lambda m: polar_express(spread(m))]
each_solver = pytest.mark.parametrize("solve", SOLVERS, ids=["host", "one-device", "eight-devices"])


@each_solver
@pytest.mark.parametrize("shape", [(96, 128), (128, 96)])
@pytest.mark.parametrize("kind", KINDS)
def test_ill_conditioned(rng, solve, shape, kind):
    m = planted(rng, *shape, kind)
    t, certificate = solve(m)
    assert distance(t, polar64(m)) < KINDS[kind] / 10
    assert (certificate["within_tolerance"], certificate["rank"], certificate["precision"]) == (
        True,
        min(shape),
        "float64",
    )
    assert certificate["solver"] in ("zolotarev", "polar_express")


@each_solver
def test_dead_rows_and_columns(rng, solve):
    m = with_dead(rng, planted(rng, 96, 128, "1e4"))
    t, certificate = solve(m)
    t = np.asarray(t)
    assert not t[~m.any(axis=1)].any()
    assert not t[:, ~m.any(axis=0)].any()
    assert distance(t, polar64(m)) < 1e-6
    assert (certificate["within_tolerance"], certificate["rank"]) == (True, 94)


@each_solver
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rank_deficient_at_any_scale(rng, solve, scale):
    m = (scale * rng.normal(size=(96, 9)) @ rng.normal(size=(9, 128))).astype(np.float32)
    t, certificate = solve(m)
    assert (certificate["rank"], certificate["within_tolerance"]) == (9, True)
    assert distance(t, polar64(m)) < 1e-6


@each_solver
def test_singular_values_across_the_cut(rng, solve):
    """A spectrum that runs on below the cut: the result is still a partial isometry of the rank that is told."""
    u, s, vt = np.linalg.svd(planted(rng, 96, 128, "1e6"), full_matrices=False)
    s[-40:] = np.geomspace(2e-8, 1e-10, 40)
    m = ((u * s) @ vt).astype(np.float32)
    t, certificate = solve(m)
    assert (certificate["rank"], certificate["within_tolerance"]) == (56, True)
    assert distance(t, polar64(m)) < 1e-5


@each_solver
def test_the_zero_matrix(solve):
    t, certificate = solve(np.zeros((96, 128), np.float32))
    assert not np.asarray(t).any()
    assert (certificate["rank"], certificate["within_tolerance"]) == (0, True)


def test_a_matrix_that_is_not_finite_is_not_accepted(rng):
    certificate = polar_express(spread(np.full((96, 128), np.nan, np.float32)))[1]
    assert (certificate["rank"], certificate["error"], certificate["within_tolerance"]) == (None, None, False)


def test_float32_svd_would_fail(rng):
    """The twin that must fail: what most would call misses the bound that these roads keep."""
    m = planted(rng, 152, 208, "1e6")
    u, _, vt = scipy.linalg.svd(m, full_matrices=False)
    assert distance(u @ vt, polar64(m)) > 1e-4


def faults(rng, m):
    """Wrong factors of m, each as a careless solver would make it."""
    u, s, vt = np.linalg.svd(m.astype(np.float64), full_matrices=False)
    turn = lambda d: scipy.linalg.expm(1e-2 / np.sqrt(d) * (lambda a: (a - a.T) / np.sqrt(2))(rng.normal(size=(d, d))))
    bottom = scipy.linalg.block_diag(np.eye(s.size - 20), turn(20))
    steps = lambda s, n: s if n == 0 else steps((3 * s - s**3) / 2, n - 1)
    return {
        "rotated rows": turn(s.size) @ u @ vt,
        "rotated columns": u @ vt @ turn(vt.shape[1]),
        "rotated where singular values are smallest": u @ bottom @ vt,
        "bfloat16 input": polar64(m.astype(jnp.bfloat16).astype(np.float64)),
        "under-converged": (u * steps(s, 14)) @ vt,
        "smallest singular value taken to be 1e-2": (u * np.minimum(1, 100 * s)) @ vt,
        "singular values below 1e-3 dropped": polar64(m, 1e-3),
        "smallest direction dropped": u[:, :-1] @ vt[:-1],
        "a sign flipped": (u * np.where(np.arange(s.size) == s.size - 1, -1, 1)) @ vt,
        "scaled": 0.999 * u @ vt,
        "negative": -u @ vt,
        "zero": 0 * u @ vt,
        "not finite": np.nan * u @ vt,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_catch_planted_faults(rng, kind):
    m = planted(rng, 96, 128, kind)
    top = np.linalg.norm(m, 2)
    on_host = lambda t: certify(m.astype(np.float64), Factor(t.astype(np.float32), top))["within_tolerance"]
    on_devices = lambda t: certify_rows(jnp.asarray(m), jnp.asarray(t, jnp.float32))["within_tolerance"]
    for accepts in (on_host, on_devices):
        assert accepts(polar64(m))
        assert [name for name, t in faults(rng, m).items() if accepts(t)] == []


def test_certificates_do_not_depend_on_the_devices(rng):
    m = planted(rng, 96, 128, "1e4")
    t = faults(rng, m)["rotated rows"].astype(np.float32)
    one, eight = certify_rows(jnp.asarray(m), jnp.asarray(t)), certify_rows(spread(m), spread(t))
    assert one.keys() == eight.keys()
    for name in ("rank", "orthogonality", "asymmetry", "gap", "error", "remainder"):
        assert one[name] == pytest.approx(eight[name], rel=1e-4)


@each_solver
def test_the_error_of_the_certificate_is_the_distance(rng, solve):
    """Not only its sign: between the true distance and a hundred times that."""
    m = planted(rng, 96, 128, "1e6")
    wrong = faults(rng, m)["rotated where singular values are smallest"].astype(np.float32)
    told = certify_rows(jnp.asarray(m), jnp.asarray(wrong))["error"]
    assert distance(wrong, polar64(m)) < told < 100 * distance(wrong, polar64(m))
    t, certificate = solve(m)
    assert distance(t, polar64(m)) < 1.5 * certificate["error"] < 150 * distance(t, polar64(m))


@pytest.mark.parametrize("route", ROUTES.values(), ids=list(ROUTES))
@pytest.mark.parametrize("kind", KINDS)
def test_every_route_of_the_host(rng, route, kind):
    """Each alone, and the certificate is the same function of its result."""
    m = planted(rng, 152, 208, kind).astype(np.float64)
    found = route(m)
    told = certify(m, found)
    assert distance(found.t, polar64(m)) < 2e-6
    assert (told["within_tolerance"], told["rank"]) == (True, 152)
    assert told["condition"] == pytest.approx(np.linalg.cond(m), rel=0.2)


def test_the_gap_is_that_of_the_dual_bound(rng):
    """Estimated within a quarter; the bound itself is above the nuclear norm."""
    m = planted(rng, 96, 128, "1e2").astype(np.float64)
    wrong, nuclear = faults(rng, m)["rotated rows"], np.linalg.norm(m, "nuc")
    w = np.tril(m @ wrong.T)
    w = w + np.tril(w, -1).T
    bound = (np.trace(w) + np.trace(np.linalg.solve(w, m @ m.T))) / 2
    told = certify(m, Factor(wrong, np.linalg.norm(m, 2)))["gap"]
    assert bound > nuclear
    assert told == pytest.approx((bound - np.vdot(m, wrong)) / bound, rel=0.25)


def test_eigenvectors_take_over_where_the_rank_is_not_full(rng):
    """Also where only one direction is missing, which the matrix functions would turn into noise."""
    m = planted(rng, 96, 128, "1e4").astype(np.float64)
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    for missing in (1, 40):
        s[-missing:] = 0
        t, certificate = polar((u * s) @ vt)
        assert (certificate["solver"], certificate["escalated_from"]) == ("gram_eigh", "zolotarev")
        assert (certificate["rank"], certificate["within_tolerance"]) == (96 - missing, True)
        assert distance(t, polar64((u * s) @ vt)) < 1e-6


def test_svd_takes_over_where_the_gram_matrix_is_not_enough(rng):
    """Where the spectrum straddles the cut, float64 squares cannot tell its sides apart."""
    m = planted(rng, 152, 208, "1e6").astype(np.float64)
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    m = (u * s ** (4 / 3)) @ vt
    t, certificate = polar(m)
    assert (certificate["solver"], certificate["escalated_from"], certificate["within_tolerance"]) == (
        "svd",
        "gram_eigh",
        True,
    )
    assert distance(t, polar64(m)) < 1e-6


def test_float32_devices_say_so(rng, monkeypatch):
    """Without float64 the certificate tells an error of the true size, and refuses condition 1e6."""
    monkeypatch.setattr("atlas_jax.statistics._read.DOUBLE", ())
    for kind, expected in (("1e2", True), ("1e6", False)):
        m = planted(rng, 96, 128, kind)
        t, certificate = polar_express(jnp.asarray(m))
        error = distance(t, polar64(m))
        assert (certificate["precision"], certificate["within_tolerance"]) == ("float32", expected)
        assert error / 3 < certificate["error"] < 10 * error


@pytest.mark.parametrize(("mesh", "spec"), LAYOUTS, ids=str)
def test_sharded_as_the_host_and_as_the_input(rng, mesh, spec):
    m = spread(with_dead(rng, planted(rng, 96, 128, "1e6")), mesh, spec)
    t, certificate = polar_express(m)
    assert t.sharding.is_equivalent_to(m.sharding, 2)
    assert distance(t, polar(np.asarray(m))[0]) < 1e-5
    assert certificate["rank"] == 94


@pytest.mark.parametrize(("layout", "shape"), [(LAYOUTS[0], (512, 640)), (LAYOUTS[1], (640, 512))], ids=str)
def test_no_device_holds_a_whole_matrix(layout, shape):
    """No buffer of the compiled programs, which are per device, is larger than one square of the shorter side."""
    from atlas_jax.translators import _polar_express as module

    m = spread(np.ones(shape, np.float32), *layout)
    with jax.enable_x64(True):
        steps = jnp.asarray(module.schedule(module.REACH), jnp.float64)
        factor = module._factor.lower(m, steps, m.sharding).compile()
        products = module._products.lower(m, m, jnp.dtype("float64")).compile()
        of = jax.eval_shape(lambda: module._products(m, m, jnp.dtype("float64")))
        parts = jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), of, products.output_shardings
        )
        evidence = module._evidence.lower(m, m, parts, parts.w).compile()
    for compiled in (factor, products, evidence):
        assert largest_buffer(compiled.as_text()) <= min(shape) ** 2
    gathered = jax.jit(lambda x: x + 1, out_shardings=NamedSharding(m.sharding.mesh, P())).lower(m).compile()
    assert largest_buffer(gathered.as_text()) > min(shape) ** 2


def largest_buffer(hlo):
    sizes = [np.prod([int(d) for d in dims.split(",")]) for dims in re.findall(r"\b[fb]f?\d+\[(\d[\d,]*)\]", hlo)]
    return max(sizes)


def statistics_on(place, a_s, a_c):
    """Statistics with their largest arrays placed by ``place``."""
    stats = update(Statistics.init(["cross", "unit_cross"], a_s.shape[1], a_c.shape[1]), a_s, a_c)
    moved = lambda cross: type(cross)(*map(place, cross))
    return stats._replace(
        cross=moved(stats.cross), compensation=(*stats.compensation[:3], moved(stats.compensation[3]))
    )


def activations(rng):
    return [np.maximum(rng.normal(size=(400, d)) + 1, 0).astype(np.float32) for d in (96, 128)]


PLACES = {"numpy": np.asarray, "one": jnp.asarray, "sharded": spread, "copied": lambda x: spread(x, spec=P())}


@pytest.mark.parametrize("options", [{}, {"centre": True}, {"normalize_rows": False}], ids=str)
def test_procrustes_goes_where_the_statistics_are(rng, options):
    a = activations(rng)
    found = {name: translators.procrustes(statistics_on(place, *a), **options) for name, place in PLACES.items()}
    solvers = {name: solution.certificate["solver"] for name, solution in found.items()}
    assert solvers == {name: "polar_express" if name == "sharded" else "zolotarev" for name in PLACES}
    assert found["sharded"].matrix.sharding.spec == P("data", "model")
    for solution in found.values():
        assert distance(solution.matrix, np.asarray(found["numpy"].matrix, np.float64)) < 1e-6


def test_the_solver_can_be_chosen(rng):
    a = activations(rng)
    solver = lambda place, solver: translators.procrustes(statistics_on(PLACES[place], *a), solver=solver).certificate
    assert solver("sharded", "host")["solver"] == "zolotarev"
    assert solver("numpy", "device")["solver"] == solver("one", "device")["solver"] == "polar_express"


def test_the_host_takes_over_from_a_device_that_is_not_accurate_enough(rng, monkeypatch):
    monkeypatch.setattr("atlas_jax.statistics._read.DOUBLE", ())
    a_s, a_c = activations(rng)
    a_s[:, 1] = a_s[:, 0] * (1 + 1e-5 * rng.random(400).astype(np.float32))
    certificate = translators.procrustes(statistics_on(jnp.asarray, a_s, a_c), solver="device").certificate
    assert (certificate["solver"], certificate["escalated_from"]) == ("gram_eigh", "polar_express")
    assert certificate["within_tolerance"]


def test_devices_without_a_named_sharding_are_refused(rng):
    m = jax.pmap(lambda x: x)(jnp.zeros((8, 16)))
    if isinstance(m.sharding, NamedSharding):
        pytest.skip("pmap names its sharding")
    with pytest.raises(AtlasError, match="needs a NamedSharding"):
        polar_express(m)


PROCESS = """
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]))
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import Statistics
from atlas_jax.translators import polar, procrustes
m = np.random.default_rng(0).normal(size=(32, 48)).astype(np.float32)
sharding = NamedSharding(make_mesh(4, 2), P("data", "model"))
place = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
stats = Statistics.init(["cross"], 32, 48)
cross = stats.cross._replace(raw=place(m)), stats.compensation[3]._replace(raw=place(0 * m))
low = *stats.compensation[:3], cross[1]
stats = jax.tree.map(np.asarray, stats)._replace(weight=np.float32(1), cross=cross[0], compensation=low)
found = procrustes(stats, normalize_rows=False)
assert not found.matrix.is_fully_addressable and found.matrix.sharding == sharding
assert found.certificate["within_tolerance"] and found.certificate["solver"] == "polar_express"
np.testing.assert_allclose(multihost_utils.process_allgather(found.matrix, tiled=True), polar(m)[0], atol=1e-5)
gathered = procrustes(stats, normalize_rows=False, solver="host").matrix
np.testing.assert_allclose(gathered, polar(m)[0], atol=1e-5)
"""


def test_two_processes():
    """Four devices each; neither process ever has the whole matrix."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", PROCESS.replace("{port}", str(port))]
    both = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
