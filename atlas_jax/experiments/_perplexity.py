"""How likely continuations are under a model, one number each."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.models import Generation, LanguageModel, run

CELLS = 2**26  # logits that are held at a time


def perplexities(model: LanguageModel, prompts: Sequence[Sequence[int]], generation: Generation) -> list[float | None]:
    """Perplexity of each continuation after its prompt, under a model without edits.

    Every row is read once; the end-of-text token that ends a continuation does not count.

    Args:
      model: the language model.
      prompts: the token ids that were continued, a row each.
      generation: the continuations.

    Returns:
      ``exp`` of the mean negative log-likelihood of a row's new tokens; None where it has none.

    Example:
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> from atlas_jax.models import generate
      >>> prompts = lm.tokenizer.encode(["Return the"])
      >>> len(perplexities(lm, prompts, generate(lm, prompts, max_new_tokens=4)))
      1
    """
    after = [new[:n].tolist() for new, n in zip(generation.ids, generation.lengths.tolist(), strict=True)]
    rows = [[*ids, *new] for ids, new in zip(prompts, after, strict=True)]
    tokens = model.tokenizer.pad(rows, max(map(len, rows)), range(len(rows)))
    place = np.arange(tokens.ids.shape[1])[None, :]
    begin, end = (np.array([len(row) for row in x])[:, None] for x in (prompts, rows))
    new = (place >= begin) & (place < end)
    height = max(1, CELLS // (tokens.ids.shape[1] * model.config.vocab_size))
    nats: list[float] = []
    for at in range(0, len(rows), height):
        part, chosen = jax.tree.map(lambda x: x[at : at + height], (tokens, jnp.asarray(new)))  # noqa: B023 - used here
        nats += _mean_nats(run(model, part).logits, part.ids, chosen).tolist()
    return [math.exp(x) if new else None for x, new in zip(nats, after, strict=True)]


@jax.jit
def _mean_nats(logits: Float[Array, "b t v"], ids: Int[Array, "b t"], chosen: Bool[Array, "b t"]) -> Float[Array, " b"]:
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    count = jnp.sum(chosen, axis=1)
    return jnp.sum(jnp.where(chosen[:, 1:], nats, 0.0), axis=1) / jnp.maximum(count, 1)
