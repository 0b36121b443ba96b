"""Streaming top-k of every subject feature, with a total order: larger value first, then the lower sentence id."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from atlas_jax.types_statistics import TopK


def top_update(
    top: TopK,
    a_s: Float[Array, "b d_s"],
    keep: Bool[Array, " b"],
    index: Int[Array, " b"],
    position: Int[Array, "b d_s"] | None,
) -> TopK:
    """The k largest of what ``top`` holds and the kept rows of ``a_s``."""
    order = jnp.argsort(jnp.where(keep, index, jnp.iinfo(jnp.int32).max))
    values = jnp.where(keep[:, None], a_s, -jnp.inf)[order].T
    values = jnp.where(values == 0, 0.0, values)
    best, row = lax.top_k(values, min(values.shape[1], top.values.shape[1]))
    rows = order[row]
    carried = None
    if top.position is not None:
        carried = jnp.where(best > -jnp.inf, position[rows, jnp.arange(rows.shape[0])[:, None]], -1)
    return top_merge(top, TopK(best, jnp.where(best > -jnp.inf, index[rows], -1), carried))


def top_merge(a: TopK, b: TopK) -> TopK:
    """The k largest of two, k being that of ``a``; both sorted, and so is the result."""
    later = (b.values[:, None, :] > a.values[:, :, None]) | (
        (b.values[:, None, :] == a.values[:, :, None]) & (b.index[:, None, :] < a.index[:, :, None])
    )
    rank_a = jnp.arange(a.values.shape[1])[None, :] + jnp.sum(later, axis=2)
    rank_b = jnp.arange(b.values.shape[1])[None, :] + jnp.sum(~later, axis=1)
    rank = jnp.concatenate([rank_a, rank_b], axis=1)

    def place(x: Array | None, y: Array | None) -> Array | None:
        return None if x is None else _scatter_rows(x, rank, jnp.concatenate([x, y], axis=1))

    return TopK(*map(place, a, b))


@jax.vmap
def _scatter_rows(x: Shaped[Array, " k"], rank: Int[Array, " m"], both: Shaped[Array, " m"]) -> Shaped[Array, " k"]:
    return x.at[rank].set(both, mode="drop")
