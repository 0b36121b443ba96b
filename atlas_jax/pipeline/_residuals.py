"""Unpooled activations of some sites, batch by batch: what an SAE is trained and checked on."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline._pass import Pass
from atlas_jax.progress import Progress
from atlas_jax.sae import Quality, finish_quality, init_quality, update_quality
from atlas_jax.types import Site, Tokens


def site_activations(
    stream: Pass, sites: tuple[Site, ...], *, stage: str = "activations", progress: Progress | None = None
) -> Iterator[tuple[dict[Site, Float[Array, "b t d"]], Tokens]]:
    """Activations of every token at some sites of a pass over one space, with the tokens."""
    (space,) = stream.spaces
    for (tokens,) in stream.batches(stage=stage, progress=progress):
        yield _activations(space.model, tokens, sites), tokens


def token_activations(
    stream: Pass, site: Site, *, progress: Progress | None = None
) -> Iterator[tuple[Float[Array, "b t d"], Bool[Array, "b t"]]]:
    """Activations of every token of a pass over one space, with the mask of those that count."""
    for acts, tokens in site_activations(stream, (site,), progress=progress):
        yield acts[site], tokens.mask


@partial(jax.jit, static_argnames="sites")
def _activations(model: LanguageModel, tokens: Tokens, sites: tuple[Site, ...]) -> dict[Site, Float[Array, "b t d"]]:
    return forward(model.decoder, tokens, capture=sites, logits=False).acts


def sae_quality(stream: Pass, *, progress: Progress | None = None) -> Quality:
    """FVU, L0 and dead share of an atlas's SAE on the tokens of a pass over the atlas.

    A transcoder is held against the site its reconstruction belongs to; its FVU is nan where that is not known.
    """
    (atlas,) = stream.spaces
    config, state = atlas.sae.config, init_quality(atlas.sae)
    sites = (atlas.site,) if config.site_out is None else (atlas.site, config.site_out)
    for acts, tokens in site_activations(stream, sites, stage="SAE", progress=progress):
        x = acts[atlas.site]
        target = acts[config.site_out] if config.site_out else jnp.zeros((*x.shape[:-1], config.width_out))
        state = update_quality(state, atlas.sae, x, tokens.mask, target if config.transcoder else None)
    return finish_quality(state)
