"""A translator's result, and its entry in the registry."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from atlas_jax.sharding import device_put
from atlas_jax.statistics import Statistics

times = partial(jnp.dot, precision=lax.Precision.HIGHEST)


class Solution(NamedTuple):
    """A translation matrix and its certificate.

    Attributes:
      matrix: ``T [d_s, d_c]`` float32: each subject feature in terms of the atlas features.
      certificate: plain numbers and strings: how the matrix was computed and how good it is.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import covariance
      >>> solution = covariance(update(Statistics.init(["cross"], 1, 1), jnp.ones((2, 1)), jnp.ones((2, 1))))
      >>> solution.matrix.tolist(), solution.certificate
      ([[0.0]], {'solver': 'moments'})
    """

    matrix: Float[Array, "d_s d_c"]
    certificate: dict[str, Any]


class Method(NamedTuple):
    """A registry entry.

    Attributes:
      solve: ``Statistics -> Solution``.
      needs: the statistics it reads, for ``Statistics.init``.
      second_pass: whether ``Statistics.lens`` must be filled by a second pass over the selected sentences.

    Example:
      >>> from atlas_jax.translators import METHODS
      >>> sorted(METHODS["least_squares"].needs), METHODS["semantic_lens"].second_pass
      (['atlas_gram', 'cross'], True)
    """

    solve: Callable[[Statistics], Solution]
    needs: frozenset[str]
    second_pass: bool = False


def solution(matrix: Float[np.ndarray | Array, "d_s d_c"], mesh: Mesh | None = None, **certificate: Any) -> Solution:
    """A solution in float32; one from a single device is laid out over the mesh if there is one."""
    return Solution(laid_out(matrix, mesh), certificate)


def laid_out(x: Float[np.ndarray | Array, "n k"], mesh: Mesh | None, dtype: str = "float32") -> Float[Array, "n k"]:
    """A matrix from one device, in blocks over a mesh if there is one."""
    x = jnp.asarray(x, dtype)
    return x if mesh is None else device_put(x, mesh, "data", "model")
