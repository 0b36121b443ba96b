"""What a translator returns, and what it reads from the statistics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.mesh import to_host
from atlas_jax.types_statistics import Moments, Statistics


class Solution(NamedTuple):
    """A translation matrix and what is known about it.

    Attributes:
      matrix: ``T [d_s, d_c]`` float32: each subject feature in terms of the atlas features.
      certificate: plain numbers and strings that say how the matrix was found and how good it is.
    """

    matrix: Float[Array, "d_s d_c"]
    certificate: dict[str, Any]


class Method(NamedTuple):
    """A registry entry.

    Attributes:
      solve: ``Statistics -> Solution``.
      needs: the statistics it reads, for ``Statistics.init``.
      second_pass: whether ``Statistics.lens`` must be filled by a second pass over the selected sentences.
    """

    solve: Callable[[Statistics], Solution]
    needs: frozenset[str]
    second_pass: bool = False


def solution(matrix: Float[np.ndarray | Array, "d_s d_c"], **certificate: Any) -> Solution:
    """A solution in float32."""
    return Solution(jnp.asarray(matrix, jnp.float32), certificate)


def cross_of(stats: Statistics, *, unit: bool, centre: bool) -> Float[np.ndarray, "d_s d_c"]:
    """``A_s^T A_c`` in float64, of raw or unit rows, centred or not.

    Raises:
      AtlasError: if the statistics do not hold it.
    """
    view = "unit" if unit else "raw"
    centred = getattr(stats.cross, view)
    if centred is None:
        raise AtlasError(f"these statistics lack '{'unit_cross' if unit else 'cross'}'; name it in Statistics.init")
    weight, atlas, subject, cross = stats.low
    product = to_host(centred).astype(np.float64)
    product += to_host(getattr(cross, view))
    if not centre:
        mean_c = _mean(getattr(stats.atlas, view), getattr(atlas, view))
        mean_s = _mean(getattr(stats.subject, view), getattr(subject, view))
        product += np.outer((float(stats.weight) + float(weight)) * mean_s, mean_c)
    return product


def gram_of(stats: Statistics, side: str, *, unit: bool, centre: bool) -> Float[np.ndarray, "d d"]:
    """``A^T A`` of one side, ``"subject"`` or ``"atlas"``, in float64; otherwise as :func:`cross_of`."""
    view = "unit" if unit else "raw"
    weight, atlas, subject, _ = stats.low
    moments = getattr(getattr(stats, side), view)
    if moments is None or moments.gram is None:
        name = f"{'unit_' if unit else ''}{side}_gram"
        raise AtlasError(f"these statistics lack '{name}'; name it in Statistics.init")
    low = getattr(atlas if side == "atlas" else subject, view)
    product = to_host(moments.gram).astype(np.float64)
    product += to_host(low.gram)
    product = (product + product.T) / 2
    if not centre:
        mean = _mean(moments, low)
        product += np.outer((float(stats.weight) + float(weight)) * mean, mean)
    return product


def total(stats: Statistics) -> float:
    """The total weight, at least the smallest positive number so that empty statistics give zeros."""
    return max(float(stats.weight), float(np.finfo(np.float32).tiny))


def _mean(moments: Moments, low: Moments) -> Float[np.ndarray, " d"]:
    return np.asarray(moments.mean, np.float64) + np.asarray(low.mean, np.float64)
