"""Streaming top-k of every subject feature, with a total order: larger value first, then the lower sentence id."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from atlas_jax.types_statistics import TopK

Places = Int[Array, "d m"]


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
    """The k largest of two, k being that of ``a``; both sorted, and so is the result.

    By binary search of every entry of ``b`` among those of ``a``, in memory of the size of the longer list.
    """
    k = a.values.shape[1]

    def halve(step: Int[Array, ""], bounds: tuple[Places, Places]) -> tuple[Places, Places]:
        low, high = bounds
        middle = (low + high) // 2
        value, index = (jnp.take_along_axis(x, jnp.minimum(middle, k - 1), axis=1) for x in (a.values, a.index))
        first = (middle < high) & ((value > b.values) | ((value == b.values) & (index <= b.index)))
        return jnp.where(first, middle + 1, low), jnp.where(first, high, middle)

    none = jnp.zeros(b.index.shape, jnp.int32)
    before, _ = lax.fori_loop(0, k.bit_length(), halve, (none, jnp.full_like(none, k)))
    there = _scatter_rows(
        jnp.zeros((a.index.shape[0], k), jnp.int32), before + jnp.arange(b.values.shape[1])[None, :], none + 1
    )
    of_b = jnp.cumsum(there, axis=1)
    own = jnp.arange(k)[None, :] - of_b

    def pick(x: Array | None, y: Array | None) -> Array | None:
        if x is None:
            return None
        taken = jnp.take_along_axis(y, jnp.maximum(of_b - 1, 0), axis=1)
        return jnp.where(there == 1, taken, jnp.take_along_axis(x, jnp.maximum(own, 0), axis=1))

    return TopK(*map(pick, a, b))


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
