"""A local language model as a judge: the likelihood of each rating, without generating text."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._rating import ASPECTS, check_aspect, items_of, rating_prompt
from atlas_jax.models import Decoder, LanguageModel, run
from atlas_jax.types import Site, Tokens

LABELS = ("0", "1", "2")
CELLS = 2**26  # numbers of an array that are held at a time
HEIGHT = 32  # most rows of a batch
_OPENING = '{"0": '  # of an answer about one text, which its rating follows


class _Target(NamedTuple):
    """A token whose likelihood counts for a label of a text: it follows ``position`` of its row."""

    text: int
    label: int
    position: int
    token: int


@dataclasses.dataclass(eq=False)
class ModelJudge:
    """Judge texts by a local language model: the rating is its most likely label after the rating prompt.

    Nothing is generated and nothing parsed. A prompt shows one text, in the model's own chat template where it has
    one; the log-likelihoods of the tokens of a label are summed. A text is cut where the prompt would not fit into the
    model's context.

    Attributes:
      model: the judge; it should be tuned to follow instructions.
      label: its name in tables.
      examples: whether the prompt shows the paper's three examples, which take about 900 tokens.
      missing: texts for which the likelihoods were not finite.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import ModelJudge
      >>> from atlas_jax.models import LanguageModel
      >>> judge = ModelJudge(LanguageModel.from_pretrained(SUBJECT), "bundled", examples=False)
      >>> judge.name, judge.probabilities("dogs", ["A puppy."]).shape
      ('model:bundled', (1, 3))
    """

    model: LanguageModel
    label: str
    examples: bool = True
    missing: int = dataclasses.field(default=0, init=False)
    aspects = ASPECTS

    @property
    def name(self) -> str:
        """Name in tables and files, such as "model:llama"."""
        return f"model:{self.label}"

    def judge(
        self, concept: str, texts: Sequence[str], aspect: str = "concept", *, instruction: Sequence[str] | None = None
    ) -> list[int | None]:
        """Rate texts by the most likely label.

        Raises:
          AtlasError: as :meth:`probabilities`.
        """
        if not len(texts):
            return []
        likely = self.probabilities(concept, texts, aspect, instruction=instruction)
        ratings = [int(row.argmax()) if np.isfinite(row).all() else None for row in likely]
        self.missing += ratings.count(None)
        return ratings

    def probabilities(
        self, concept: str, texts: Sequence[str], aspect: str = "concept", *, instruction: Sequence[str] | None = None
    ) -> Float[np.ndarray, "n 3"]:
        """Probability of each of the three labels, of which one is sure to follow, in float64.

        Raises:
          AtlasError: for another aspect, instructions that do not fit the texts, or a context that the prompt does not
            fit into.
        """
        check_aspect(self.name, self.aspects, aspect)
        items = items_of(texts, aspect, instruction)
        different = {item: i for i, item in enumerate(dict.fromkeys(items))}
        reads: dict[tuple[int, ...], list[_Target]] = {}
        for item, i in different.items():
            labelled = self._labelled(aspect, concept, item)
            start = len(os.path.commonprefix(labelled))
            for j, row in enumerate(labelled):
                targets = [_Target(i, j, at - 1, row[at]) for at in range(start, len(row))]
                reads.setdefault(tuple(row[:-1]), []).extend(targets)
        nats = self._log_likelihoods(reads, len(different))
        return scipy.special.softmax(nats, axis=1)[[different[item] for item in items]]

    def _labelled(self, aspect: str, concept: str, item: str) -> list[list[int]]:
        """Ids of the prompt followed by each label, the end of the text left out where they would be too many."""
        context = self.model.config.max_positions
        while True:
            rows = self._ids(rating_prompt(aspect, concept, [item], examples=self.examples))
            if (longest := max(map(len, rows))) <= context:
                return rows
            if item == '""':
                advice = "leave the examples out, or " if self.examples and aspect == "concept" else ""
                raise AtlasError(
                    f"the rating prompt has {longest} tokens and the context of {self.name} {context}; {advice}judge "
                    "with a model that reads more"
                )
            kept = item[: int(0.9 * len(item)) - 1].rstrip("\\")
            item = f'{kept}"' if len(kept) > 1 else '""'

    def _ids(self, prompt: str) -> list[list[int]]:
        tokenizer, answers = self.model.tokenizer, [_OPENING + label for label in LABELS]
        if not tokenizer.hf.chat_template:
            return tokenizer.encode([f"{prompt} {answer}" for answer in answers])
        asked = self.model.chat([{"role": "user", "content": prompt}])
        return [asked + e.ids for e in tokenizer.backend.encode_batch(answers, add_special_tokens=False)]

    def _log_likelihoods(self, reads: Mapping[tuple[int, ...], list[_Target]], count: int) -> Float[np.ndarray, "n 3"]:
        """Sums over the tokens of every label of every text."""
        config, rows = self.model.config, list(reads)
        last, most = Site("resid_post", config.num_layers - 1), max(map(len, reads.values()))
        cells = lambda width: max(width * max(config.num_heads * width, config.hidden_size), most * config.vocab_size)
        nats = np.zeros((count, len(LABELS)))
        for some, tokens in batches(self.model, rows, cells):
            targets = [(row, k, target) for row, i in enumerate(some) for k, target in enumerate(reads[rows[i]])]
            at, ids = np.zeros((2, len(tokens.ids), most), np.int32)
            for row, k, target in targets:
                at[row, k], ids[row, k] = target.position, target.token
            x = run(self.model, tokens, capture=last, logits=False).acts[last]
            log_p = np.asarray(_log_probabilities(self.model.decoder, x, at, ids))
            for row, k, target in targets:
                nats[target.text, target.label] += log_p[row, k]
        return nats


@jax.jit
def _log_probabilities(
    decoder: Decoder, x: Float[Array, "b t d"], at: Int[Array, "b k"], ids: Int[Array, "b k"]
) -> Float[Array, "b k"]:
    """Log-probabilities of tokens after some positions, whose final residuals alone are multiplied out."""
    logits = decoder.logits(jnp.take_along_axis(x, at[:, :, None], axis=1))
    return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, :, None], axis=2)[:, :, 0]


def batches(
    model: LanguageModel, rows: Sequence[Sequence[int]], cells: Callable[[int], int]
) -> Iterator[tuple[list[int], Tokens]]:
    """Rows of similar length together, in few shapes and bounded memory: which rows they are, and their tokens.

    A row of ``width`` tokens takes ``cells(width)`` numbers. Copies of the last row fill a batch up.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while order:
        longest = max(1, len(rows[order[0]]))
        step = 32 if longest <= 128 else 128
        width = min(model.config.max_positions, -(-longest // step) * step)
        height = max(1, min(HEIGHT, CELLS // cells(width), 1 << (len(order) - 1).bit_length()))
        some, order = order[:height], order[height:]
        filled = some + some[-1:] * (height - len(some))
        yield some, model.tokenizer.pad([rows[i] for i in filled], width, range(height))
