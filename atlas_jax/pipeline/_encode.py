"""The compiled reading of a batch by one space, shared by every pass: a forward pass is compiled once a batch shape."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from atlas_jax.pooling import Pooled
from atlas_jax.types import FeatureSpace, NormedSpace, Site, Tokens


@jax.jit
def encode_batch(space: FeatureSpace, tokens: Tokens) -> dict[Site, Float[Array, "b _"]]:
    """Pooled activations ``[b, d]`` of a batch by site; the residual streams they come from stay inside."""
    return space.encode(tokens)


@jax.jit
def encode_norms(
    space: FeatureSpace, tokens: Tokens
) -> tuple[dict[Site, Float[Array, "b _"]], dict[Site, Float[Array, " b"]], Float[Array, " b"]]:
    """The same with the sums of the token norms by site, nan where the space does not tell them, and the tokens."""
    count = jnp.sum(tokens.mask, axis=1, dtype=jnp.float32)
    if isinstance(space, NormedSpace):
        return *space.encode_norms(tokens), count
    return space.encode(tokens), {site: jnp.full_like(count, jnp.nan) for site in space.widths}, count


@jax.jit
def encode_peaks(space: FeatureSpace, tokens: Tokens) -> dict[Site, Pooled]:
    """The same with the token of each peak."""
    return space.pooled(tokens)
