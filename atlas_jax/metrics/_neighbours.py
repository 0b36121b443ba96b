"""Agreement of two representations on which samples are alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atlas_jax.checks import AnyArray, as_count, finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.rows import unit


def mutual_neighbours(x: Float[AnyArray, "n p"], y: Float[AnyArray, "n q"], k: int = 10) -> float:
    """Return the mean share of the k nearest neighbours of a sample in x that are among those in y (mutual k-NN).

    Near is by the cosine of the rows less their mean; a sample is no neighbour of itself. Chance is ``k / (n - 1)``.

    Args:
      x: one representation of n samples.
      y: another of the same, in the same order.
      k: neighbours.

    Raises:
      AtlasError: if the numbers of rows differ, there are not more than k + 1, or a number is not finite.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import mutual_neighbours
      >>> x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
      >>> mutual_neighbours(x, 2 * x[:, ::-1] + 1, k=5)
      1.0
    """
    x, y = (jnp.asarray(finite_numbers(a, "the representation"), jnp.float32) for a in (x, y))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise AtlasError(f"both representations have a row a sample, and these have the shapes {x.shape} and {y.shape}")
    if len(x) < as_count(k, "k") + 2:
        raise AtlasError(f"{k} neighbours need at least {k + 2} samples, and there are {len(x)}")
    a, b = _nearest(x, k), _nearest(y, k)
    return float(jnp.mean(jnp.any(a[:, :, None] == b[:, None, :], axis=2)))


def _nearest(x: Float[Array, "n d"], k: int) -> Int[Array, "n k"]:
    x = unit(x - jnp.mean(x, axis=0, keepdims=True))
    cosine = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, cosine), k)[1]
