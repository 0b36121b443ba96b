"""The compiled reading of a batch by one space, shared by every pass: a forward pass is compiled once a batch shape."""

import jax
from jaxtyping import Array, Float

from atlas_jax.pooling import Pooled
from atlas_jax.types import FeatureSpace, Site, Tokens


@jax.jit
def encode_batch(space: FeatureSpace, tokens: Tokens) -> dict[Site, Float[Array, "b _"]]:
    """Pooled activations ``[b, d]`` of a batch by site; the residual streams they come from stay inside."""
    return space.encode(tokens)


@jax.jit
def encode_peaks(space: FeatureSpace, tokens: Tokens) -> dict[Site, Pooled]:
    """The same with the token of each peak."""
    return space.pooled(tokens)
