"""Unpooled activations of one site, batch by batch: what an SAE is trained and checked on."""

from collections.abc import Iterator
from functools import partial

import jax
from jaxtyping import Array, Bool, Float

from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline._stream import Pass, Progress
from atlas_jax.sae import Quality, finish_quality, init_quality, update_quality
from atlas_jax.types import Site, Tokens


def token_activations(
    stream: Pass, site: Site, progress: Progress | None = None
) -> Iterator[tuple[Float[Array, "b t d"], Bool[Array, "b t"]]]:
    """Activations of every token of a pass over one space, with the mask of those that count."""
    (space,) = stream.spaces
    for (tokens,) in stream.batches(progress):
        yield _activations(space.model, tokens, site), tokens.mask


@partial(jax.jit, static_argnames="site")
def _activations(model: LanguageModel, tokens: Tokens, site: Site) -> Float[Array, "b t d"]:
    return forward(model.decoder, tokens, capture=(site,), logits=False).acts[site]


def sae_quality(stream: Pass, progress: Progress | None = None) -> Quality:
    """FVU, L0 and dead share of an atlas's SAE on the tokens of a pass over the atlas."""
    (atlas,) = stream.spaces
    state = init_quality(atlas.sae)
    for x, mask in token_activations(stream, atlas.site, progress):
        state = update_quality(state, atlas.sae, x, mask)
    return finish_quality(state)
