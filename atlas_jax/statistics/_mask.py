"""Features left out of statistics that are there already."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from atlas_jax.statistics._types import Moments, Side, Statistics


def outlying_features(moments: Moments, weight: Float[Array, ""], factor: float | None) -> Bool[np.ndarray, " d"]:
    """Find the features whose root mean square exceeds ``factor`` times the median of all that are not zero.

    A few dimensions of a residual stream are so large that they would decide every error measured over all of them.
    None finds none.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import outlying_features
      >>> x = jnp.array([[90.0, 1.0, -1.0], [91.0, -1.0, 2.0]])
      >>> stats = update(Statistics.init(["cross"], 3, 3), x, x)
      >>> outlying_features(stats.atlas.raw, stats.weight, 10.0).tolist()
      [True, False, False]
    """
    size = np.sqrt(np.asarray(moments.scatter, np.float64) / float(weight) + np.asarray(moments.mean, np.float64) ** 2)
    if factor is None or not size.any():
        return np.zeros(size.shape, bool)
    return size > factor * np.median(size[size > 0])


def without_features(
    stats: Statistics, subject: Bool[np.ndarray, " d_s"], atlas: Bool[np.ndarray, " d_c"]
) -> Statistics:
    """Return the statistics with some features of either side zero throughout, as those of dead features are.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import without_features
      >>> x = jnp.array([[1.0, 0.0], [3.0, 2.0]])
      >>> stats = update(Statistics.init(["cross"], 2, 2), x, x)
      >>> without_features(stats, np.array([True, False]), np.array([False, False])).cross.raw.tolist()
      [[0.0, 0.0], [2.0, 2.0]]
    """
    if not (subject.any() or atlas.any()):
        return stats
    keep_s, keep_c = jnp.asarray(~subject), jnp.asarray(~atlas)
    side = lambda x, keep: Side(*(m and _kept(m, keep) for m in x))
    cross = lambda x: jax.tree.map(_zeroed(keep_s[:, None] & keep_c[None, :]), x)
    part = lambda weight, a, s, c: (weight, side(a, keep_c), side(s, keep_s), cross(c))
    return Statistics(*part(*stats[:4]), *stats[4:7], part(*stats.compensation), stats.lens)


def _kept(moments: Moments, keep: Bool[Array, " d"]) -> Moments:
    zeroed, square = _zeroed(keep), _zeroed(keep[:, None] & keep[None, :])
    return Moments(
        zeroed(moments.mean), zeroed(moments.scatter), None if moments.gram is None else square(moments.gram)
    )


def _zeroed(keep: Bool[Array, "..."]) -> Callable[[Any], Any]:
    return lambda x: jnp.where(keep, x, jnp.zeros((), x.dtype))
