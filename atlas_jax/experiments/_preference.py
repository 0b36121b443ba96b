"""What a direction does to a subject without generating: does steering make the text of a concept more likely?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from atlas_jax.metrics import auroc
from atlas_jax.models import LanguageModel, forward
from atlas_jax.steering import Steer
from atlas_jax.types import Site, Tokens

SHARES = (0.3, 1.0)  # strengths tried, in units of the site's mean token norm


def preference(
    model: LanguageModel,
    site: Site,
    directions: Float[Array, "m d_s"],
    tokens: Tokens,
    expresses: Bool[np.ndarray, " b"],
) -> Float[np.ndarray, " m"]:
    """How well steering along each direction tells the sentences of a concept from others; not in the paper.

    A stand-in for the faithfulness of Eq. 5 at the cost of forward passes: no text is generated. Every sentence is read
    with and without steering (Eq. 4 at every token, with directions of unit norm and :data:`SHARES` for strengths),
    and scored by what steering adds to its mean log-likelihood a token. The AUROC of these scores for "expresses the
    concept" is 0.5 for a direction that has nothing to do with it; the best strength counts.

    Args:
      model: the subject.
      site: where it is steered.
      directions: one a row, any norm.
      tokens: sentences, some of which express the concept.
      expresses: which of them do, both kinds present.

    Returns:
      AUROC ``[m]``, the largest over the strengths.
    """
    return np.asarray(auroc(np.asarray(_gains(model, site, directions, tokens)), expresses)).max(axis=0)


@partial(jax.jit, static_argnames="site")
def _gains(model: LanguageModel, site: Site, directions: Float[Array, "m d"], tokens: Tokens) -> Float[Array, "s m b"]:
    """What steering adds to the mean log-likelihood of each sentence, by strength and direction."""
    acts = forward(model.decoder, tokens, capture=(site,), logits=False).acts[site]
    size = jnp.mean(jnp.linalg.norm(acts.astype(jnp.float32), axis=-1), where=tokens.mask)
    length = jnp.linalg.norm(directions, axis=1, keepdims=True)
    unit = directions / jnp.where(length > 0, length, 1.0)

    def score(share: Float[Array, ""], direction: Float[Array, " d"]) -> Float[Array, " b"]:
        edit = Steer(direction, share * size)
        return _log_likelihood(forward(model.decoder, tokens, edits={site: edit}).logits, tokens)

    # Unsteered sentences go through the same loop: another program would round otherwise and break ties.
    tried = jnp.concatenate([jnp.zeros_like(unit[:1]), unit])
    along = lambda share: jax.lax.map(lambda direction: score(share, direction), tried)
    found = jax.lax.map(along, jnp.asarray(SHARES, jnp.float32))
    return found[:, 1:] - found[:, :1]


def _log_likelihood(logits: Float[Array, "b t v"], tokens: Tokens) -> Float[Array, " b"]:
    """Mean log-likelihood a token of each sentence, the first one given."""
    ahead = jnp.take_along_axis(logits[:, :-1], tokens.ids[:, 1:, None], axis=-1)[..., 0]
    found = ahead - jax.nn.logsumexp(logits[:, :-1], axis=-1)
    real = tokens.mask[:, 1:].astype(jnp.float32)
    return jnp.sum(found * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
