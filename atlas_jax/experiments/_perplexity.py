"""How likely continuations are under a model, one number each."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.models import Generation, LanguageModel, run

CELLS = 2**26  # logits that are held at a time


def perplexities(model: LanguageModel, prompts: Sequence[str], generation: Generation) -> list[float | None]:
    """Perplexity of each continuation after its prompt, under a model without edits.

    Every row is read once; the end-of-text token that ends a continuation does not count.

    Args:
      model: the language model.
      prompts: what was continued, a text a row.
      generation: the continuations.

    Returns:
      ``exp`` of the mean negative log-likelihood of a row's new tokens; None where it has none.

    Example:
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> made = generate(lm, ["Return the"], max_new_tokens=4)
      >>> len(perplexities(lm, ["Return the"], made))
      1
    """
    before = model.tokenizer.encode(prompts)
    after = [new[:n].tolist() for new, n in zip(generation.ids, generation.lengths.tolist(), strict=True)]
    rows = [[*ids, *new] for ids, new in zip(before, after, strict=True)]
    tokens = model.tokenizer.pad(rows, -(-max(map(len, rows)) // 8) * 8, range(len(rows)))
    place = np.arange(tokens.ids.shape[1])[None, :]
    begin, end = (np.array([len(row) for row in x])[:, None] for x in (before, rows))
    new = (place >= begin) & (place < end)
    height = max(1, CELLS // (tokens.ids.shape[1] * model.config.vocab_size))
    nats = [
        _mean_nats(run(model, part).logits, part.ids, jnp.asarray(new[at : at + height]))
        for at in range(0, len(rows), height)
        for part in [jax.tree.map(lambda x: x[at : at + height], tokens)]  # noqa: B023 - used at once
    ]
    found = np.exp(np.concatenate(nats).astype(np.float64)).tolist()
    return [x if new else None for x, new in zip(found, after, strict=True)]


@jax.jit
def _mean_nats(logits: Float[Array, "b t v"], ids: Int[Array, "b t"], chosen: Bool[Array, "b t"]) -> Float[Array, " b"]:
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    count = jnp.sum(chosen, axis=1)
    return jnp.sum(jnp.where(chosen[:, 1:], nats, 0.0), axis=1) / jnp.maximum(count, 1)
