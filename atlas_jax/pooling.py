"""Pooling of activations at every position to one value a feature and sentence."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Pooled(NamedTuple):
    """Pooled activations.

    Attributes:
      values: one value a feature; 0 in rows without a single position that counts.
      argmax_position: the position the value was read at (for ``mean``: of the largest value), -1 in such rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import Pooled
      >>> pooled = Pooled(jnp.array([[2.0]]), jnp.array([[1]]))
      >>> pooled.argmax_position.tolist()
      [[1]]
    """

    values: Float[Array, "b d"]
    argmax_position: Int[Array, "b d"]


Pooling = Callable[[Float[Array, "b t d"], Bool[Array, "b t"]], Pooled]


def pool_max(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Pooled:
    """The largest value over the positions that count, as in section 4.1 of the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import pool_max
      >>> x = jnp.array([[[9.0], [1.0], [2.0]]])
      >>> pool_max(x, jnp.array([[False, True, True]]))
      Pooled(values=Array([[2.]], dtype=float32), argmax_position=Array([[2]], dtype=int32))
    """
    highest = jnp.max(jnp.where(mask[:, :, None], x, -jnp.inf), axis=1)  # no gather where the peak is not asked for
    return Pooled(jnp.where(jnp.any(mask, axis=1)[:, None], highest, 0.0), _at_peak(x, x, mask).argmax_position)


def pool_absmax(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Pooled:
    """The value of largest magnitude, with its sign.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import pool_absmax
      >>> x = jnp.array([[[1.0], [-3.0], [2.0]]])
      >>> pool_absmax(x, jnp.ones((1, 3), bool)).values.tolist()
      [[-3.0]]
    """
    return _at_peak(x, jnp.abs(x), mask)


def pool_mean(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Pooled:
    """The mean over the positions that count.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import pool_mean
      >>> x = jnp.array([[[9.0], [1.0], [2.0]]])
      >>> pool_mean(x, jnp.array([[False, True, True]])).values.tolist()
      [[1.5]]
    """
    count = jnp.maximum(jnp.sum(mask, axis=1, dtype=x.dtype)[:, None], 1)
    mean = jnp.sum(jnp.where(mask[:, :, None], x, 0), axis=1) / count
    return Pooled(mean, _at_peak(x, x, mask).argmax_position)


def pool_last(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Pooled:
    """The value at the last position that counts.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import pool_last
      >>> x = jnp.array([[[1.0], [5.0], [9.0]]])
      >>> pool_last(x, jnp.array([[True, True, False]])).values.tolist()
      [[5.0]]
    """
    place = jnp.arange(mask.shape[1])[None, :]
    return _at_peak(x, jnp.broadcast_to(place[:, :, None], x.shape).astype(jnp.float32), mask)


POOLINGS: dict[str, Pooling] = {"max": pool_max, "absmax": pool_absmax, "mean": pool_mean, "last": pool_last}


def _at_peak(x: Float[Array, "b t d"], height: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Pooled:
    height = jnp.where(mask[:, :, None], height, -jnp.inf)
    top = jnp.max(height, axis=1)
    t = x.shape[1]
    place = jnp.arange(t, dtype=jnp.int32)[None, :, None]
    peak = jnp.min(jnp.where(height == top[:, None, :], place, t), axis=1)
    peak = jnp.minimum(peak, t - 1)
    any_counts = jnp.any(mask, axis=1)[:, None]
    values = jnp.take_along_axis(x, peak[:, None, :], axis=1)[:, 0]
    return Pooled(jnp.where(any_counts, values, 0.0), jnp.where(any_counts, peak, -1))


def norm_sum(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, " b"]:
    """The L2 norms of the activations at the positions that count, added up in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import norm_sum
      >>> norm_sum(jnp.array([[[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]]), jnp.array([[True, True, False]])).tolist()
      [7.0]
    """
    return jnp.sum(jnp.where(mask, jnp.linalg.norm(x.astype(jnp.float32), axis=-1), 0.0), axis=1)


def without_outliers(x: Float[Array, "b t d"], mask: Bool[Array, "b t"], factor: float | None) -> Bool[Array, "b t"]:
    """The positions that count but those whose norm exceeds ``factor`` times the median norm of their sentence's.

    Attention sinks (the first tokens, separators) have norms a hundred times those of others, and would outweigh
    everything a mean or a regression says about them. None keeps all.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import without_outliers
      >>> x = jnp.array([[[900.0], [1.0], [2.0], [3.0]]])
      >>> without_outliers(x, jnp.ones((1, 4), bool), 10.0).tolist()
      [[False, True, True, True]]
    """
    if factor is None:
        return mask
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
    median = jnp.nanmedian(jnp.where(mask, norm, jnp.nan), axis=1, keepdims=True)
    return mask & ~(norm > factor * median)


def without_place(pooled: Pooled) -> Pooled:
    """Pooled features of which it is not known where they were read.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import Pooled, without_place
      >>> without_place(Pooled(jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int32))).argmax_position.tolist()
      [[-1]]
    """
    return pooled._replace(argmax_position=jnp.full_like(pooled.argmax_position, -1))


def propagate_nonfinite(pooled: Pooled, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Pooled:
    """Pooled features, nan in the rows where the model's activations are not finite at a position that counts.

    Features do not show it: an SAE turns nan into features that are 0, and XLA's maximum on CPUs passes over some.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pooling import Pooled, propagate_nonfinite
      >>> x = jnp.array([[[1.0], [jnp.nan]]])
      >>> pooled, mask = Pooled(jnp.zeros((1, 2)), jnp.zeros((1, 2), jnp.int32)), jnp.array([[True, True]])
      >>> propagate_nonfinite(pooled, x, mask).values.tolist()
      [[nan, nan]]
      >>> propagate_nonfinite(pooled, x, mask & jnp.array([True, False])).values.tolist()
      [[0.0, 0.0]]
    """
    broken = jnp.any(mask & ~jnp.all(jnp.isfinite(x), axis=-1), axis=1)
    return pooled._replace(values=jnp.where(broken[:, None], jnp.nan, pooled.values))
