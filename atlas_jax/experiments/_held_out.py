"""What an SAE keeps of a model, on held-out text: variance, sparsity, and the model's own loss with it spliced in."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline import Pass
from atlas_jax.progress import Progress
from atlas_jax.sae import QualityState, SparseAutoencoder, finish_quality, init_quality, update_quality
from atlas_jax.types import Site, Tokens, Where


class HeldOut(NamedTuple):
    """An SAE on held-out text; losses are nats a token.

    Attributes:
      fvu: fraction of variance unexplained.
      l0: mean number of active features a token.
      dead: share of the features that were never active.
      loss: of the model as it is.
      loss_spliced: of the model that reads the SAE's reconstruction instead of the activation.
      loss_ablated: of the model that reads zeros instead.
      loss_recovered: ``(loss_ablated - loss_spliced) / (loss_ablated - loss)``: 1 where the reconstruction does as
        well as the activation, 0 where it does no better than zeros.
      tokens: activations that were measured.
    """

    fvu: float
    l0: float
    dead: float
    loss: float
    loss_spliced: float
    loss_ablated: float
    loss_recovered: float
    tokens: int


class Splice(NamedTuple):
    """An edit: the chosen activations become what an SAE makes of them, or zeros without one.

    Attributes:
      sae: the SAE, or None.
      chosen: the positions that change; BOS and padding never do in :func:`held_out`, for SAEs do not see them.
    """

    sae: Any
    chosen: Any

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Edit ``x`` at the chosen positions."""
        new = jnp.zeros_like(x) if self.sae is None else self.sae(x).astype(x.dtype)
        return jnp.where(self.chosen[..., None], new, x)


def held_out(
    sae: SparseAutoencoder, stream: Pass, site: Site, *, norm_limit: float = np.inf, progress: Progress | None = None
) -> HeldOut:
    """Measure an SAE on a pass over one space.

    Args:
      sae: an SAE of ``site``.
      stream: a pass over one space; its tokens other than BOS, special ones and padding are measured.
      site: where the activations are read and spliced in.
      norm_limit: activations longer than this are neither measured nor changed.
      progress: called after every batch.

    Example:
      >>> held_out(sae, Pass.of([subject], texts), Site("resid_post", 3)).loss_recovered       # doctest: +SKIP
    """
    (space,) = stream.spaces
    state, sums = init_quality(sae), np.zeros(4)
    for (tokens,) in stream.batches(stage="held out", progress=progress):
        state, batch = _measure(state, space.model, sae, tokens, site, jnp.float32(norm_limit))
        sums += np.asarray(batch, np.float64)
    clean, spliced, ablated = (float(s) for s in sums[:3] / sums[3])
    found = finish_quality(state)
    recovered = (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")
    quality = (float(found.fvu), float(found.l0), float(found.dead))
    return HeldOut(*quality, clean, spliced, ablated, recovered, int(found.count))


@partial(jax.jit, static_argnames="site")
def _measure(
    state: QualityState,
    model: LanguageModel,
    sae: SparseAutoencoder,
    tokens: Tokens,
    site: Site,
    norm_limit: Float[Array, ""],
) -> tuple[QualityState, Float[Array, "4"]]:
    clean = forward(model.decoder, tokens, capture=(site,))
    x = clean.acts[site]
    chosen = tokens.mask & within(x, norm_limit)
    edited = lambda sae: forward(model.decoder, tokens, edits={site: Splice(sae, chosen)}).logits
    losses = [_loss(logits, tokens) for logits in (clean.logits, edited(sae), edited(None))]
    counted = jnp.sum(tokens.mask[:, 1:], dtype=jnp.float32)
    return update_quality(state, sae, x, chosen), jnp.stack([*losses, counted])


def within(x: Float[Array, "b t d"], norm_limit: Float[Array, ""]) -> Bool[Array, "b t"]:
    """Which activations are not longer than a limit."""
    return jnp.linalg.norm(x.astype(jnp.float32), axis=-1) <= norm_limit


def _loss(logits: Float[Array, "b t v"], tokens: Tokens) -> Float[Array, ""]:
    """Summed cross-entropy of the tokens that count, each predicted from those before it."""
    ids: Int[Array, "b t"] = tokens.ids
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    return jnp.sum(jnp.where(tokens.mask[:, 1:], nats, 0.0))
