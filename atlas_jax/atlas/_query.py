"""Concept queries from features with weights, and from vectors."""

from typing import Any

import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError


def feature_query(features: Any, weights: Any, width: int) -> Float[np.ndarray, " d_c"]:
    """Return a query of ones, or of the weights, at the given features, zero elsewhere.

    Raises:
      AtlasError: see :meth:`ConceptAtlas.query`.

    Example:
      >>> from atlas_jax.atlas._query import feature_query
      >>> feature_query([3, 1], [0.5, -1], 5).tolist()
      [0.0, -1.0, 0.0, 0.5, 0.0]
    """
    ids = np.asarray(features)
    if ids.ndim != 1 or not ids.size:
        raise AtlasError("a concept query needs a list of at least one atlas feature")
    if ids.dtype.kind not in "iu":
        raise AtlasError(f"atlas features are whole numbers such as 17, not {_first(features, int)!r}")
    if outside := ids[(ids < 0) | (ids >= width)].tolist():
        raise AtlasError(f"atlas feature {outside[0]} does not exist; this atlas has 0 to {width - 1}")
    q = np.zeros(width, np.float32)
    if weights is None:
        q[ids] = 1.0
        return q
    if np.shape(weights) != (len(ids),):
        raise AtlasError(f"{len(ids)} features need as many weights, not {weights!r}")
    values = finite_vector(weights, len(ids), "the weights")
    q[ids] = values
    if (twice := ids[q[ids] != values.astype(np.float32)]).size:
        raise AtlasError(f"atlas feature {twice[0]} is given twice, with different weights")
    return q


def finite_vector(values: Any, width: int, what: str) -> Float[np.ndarray, " w"]:
    """Return values as float64 where they are a vector of finite numbers, as long as it should be.

    Example:
      >>> from atlas_jax.atlas._query import finite_vector
      >>> finite_vector([1.0, float("nan")], 2, "a concept query")
      Traceback (most recent call last):
      ...
      atlas_jax.errors.AtlasError: a concept query should hold finite numbers only, and number 1 is nan
    """
    try:
        vector = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise AtlasError(f"{what} should be {width} numbers") from None
    if vector.shape != (width,):
        given = f"an array of shape {vector.shape}" if vector.ndim != 1 else str(len(vector))
        raise AtlasError(f"{what} should be {width} numbers, and {given} were given")
    if (wrong := np.flatnonzero(~np.isfinite(vector))).size:
        raise AtlasError(f"{what} should hold finite numbers only, and number {wrong[0]} is {vector[wrong[0]]}")
    return vector


def _first(values: Any, kind: type) -> Any:
    """The first of some values that is not of a kind."""
    return next((v for v in values if type(v) is not kind), values)
