"""Streaming top-k of every subject feature, with a total order: larger value first, then the lower sentence id."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from atlas_jax.statistics._types import TopK

PAIRS = 2**15  # up to so many pairs of activations of a feature, comparing all of them is quicker than bisection


def top_update(
    top: TopK,
    a_s: Float[Array, "b d_s"],
    keep: Bool[Array, " b"],
    index: Int[Array, " b"],
    position: Int[Array, "b d_s"] | None,
) -> TopK:
    """The k largest of what ``top`` holds and the kept rows of ``a_s``."""
    order = jnp.argsort(jnp.where(keep, index, jnp.iinfo(jnp.int32).max))
    values = jnp.where(keep[:, None], a_s, -jnp.inf)[order]
    best, row = _top_rows(jnp.where(values == 0, 0.0, values), min(values.shape[0], top.values.shape[1]))
    rows = order[row]
    carried = None
    if top.position is not None:
        carried = jnp.where(best > -jnp.inf, position[rows, jnp.arange(rows.shape[0])[:, None]], -1)
    return top_merge(top, TopK(best, jnp.where(best > -jnp.inf, index[rows], -1), carried))


def top_merge(a: TopK, b: TopK) -> TopK:
    """The k largest of two, k being that of ``a``; both sorted, and so is the result."""
    k = a.values.shape[1]
    count = _before(a, b) if k * b.values.shape[1] > PAIRS else _before_by_pairs(a, b)
    rank_b = jnp.arange(b.values.shape[1])[None, :] + count
    rank_a = (
        jnp.arange(k)[None, :] + jnp.cumsum(jax.vmap(lambda c: jnp.bincount(c, length=k + 1))(count), axis=1)[:, :k]
    )
    rank = jnp.concatenate([rank_a, rank_b], axis=1)

    def place(x: Array | None, y: Array | None) -> Array | None:
        return None if x is None else _scatter_rows(x, rank, jnp.concatenate([x, y], axis=1))

    return TopK(*map(place, a, b))


def _before_by_pairs(a: TopK, b: TopK) -> Int[Array, "d k_b"]:
    """Count those of ``a`` that stay before each of ``b``: all pairs are compared, quick where these are few."""
    return jnp.sum(~_earlier(b.values[:, None], b.index[:, None], a.values[:, :, None], a.index[:, :, None]), axis=1)


def _before(a: TopK, b: TopK) -> Int[Array, "d k_b"]:
    """Count the same by bisection, in memory that does not grow with the number of pairs."""
    k = a.values.shape[1]

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = jnp.minimum((low + high) // 2, k - 1)
        value, index = (jnp.take_along_axis(x, middle, axis=1) for x in (a.values, a.index))
        stays = ~_earlier(b.values, b.index, value, index) & (low < high)
        return jnp.where(stays, middle + 1, low), jnp.where(stays, high, jnp.where(low < high, middle, high))

    start = jnp.zeros(b.values.shape, jnp.int32)
    return lax.fori_loop(0, k.bit_length(), halve, (start, jnp.full_like(start, k)))[0]


def _earlier(
    value: Float[Array, "*s"], index: Int[Array, "*s"], other: Float[Array, "*r"], other_index: Int[Array, "*r"]
) -> Bool[Array, "..."]:
    """Return true if an activation comes before another: it is larger, or as large and of a lower sentence id."""
    return (value > other) | ((value == other) & (index < other_index))


def _top_rows(values: Float[Array, "b d"], k: int) -> tuple[Float[Array, "d k"], Int[Array, "d k"]]:
    """The k largest of every column and their rows, the earlier row first where values are equal.

    They lie in the k groups of rows whose maxima are largest, so only these are searched.
    """
    b, d = values.shape
    size = math.isqrt(b // k)
    if size < 4:
        return tuple(lax.top_k(values.T, k))
    groups = -(-b // size)
    values = lax.optimization_barrier(jnp.pad(values, ((0, groups * size - b), (0, 0)), constant_values=-jnp.inf))
    _, group = lax.top_k(jnp.max(values.reshape(groups, size, d), axis=1).T, k)
    rows = (jnp.sort(group, axis=1)[:, :, None] * size + jnp.arange(size)[None, None, :]).reshape(d, k * size)
    best, place = lax.top_k(jnp.take_along_axis(values, rows.T, axis=0).T, k)
    return best, jnp.take_along_axis(rows, place, axis=1)


@jax.vmap
def _scatter_rows(x: Shaped[Array, " k"], rank: Int[Array, " m"], both: Shaped[Array, " m"]) -> Shaped[Array, " k"]:
    return x.at[rank].set(both, mode="drop")
