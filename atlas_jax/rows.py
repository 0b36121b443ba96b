"""Arithmetic on the rows of an array, of numpy or of JAX."""

from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float

Rows = TypeVar("Rows", Float[np.ndarray, "*n d"], Float[Array, "*n d"])


def unit(x: Rows) -> Rows:
    """Scale rows to norm one, ``x / |x|``; zero rows stay zero.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.rows import unit
      >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6, 0.8], [0.0, 0.0]]
    """
    own = x.__array_namespace__()
    norm = own.linalg.vector_norm(x, axis=-1, keepdims=True)
    return x / own.where(norm > 0, norm, 1.0)
