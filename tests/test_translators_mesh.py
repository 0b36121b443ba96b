"""Second-moment methods of statistics on a mesh: solved on one device, laid out again, equal to those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.activations import draw, statistics_of
from helpers.float64 import distance

from atlas_jax import translators
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import Statistics, _read, layout
from atlas_jax.translators import Member, Whitening

NEEDS = tuple(prefix + need for prefix in ("", "unit_") for need in ("cross", "subject_gram", "atlas_gram"))
NEEDS += ("top_k",)
MESHES = [(4, 2), (8, 1), (1, 8)]
METHODS = {
    "least_squares": lambda s: translators.least_squares(s, centre=True),
    "ridge": translators.ridge,
    "whitened": lambda s: translators.whitened(s, alpha=0.5, beta=0.5, ridge=0.1),
    "whitened_lens": translators.whitened_lens,
    "procrustes_exact": translators.procrustes_exact,
}


def on_mesh(stats, mesh=MESHES[0]):
    return jax.tree.map(jax.device_put, stats, layout(stats, make_mesh(*mesh)))


def pair(rng, d_s=40, d_c=56):
    """Dead features on both sides, a copy and a sum, so that both Gram matrices are rank-deficient."""
    a_s, a_c = draw(rng, d_s, d_c, rank=2 * d_c)
    a_s[:, 6], a_c[:, 7], a_c[:, 8] = a_s[:, 5], a_c[:, 5], a_c[:, 5] + a_c[:, 6]
    return a_s, a_c


@pytest.fixture(scope="module")
def stats():
    return statistics_of(*pair(np.random.default_rng(0)), NEEDS)


@pytest.mark.parametrize(
    ("method", "mesh"), [*((m, MESHES[0]) for m in METHODS), *(("whitened", m) for m in MESHES[1:])], ids=str
)
def test_as_on_one_device(stats, method, mesh):
    one, sharded = METHODS[method](stats), on_mesh(stats, mesh)
    found = METHODS[method](sharded)
    assert distance(found.matrix, np.asarray(one.matrix, np.float64)) < 1e-6
    assert found.matrix.sharding.is_equivalent_to(sharded.cross.raw.sharding, 2)
    assert not np.asarray(found.matrix)[1].any()
    assert not np.asarray(found.matrix)[:, 2].any()
    assert found.certificate.keys() == one.certificate.keys()
    for name, value in one.certificate.items():
        if name not in ("normal_residual", "stationarity", "orthogonality", "products"):  # rounding
            close = value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-9)
            assert found.certificate[name] == close, name


def test_eigenbases_lie_where_the_statistics_do(stats, rng):
    members = [Member(a, b, True, False, r) for a in (0, 0.5, 1) for b in (0, 0.5, 1) for r in (0.0, 0.1)]
    q = rng.normal(size=(5, 56)).astype(np.float32)
    scores = []
    for put in (lambda stats: stats, on_mesh):
        basis = Whitening.from_statistics(put(stats), members).in_eigenbasis()
        scores.append([np.asarray(basis.queries(q)) @ np.asarray(basis.rows(m)).T for m in members])
    for member, one, found in zip(members, *scores, strict=True):
        assert distance(found, one.astype(np.float64)) < 3e-4, member


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"whitened_lens"}))  # which has no sentences then
def test_where_every_feature_is_dead_all_is_zero(method):
    found = METHODS[method](on_mesh(Statistics.init(NEEDS, 16, 24)._replace(weight=jnp.float32(1))))
    assert not np.asarray(found.matrix).any()


@pytest.mark.parametrize("method", METHODS)
def test_devices_without_float64_leave_it_to_the_host(stats, method, monkeypatch):
    one = METHODS[method](stats)
    monkeypatch.setattr(_read, "DOUBLE", ())
    np.testing.assert_array_equal(METHODS[method](stats).matrix, one.matrix)


@pytest.mark.parametrize("method", METHODS)
def test_a_gram_matrix_too_large_for_one_device_is_refused(stats, method, monkeypatch):
    monkeypatch.setattr(_read, "LARGEST", 32)
    with pytest.raises(AtlasError, match=r"of (40 subject|56 atlas) features does not go on one device"):
        METHODS[method](stats)
