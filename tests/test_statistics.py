"""Statistics against float64 numpy: any chunking, order, merge tree, weights, sharding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.float64 import distance, unit
from jax.sharding import NamedSharding, PartitionSpec as P

from atlas_jax.errors import AtlasError
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import (
    NEEDS,
    PassStatistics,
    Statistics,
    TopK,
    _top,
    lens_init,
    lens_update,
    merge,
    merge_pass,
    selected_samples,
    update,
    update_pass,
)
from atlas_jax.statistics._lens import _add_product, _add_rows

N, D_S, D_C = 600, 7, 11
MOMENTS = [need for need in NEEDS if need != "top_k"]


@pytest.fixture
def data(rng):
    """Correlated rows with means of a hundred deviations on one side, sparse with zero rows on the other."""
    latent = rng.normal(size=(N, 4))
    a_s = latent @ rng.normal(size=(4, D_S)) + rng.normal(size=(N, D_S)) + 100 * rng.normal(size=D_S)
    a_c = np.maximum(latent @ rng.normal(size=(4, D_C)) - 1, 0)
    a_c[::50] = 0
    return a_s.astype(np.float32), a_c.astype(np.float32)


def stream(state, a_s, a_c, size=40, weight=None, index=None, **columns):
    """Batches of one size and signature, so that the tests share compiled steps."""
    weight = np.ones(len(a_s), np.float32) if weight is None else weight
    index = np.arange(len(a_s), dtype=np.int32) if index is None else index
    columns = {"weight": weight, "index": index, **columns}
    for i in range(0, len(a_s), size):
        rows = slice(i, i + size)
        state = update(state, a_s[rows], a_c[rows], **{name: column[rows] for name, column in columns.items()})
    return state


def oracle(a_s, a_c, weight=None):
    """Centred moments in float64 by definition."""
    weight = np.ones(len(a_s)) if weight is None else weight.astype(np.float64)
    result = {}
    for view, rows in (("raw", lambda a: a), ("unit", unit)):
        s, c = rows(a_s.astype(np.float64)), rows(a_c.astype(np.float64))
        mean_s, mean_c = np.average(s, axis=0, weights=weight), np.average(c, axis=0, weights=weight)
        x, y = (s - mean_s) * weight[:, None], c - mean_c
        result[view] = {
            "mean_s": mean_s,
            "mean_c": mean_c,
            "cross": x.T @ y,
            "gram_s": x.T @ (s - mean_s),
            "gram_c": (y * weight[:, None]).T @ y,
        }
    return result


def found(stats, view):
    subject, atlas = getattr(stats.subject, view), getattr(stats.atlas, view)
    names = ("mean_s", "mean_c", "cross", "gram_s", "gram_c")
    return dict(
        zip(names, (subject.mean, atlas.mean, getattr(stats.cross, view), subject.gram, atlas.gram), strict=True)
    )


def check(stats, expected, tolerance=4e-6):  # what float32 leaves of 600 rows summed one after the other
    for view in ("raw", "unit"):
        for name, value in found(stats, view).items():
            assert distance(value, expected[view][name]) < tolerance, (view, name)
    scatter = np.asarray(stats.atlas.raw.scatter)
    np.testing.assert_allclose(scatter, np.diag(expected["raw"]["gram_c"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 40, N])
def test_any_chunking_is_the_float64_oracle(data, size):
    a_s, a_c = (a[:60] for a in data) if size == 1 else data
    stats = stream(Statistics.init(MOMENTS, D_S, D_C), a_s, a_c, size)
    assert float(stats.weight) == len(a_s)
    check(stats, oracle(a_s, a_c))


def test_a_subtracted_mean_would_fail(data):
    """The twin that must fail: E[xy] - E[x]E[y] in float32 loses what the centred update keeps."""
    a_s, a_c = data
    shifted = a_c + np.float32(100)
    expected = oracle(a_s, shifted)["raw"]["cross"]
    naive = a_s.T @ shifted - np.float32(N) * np.outer(a_s.mean(0), shifted.mean(0))
    stats = stream(Statistics.init(MOMENTS, D_S, D_C), a_s, shifted)
    assert distance(naive, expected) > 1e-4
    assert distance(stats.cross.raw, expected) < 1e-6


def test_order_and_merge_trees_agree(data, rng):
    a_s, a_c = data
    order = rng.permutation(N)
    init = lambda: Statistics.init(MOMENTS, D_S, D_C)
    parts = [stream(init(), a_s[order[i::3]], a_c[order[i::3]]) for i in range(3)]
    left = merge(merge(parts[0], parts[1]), parts[2])
    right = merge(parts[2], merge(init(), merge(parts[1], parts[0])))
    check(left, oracle(a_s, a_c))
    check(right, oracle(a_s, a_c))


def test_error_does_not_grow_with_the_number_of_batches(rng):
    a_s = (rng.normal(size=(8, 4)) + 1000).astype(np.float32)
    a_c = (a_s + rng.normal(size=(8, 4)).astype(np.float32)).astype(np.float32)
    repeats = 20000
    body = lambda _, state: update(state, a_s, a_c)
    stats = jax.jit(lambda s: jax.lax.fori_loop(0, repeats, body, s))(Statistics.init(["cross"], 4, 4))
    expected = oracle(a_s, a_c)["raw"]["cross"] * repeats
    assert distance(stats.cross.raw, expected) < 1e-6
    assert float(stats.weight) == 8 * repeats


def test_weights_and_padding(data, rng):
    a_s, a_c = (a.copy() for a in data)
    weight = rng.integers(0, 4, N).astype(np.float32) / 2
    a_s[weight == 0] = np.nan
    stats = stream(Statistics.init(MOMENTS, D_S, D_C), a_s, a_c, weight=weight)
    kept = weight > 0
    check(stats, oracle(a_s[kept], a_c[kept], weight[kept]))
    assert int(stats.nonfinite.rows) == 0


def test_a_batch_of_padding_changes_nothing(data):
    a_s, a_c = data
    stats = stream(Statistics.init(MOMENTS, D_S, D_C), a_s, a_c)
    whole = lambda stats: jax.tree.map(lambda x, low: np.float64(x) + np.float64(low), stats[:4], stats.compensation)
    before = whole(stats)
    after = stream(stats, a_s[:40], a_c[:40], weight=np.zeros(40, np.float32))
    chex.assert_trees_all_equal(before, whole(after))
    assert (int(after.seen), int(after.nonfinite.rows)) == (N + 40, 0)


def test_sites_share_the_atlas_side_and_faults_are_left_out(data, rng):
    """Two sites in two merged passes; rows that are not finite, on either side, are counted and named."""
    a_s, a_c = (a.copy() for a in data)
    other = rng.normal(size=(N, 5)).astype(np.float32)
    a_s[370, 3], a_c[500, 0] = np.inf, np.nan
    good = np.delete(np.arange(N), [370, 500])
    passes = []
    for rows in np.split(np.arange(N), 2):
        state = PassStatistics.init(["cross", "top_k"], {"x": D_S, "y": 5}, D_C, top_k=4)
        acts = {"x": a_s[rows], "y": other[rows]}
        passes.append(update_pass(state, acts, a_c[rows], index=rows.astype(np.int32) + 1000))
    state = merge_pass(*passes)
    assert (int(state.nonfinite.rows), int(state.nonfinite.first)) == (2, 1370)
    assert state.statistics("x").atlas is state.statistics("y").atlas
    for site, rows in (("x", a_s), ("y", other)):
        stats, expected = state.statistics(site), oracle(rows[good], a_c[good])["raw"]
        assert distance(stats.cross.raw, expected["cross"]) < 2e-6
        assert distance(stats.atlas.raw.mean, expected["mean_c"]) < 2e-6
        np.testing.assert_array_equal(stats.top.index, top_oracle(rows[good], good + 1000, 4)[1])


def test_half_precision_inputs_accumulate_in_float32(data):
    a_s, a_c = (jnp.asarray(a, jnp.bfloat16) for a in data)
    stats = update(Statistics.init(["cross"], D_S, D_C), a_s, a_c)
    expected = oracle(np.asarray(a_s, np.float32), np.asarray(a_c, np.float32))["raw"]["cross"]
    assert distance(stats.cross.raw, expected) < 2e-6


def test_unit_rows_survive_extreme_scales(data):
    a_s, a_c = data
    scale = np.where(np.arange(N) % 2, np.float32(1e30), np.float32(1e-30))[:, None]
    stats = update(Statistics.init(["unit_cross"], D_S, D_C), a_s * scale, a_c)
    assert distance(stats.cross.unit, oracle(a_s, a_c)["unit"]["cross"]) < 2e-6


def top_oracle(a_s, index, k):
    """Best first, ties to the lowest id, by a stable sort of rows put in id order."""
    order = np.argsort(index)
    rows = order[np.argsort(-a_s[order], axis=0, kind="stable")[:k]]
    return np.take_along_axis(a_s, rows, axis=0).T, index[rows].T, rows.T


@pytest.mark.parametrize(("batch", "k"), [(50, 9), (200, 9), (50, 1), (50, 300), (200, 700)])
def test_top_k_with_ties_in_any_order(rng, batch, k):
    """Few of many rows, of which only those of the best groups are searched; one; and more than a batch or all have."""
    a_s = np.round(rng.normal(size=(N, D_S)), 1).astype(np.float32)
    a_s[:, 0] = 0
    a_s[::2, 0] = -0.0
    index = rng.permutation(10 * N)[:N].astype(np.int32)
    peak = rng.integers(0, 99, (N, D_S)).astype(np.int32)
    a_c = np.ones((N, 1), np.float32)
    init = lambda: Statistics.init(["top_k"], D_S, 1, top_k=k, peaks=True)
    parts = [
        stream(init(), a_s[half], a_c[half], batch, index=index[half], position=peak[half])
        for half in (slice(0, 100), slice(100, N))
    ]
    top = merge(*parts).top
    values, ids, rows = top_oracle(a_s, index, k)
    found = min(k, N)
    np.testing.assert_array_equal(top.values[:, :found], values)
    np.testing.assert_array_equal(top.index[:, :found], ids)
    np.testing.assert_array_equal(top.position[:, :found], peak[rows, np.arange(D_S)[:, None]])
    assert (np.asarray(top.index[:, found:]) == -1).all()


def test_top_k_of_too_few_rows_leaves_empty_places(rng):
    stats = Statistics.init(["top_k"], 2, 1, top_k=5)
    weight = np.array([1, 0, 1], np.float32)
    stats = update(stats, np.array([[1, -1], [9, 9], [2, -2]], np.float32), np.ones((3, 1), np.float32), weight)
    assert stats.top.index.tolist() == [[2, 0, -1, -1, -1], [0, 2, -1, -1, -1]]
    assert selected_samples(stats.top).tolist() == [0, 2]


def test_second_pass_sums_the_selected_samples(data):
    a_s, a_c = data
    rows = np.argsort(-a_s, axis=0, kind="stable")[:6].T
    top = TopK(jnp.zeros(rows.shape), jnp.asarray(rows, jnp.int32), None)
    wanted = selected_samples(top)
    lens = lens_init(top, D_C)
    padded = np.pad(wanted[::-1], (2, -(len(wanted) + 2) % 8), constant_values=-1).astype(np.int32)
    for ids in padded.reshape(-1, 8):
        lens = lens_update(lens, ids, np.where(ids[:, None] < 0, np.float32(np.nan), a_c[ids]))
    np.testing.assert_allclose(lens.total, a_c[rows].sum(axis=1), rtol=1e-5, atol=1e-5)
    assert lens.found.tolist() == [6] * D_S


@pytest.mark.parametrize("add", [_add_rows, _add_product])  # of CPUs, of accelerators
def test_selected_rows_are_added_and_no_others(add, rng):
    total, a_c = rng.normal(size=(D_S, D_C)).astype(np.float32), rng.normal(size=(6, D_C)).astype(np.float32)
    row = np.stack([rng.permutation(5)[:3] for _ in range(D_S)])
    hit = rng.random(row.shape) < 0.5
    row[~hit] = 2  # what a sentence of another batch is looked up as
    expected = total + np.stack([a_c[r[h]].sum(axis=0) for r, h in zip(row, hit, strict=True)])
    a_c[5] = np.nan
    found = jax.jit(add)(*map(jnp.asarray, (total, hit, row, a_c)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sharded_rows_and_state_give_the_same_values(data, rng):
    a_s, a_c = rng.normal(size=(N, 16)).astype(np.float32), data[1]
    mesh = make_mesh()
    rows, features = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(("data", "model"), None))
    stats = Statistics.init(["cross", "atlas_gram", "top_k"], 16, D_C, top_k=3)
    place = lambda x: jax.device_put(x, features if x.ndim == 2 and x.shape[0] == 16 else NamedSharding(mesh, P()))
    stats = jax.tree.map(place, stats)
    for i in range(0, N, 200):
        chunk = slice(i, i + 200)
        stats = update(stats, jax.device_put(a_s[chunk], rows), jax.device_put(a_c[chunk], rows))
    expected = oracle(a_s, a_c)["raw"]
    assert len(stats.cross.raw.sharding.device_set) == 8
    assert distance(stats.cross.raw, expected["cross"]) < 2e-6
    assert distance(stats.atlas.raw.gram, expected["gram_c"]) < 2e-6
    assert distance(stats.subject.raw.mean, expected["mean_s"]) < 2e-6
    np.testing.assert_array_equal(stats.top.index, top_oracle(a_s, np.arange(N), 3)[1])


def test_one_trace_for_any_values(data):
    a_s, a_c = data
    traces = []

    @jax.jit
    def step(state, x, y, w):
        traces.append(None)
        return update(state, x, y, w)

    state = Statistics.init(["unit_cross", "top_k"], D_S, D_C)
    types = jax.tree.map(jax.typeof, state)
    for i in range(4):
        state = step(state, a_s[i : i + 50], a_c[i : i + 50], np.full(50, i, np.float32))
    assert len(traces) == 1
    assert jax.tree.map(jax.typeof, state) == types
    assert jax.tree.map(jax.typeof, merge(state, state)) == types


def test_state_is_donated(data):
    state = Statistics.init(["cross"], D_S, D_C)
    cross = state.cross.raw
    update(state, *data)
    assert cross.is_deleted()


def test_unknown_needs_and_sites_are_named():
    with pytest.raises(AtlasError, match="unknown statistics kurtosis"):
        Statistics.init(["kurtosis"], 1, 1)
    with pytest.raises(AtlasError, match="no statistics for site 'b'"):
        PassStatistics.init(["cross"], {"a": 1}, 1).statistics("b")


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


PEAKS = (["top_k"], {"a": 3, "b": 4}, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": zeros(2, 3)}, zeros(2, 5)), "no activations for site b"),
        (
            ({"a": zeros(2, 3), "b": zeros(2, 3)}, zeros(2, 5)),
            r"site 'b' needs an array of shape \(2, 4\), got \(2, 3\)",
        ),
        (
            ({"a": zeros(2, 3), "b": zeros(2, 4)}, zeros(2, 6)),
            r"the atlas needs an array of shape \(2, 5\), got \(2, 6\)",
        ),
        (({"a": zeros(2, 3), "b": zeros(2, 4)}, zeros(2, 5)), "needs the positions of every site"),
        (([zeros(2, 3), zeros(2, 4)], zeros(2, 5)), "a mapping by site, not a list"),
        (({"a": zeros(0, 3), "b": zeros(0, 4)}, zeros(0, 5)), "there are no rows of activations"),
        (
            ({"a": zeros(2, 3), "b": zeros(1, 4)}, zeros(2, 5)),
            r"site 'b' needs an array of shape \(2, 4\), got \(1, 4\)",
        ),
        (({"a": zeros(2, 3), "b": [[0.0] * 4] * 2}, zeros(2, 5)), "site 'b' must be an array, not a list; convert"),
        (
            ({"a": zeros(2, 3), "b": zeros(2, 4, dtype=complex)}, zeros(2, 5)),
            "site 'b' must be an array of real numbers",
        ),
        (
            ({"a": zeros(2, 3), "b": zeros(2, 4)}, zeros(2, 5, dtype=object)),
            "the atlas must be an array of real numbers",
        ),
        (({"a": zeros(2, 3), "b": zeros(2, 4)}, "atlas"), "the atlas must be an array, not a str"),
        (
            ({"a": zeros(2, 3), "b": zeros(2, 4)}, zeros(2, 5), None, None, {"a": zeros(2, 3), "b": zeros(2, 3)}),
            r"positions of site 'b' needs an array of shape \(2, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_traced(as_for_users, arguments, message):
    with pytest.raises(AtlasError, match=message):
        update_pass(PassStatistics.init(*PEAKS, peaks=True), *arguments)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, np.nan], r"the weight is nan at \[1\]; give finite numbers that are not negative, 0 for padding"),
        ([np.inf, 1.0], r"the weight is inf at \[0\]"),
        ([1.0, -2.0], r"the weight is -2.0 at \[1\]"),
        ([1.0], r"weight needs an array of shape \(2,\), got \(1,\)"),
        ([[1.0, 1.0]], r"weight needs an array of shape \(2,\)"),
    ],
)
def test_weights_that_weigh_nothing_sensible(as_for_users, weight, message):
    stats, rows = Statistics.init(["cross"], 3, 3), np.eye(2, 3, dtype=np.float32)
    for array in (np.array(weight, np.float32), jnp.array(weight)):
        with pytest.raises(AtlasError, match=message):
            update(stats, rows, rows, array)
    if np.shape(weight) == (2,):
        inside = jax.jit(update)(stats, rows, rows, np.array(weight, np.float32))
        bad = int(np.flatnonzero(~(np.isfinite(weight) & (np.array(weight) > 0)))[0])
        assert (int(inside.nonfinite.rows), int(inside.nonfinite.first), float(inside.weight)) == (1, bad, 1.0)
        assert np.isfinite(inside.cross.raw).all()


def test_merging_and_making_statistics_that_do_not_fit(as_for_users):
    one = Statistics.init(["cross"], 3, 4)
    for other in (Statistics.init(["cross"], 4, 4), Statistics.init([], 3, 4), Statistics.init(["unit_cross"], 3, 4)):
        with pytest.raises(AtlasError, match="only statistics of the same needs, sites and widths can be merged"):
            merge(one, other)
    with pytest.raises(AtlasError, match="only statistics of the same"):
        merge(Statistics.init(["top_k"], 3, 4), Statistics.init([], 3, 4))
    for width in (0, -1, 2.5, "3", True):
        with pytest.raises(AtlasError, match="the width of a site must be a whole number from 1 up"):
            Statistics.init([], width, 4)
    with pytest.raises(AtlasError, match="top_k must be a whole number from 1 up, not 0"):
        Statistics.init(["top_k"], 3, 4, top_k=0)
    lens = lens_init(TopK(jnp.ones((1, 2)), jnp.array([[7, 3]]), None), 2)
    for index, a_c in (([3], zeros(1, 3)), ([3, 7], zeros(1, 2)), (np.zeros(0, np.int32), zeros(0, 2)), (3, zeros(2))):
        with pytest.raises(AtlasError, match=r"do not fit; give \[b\] and \[b, 2\]"):
            lens_update(lens, index, a_c)


@pytest.mark.parametrize("pairs", [0, 10**9])  # by bisection, by comparing all pairs
@pytest.mark.parametrize(("kept", "new"), [(7, 3), (50, 50), (300, 20), (1, 40)])
def test_merging_keeps_the_largest_of_both_and_settles_ties_by_sentence(pairs, kept, new, rng, monkeypatch):
    monkeypatch.setattr(_top, "PAIRS", pairs)

    def sorted_top(k, ids):
        values = rng.integers(0, 5, (4, k)).astype(np.float32)
        values[:, k // 2 :] = np.where(rng.random((4, k - k // 2)) < 0.2, -np.inf, values[:, k // 2 :])
        index = np.stack([rng.permutation(ids)[:k] for _ in range(4)]).astype(np.int32)
        order = np.lexsort((index, -values))
        return TopK(*(np.take_along_axis(x, order, axis=1) for x in (values, index, 7 * index)))

    a, b = sorted_top(kept, np.arange(0, 2 * kept, 2)), sorted_top(new, np.arange(1, 2 * new, 2))
    merged = _top.top_merge(*jax.tree.map(jnp.asarray, (a, b)))
    both = TopK(*(np.concatenate(pair, axis=1) for pair in zip(a, b, strict=True)))
    order = np.lexsort((both.index, -both.values))[:, :kept]
    for found, expected in zip(merged, both, strict=True):
        np.testing.assert_array_equal(found, np.take_along_axis(expected, order, axis=1))
