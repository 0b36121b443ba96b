"""Baseline beside steered text, token by token, and how likely each token was."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.explorer._jobs import Job
from atlas_jax.models import Generation, LanguageModel, generate, run
from atlas_jax.steering import Steer
from atlas_jax.types import Site

BUCKET = 32  # tokens that lengths are rounded up to, so that few shapes are compiled


def continue_both(
    model: LanguageModel,
    ids: Sequence[int],
    directions: dict[Site, tuple[Any, float]],
    job: Job,
    prompt: int,
    **options: Any,
) -> None:
    """Continue a prompt without and with steering, two rows of one batch, and emit tokens as they come.

    Args:
      model: the subject.
      ids: of the prompt.
      directions: by site, direction and strength; always the same sites, so that one program serves all strengths.
      job: where tokens go, and what may cancel.
      prompt: number of the prompt.
      options: of :func:`generate`.
    """
    edits = {
        site: Steer(along, jnp.array([0.0, strength], jnp.float32)) for site, (along, strength) in directions.items()
    }
    pieces = [Pieces(), Pieces()]

    def stream(generation: Generation) -> None:
        job.check()
        job.emit("tokens", {"prompt": prompt, "rows": _new(pieces, generation)})

    length = -(-len(ids) // BUCKET) * BUCKET
    generation = generate(model, [ids, ids], edits=edits, stream=stream, prompt_length=length, **options)
    job.emit("tokens", {"prompt": prompt, "rows": [one.rest() for one in pieces]})
    job.check()
    job.emit("scores", {"prompt": prompt, **_scores(model, ids, generation, edits)})


class Pieces:
    """The text that each token adds; nothing for one that ends within a character, which a later one completes.

    Example:
      >>> from atlas_jax.explorer._generation import Pieces
      >>> pieces = Pieces()
      >>> pieces.add(" caf\ufffd"), pieces.add(" café"), pieces.rest()
      (' caf', 'é', [])
    """

    def __init__(self):
        self.sent, self.count, self._text = "", 0, ""

    def add(self, text: str) -> str:
        """Return what the text has more than the last one."""
        self._text, self.count = text, self.count + 1
        whole = text.rstrip("\ufffd")
        new = whole[len(self.sent) :] if whole.startswith(self.sent) else ""
        self.sent += new
        return new

    def rest(self) -> list[str]:
        """Return what is still held back."""
        rest = self._text[len(self.sent) :]
        return [rest] if rest else []


def _new(pieces: list[Pieces], generation: Generation) -> list[list[str]]:
    """Pieces of the rows that have not ended; every token makes one."""
    rows = zip(pieces, generation.texts, generation.lengths.tolist(), strict=True)
    return [[own.add(text)] if own.count < length else [] for own, text, length in rows]


def _scores(
    model: LanguageModel, ids: Sequence[int], generation: Generation, edits: dict[Site, Steer]
) -> dict[str, list[list[float]]]:
    """Log-probabilities of the new tokens, under the row's own steering and under none."""
    after = [new[:n].tolist() for new, n in zip(generation.ids, generation.lengths.tolist(), strict=True)]
    length = len(ids) + generation.ids.shape[1]
    length = min(-(-length // BUCKET) * BUCKET, model.config.max_positions)
    tokens = model.tokenizer.pad([[*ids, *new] for new in after], length, range(2))
    none = {site: edit._replace(strength=jnp.zeros(2)) for site, edit in edits.items()}
    log_probability: Callable[[dict], np.ndarray] = lambda edits: np.asarray(
        _chosen(run(model, tokens, edits=edits).logits, tokens.ids)
    )
    begin = len(ids) - 1
    cut = lambda values: [row[begin : begin + len(new)].tolist() for row, new in zip(values, after, strict=True)]
    return {"own": cut(log_probability(edits)), "unsteered": cut(log_probability(none))}


@jax.jit
def _chosen(logits: Float[Array, "b t v"], ids: Int[Array, "b t"]) -> Float[Array, "b t-1"]:
    chosen = jnp.take_along_axis(logits[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits[:, :-1], axis=-1)
