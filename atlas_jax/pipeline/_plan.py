"""Which sentences go into which batch: few shapes, little padding, the same on every run."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from atlas_jax.models import Tokenizer
from atlas_jax.types import Tokens


class Rows(NamedTuple):
    """Sentences as token ids of every model, with their sentence ids.

    Attributes:
      ids: for each model, the token ids of each sentence.
      index: sentence ids.
    """

    ids: tuple[list[list[int]], ...]
    index: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, tokenizers: Sequence[Tokenizer], texts: Sequence[str], first: int, max_length: int) -> "Rows":
        """Tokenize for every model; sentences are numbered from ``first`` and cut to ``max_length`` tokens."""
        index = np.arange(first, first + len(texts), dtype=np.int32)
        return cls(tuple(t.encode(texts, max_length) for t in tokenizers), index)

    def take(self, places: Int[np.ndarray, " r"]) -> "Rows":
        """Some of the sentences."""
        return Rows(tuple([ids[i] for i in places] for ids in self.ids), self.index[places])

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each sentence under the tokenizer that needs most."""
        return np.max([[len(row) for row in ids] for ids in self.ids], axis=0).astype(np.int32)

    @property
    def tokens(self) -> int:
        """Tokens of all models together."""
        return sum(len(row) for ids in self.ids for row in ids)


class Plan(NamedTuple):
    """Batches as positions into :class:`Rows`: ``(length, rows, positions)`` each."""

    batches: tuple[tuple[int, int, Int[np.ndarray, " r"]], ...]

    @classmethod
    def of(cls, lengths: Int[np.ndarray, " n"], *, token_budget: int, shapes: int = 3) -> "Plan":
        """Group sentences of like length.

        Lengths are rounded up to ``shapes`` values, multiples of 8 chosen at even quantiles, so that few programs
        are compiled; each batch has as many rows as fit ``token_budget`` tokens.

        Example:
          >>> plan = Plan.of(np.array([5, 7, 30, 6]), token_budget=64, shapes=2)
          >>> [(length, rows, p.tolist()) for length, rows, p in plan.batches]
          [(8, 8, [0, 1, 3]), (32, 2, [2])]
        """
        edges = np.unique(-(-np.quantile(lengths, np.arange(1, shapes + 1) / shapes).astype(int) // 8) * 8)
        edge = edges[np.searchsorted(edges, lengths)]
        batches = []
        for length in edges.tolist():
            places = np.flatnonzero(edge == length)
            rows = max(1, token_budget // length)
            batches += [(length, rows, places[i : i + rows]) for i in range(0, len(places), rows)]
        return cls(tuple(batches))

    def __len__(self) -> int:
        return len(self.batches)


def batches(plan: Plan, rows: Rows, tokenizers: Sequence[Tokenizer]) -> Iterator[tuple[Rows, tuple[Tokens, ...]]]:
    """The batches of a plan: their sentences, and these as padded tokens of every model.

    Rows that only fill a batch's shape have index -1 and no token that counts.
    """
    for length, height, places in plan.batches:
        part = rows.take(places)
        fill = height - len(places)
        index = [*part.index.tolist(), *[-1] * fill]
        padded = [t.pad([*ids, *[[]] * fill], length, index) for t, ids in zip(tokenizers, part.ids, strict=True)]
        yield part, tuple(padded)
