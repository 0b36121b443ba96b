"""Translators that read second moments directly: covariance, correlation, SemanticLens, and the random baseline."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from atlas_jax.checks import as_count
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import mesh_of, sharding_for
from atlas_jax.statistics import Moments, Statistics, centred_cross
from atlas_jax.translators._solution import Solution, solution


def covariance(stats: Statistics) -> Solution:
    """Covariance of subject and atlas features, Eq. 6.

    Divided by the number of samples, which Eq. 6 is not; Eq. 3 normalises rows, so similarities are the same.

    Args:
      stats: statistics with the need ``"cross"``.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``.

    Raises:
      AtlasError: if the need is missing, or there are no rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import covariance
      >>> x = jnp.array([[1.0], [3.0]])
      >>> covariance(update(Statistics.init(["cross"], 1, 1), x, 2 * x)).matrix.tolist()
      [[2.0]]
    """
    return solution(centred_cross(stats, unit=False) / float(stats.weight), solver="moments")


def correlation(stats: Statistics) -> Solution:
    """Pearson correlation of subject and atlas features, Eq. 7.

    Divided by the number of samples, which Eq. 7 is not, so that entries lie in [-1, 1]. Features of zero variance
    have zero rows and columns.

    Args:
      stats: statistics with the need ``"cross"``.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``.

    Raises:
      AtlasError: if the need is missing, or there are no rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import correlation
      >>> x = jnp.array([[1.0], [3.0]])
      >>> correlation(update(Statistics.init(["cross"], 1, 1), x, -2 * x)).matrix.round(5).tolist()
      [[-1.0]]
    """
    scale_s, scale_c = _inverse_root(stats.subject.raw, stats), _inverse_root(stats.atlas.raw, stats)
    matrix = jnp.clip((centred_cross(stats, unit=False) * scale_s[:, None]) * scale_c[None, :], -1.0, 1.0)
    constant = {"constant_subject": int(jnp.sum(scale_s == 0)), "constant_atlas": int(jnp.sum(scale_c == 0))}
    return solution(matrix, solver="moments", **constant)


def semantic_lens(stats: Statistics) -> Solution:
    """Mean atlas activations of each subject feature's top-k samples, Eq. 9 (top-k per feature column).

    Where the corpus has fewer than k samples the mean is over those there are.

    Args:
      stats: statistics with the need ``"top_k"`` and ``lens`` filled by a second pass over
        ``selected_samples(stats.top)`` with ``lens_init`` and ``lens_update``.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``.

    Raises:
      AtlasError: if the second pass is missing or did not meet every selected sample, or there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import lens_init, lens_update
      >>> from atlas_jax.translators import semantic_lens
      >>> a_s, a_c = jnp.array([[1.0], [3.0], [2.0]]), jnp.array([[0.0], [4.0], [8.0]])
      >>> stats = update(Statistics.init(["top_k"], 1, 1, top_k=2), a_s, a_c)
      >>> lens = lens_update(lens_init(stats.top, 1), jnp.arange(3), a_c)
      >>> semantic_lens(stats._replace(lens=lens)).matrix.tolist()
      [[6.0]]
    """
    if stats.lens is None:
        raise AtlasError("semantic_lens needs a second pass: fill Statistics.lens with lens_init and lens_update")
    if not bool((stats.lens.index >= 0).any()):
        raise AtlasError("the second pass of semantic_lens has no selected samples; add rows with update before it")
    wanted = jnp.sum(stats.lens.index >= 0, axis=1, dtype=jnp.int32)
    if missing := int(jnp.sum(wanted - stats.lens.found)):
        raise AtlasError(f"the second pass of semantic_lens missed {missing} selected samples; offer each exactly once")
    count = jnp.maximum(wanted, 1).astype(jnp.float32)
    return solution(stats.lens.total / count[:, None], solver="lens", k=stats.lens.index.shape[1])


def random(key: Key[Array, ""] | UInt32[Array, "2"], d_s: int, d_c: int) -> Solution:
    """The random baseline: independent Gaussian entries of variance 1 / d_c, so rows have norm near one.

    Raises:
      AtlasError: for a width that is no whole number from 1 up.

    Example:
      >>> import jax
      >>> from atlas_jax.translators import random
      >>> random(jax.random.key(0), 2, 3).matrix.shape
      (2, 3)
    """
    shape = as_count(d_s, "d_s"), as_count(d_c, "d_c")
    matrix = jax.random.normal(key, shape, jnp.float32) / np.float32(d_c**0.5)
    return solution(matrix, solver="random")


def random_like(stats: Statistics, *, seed: int = 0) -> Solution:
    """:func:`random` of the shape of ``stats``, spread over their mesh; the registry's entry. It reads no rows.

    Example:
      >>> from atlas_jax import Statistics
      >>> from atlas_jax.translators import random_like
      >>> random_like(Statistics.init([], d_s=2, d_c=3), seed=1).matrix.shape
      (2, 3)
    """
    shape = stats.subject.raw.mean.shape[0], stats.atlas.raw.mean.shape[0]
    draw = lambda key: random(key, *shape).matrix
    to = sharding_for(shape, mesh_of(stats), "data", "model")
    return solution(jax.jit(draw, out_shardings=to)(jax.random.key(seed)), solver="random")


def _inverse_root(moments: Moments, stats: Statistics) -> Float[Array, " d"]:
    """``1 / sqrt(scatter)``, zero where the feature is constant to float32 rounding of its mean."""
    rounding = stats.weight * (4 * jnp.finfo(jnp.float32).eps * jnp.abs(moments.mean)) ** 2
    varies = moments.scatter > rounding
    return jnp.where(varies, 1.0 / jnp.sqrt(jnp.where(varies, moments.scatter, 1.0)), 0.0)
