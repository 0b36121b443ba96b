"""Batches of sentences (few shapes, little padding, the same on every run), and their way to devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from atlas_jax.models import Tokenizer, match_tokens, pad_spans
from atlas_jax.sharding import Share, gather, global_rows
from atlas_jax.stored import StoredRows
from atlas_jax.types import Tokens


class Ragged(NamedTuple):
    """Rows of unequal length in one array.

    Attributes:
      values: all rows, one after the other.
      offsets: where each row begins, and where the last one ends.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.pipeline import Ragged
      >>> rows = Ragged.from_lists([[5, 6], [7], [8, 9]])
      >>> rows.take(np.array([2, 1])).values.tolist(), rows.lengths.tolist()
      ([8, 9, 7], [2, 1, 2])
    """

    values: Int[np.ndarray, " t"]
    offsets: Int[np.ndarray, " n+1"]

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Pack lists."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        return cls(np.fromiter((i for row in rows for i in row), np.int32, offsets[-1]), offsets)

    def take(self, rows: Int[np.ndarray, " r"]) -> "Ragged":
        """Return some of the rows."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(
            self.values[np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)], offsets
        )

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Length of each row."""
        return np.diff(self.offsets)


class Block(NamedTuple):
    """Consecutive sentences of a pass, tokenized for every model.

    Attributes:
      ids: for each model, the token ids of each sentence.
      index: sentence ids.
      match: for each token of the second model, that of the first (:func:`match_tokens`); None unless asked for.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import LanguageModel
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import Block
      >>> tokenizer = LanguageModel.from_pretrained(SUBJECT).tokenizer
      >>> block = Block.from_texts([tokenizer], ["a short text", "a"], np.array([7, 8]), max_length=128)
      >>> block.lengths.tolist(), block.take(np.array([1])).index.tolist()
      ([4, 2], [8])
    """

    ids: tuple[Ragged, ...]
    index: Int[np.ndarray, " n"]
    match: Ragged | None = None

    @classmethod
    def from_texts(
        cls,
        tokenizers: Sequence[Tokenizer | StoredRows],
        texts: Sequence[str],
        index: Int[np.ndarray, " n"],
        max_length: int,
        *,
        matched: bool = False,
    ) -> "Block":
        """Tokenize for every model, and match the tokens if asked to; sentences are cut to ``max_length`` tokens."""
        block = cls(tuple(Ragged.from_lists(t.encode(texts, max_length)) for t in tokenizers), index)
        if not matched:
            return block
        spans = ([pad_spans([row]) for row in t.spans(texts, max_length)] for t in tokenizers)
        return block._replace(
            match=Ragged.from_lists([match_tokens(a, b)[0].tolist() for a, b in zip(*spans, strict=True)])
        )

    def take(self, rows: Int[np.ndarray, " r"]) -> "Block":
        """Return some of the sentences."""
        match = None if self.match is None else self.match.take(rows)
        return Block(tuple(ids.take(rows) for ids in self.ids), self.index[rows], match)

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each sentence under the tokenizer that needs most."""
        return np.max([ids.lengths for ids in self.ids], axis=0)

    @property
    def tokens(self) -> int:
        """Tokens of all models together."""
        return sum(len(ids.values) for ids in self.ids)


class BatchShapes(NamedTuple):
    """The few batch shapes of a pass: as many rows of each length as fit the token budget.

    Attributes:
      lengths: padded lengths, ascending.
      batch_sizes: rows of a batch of each length.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.pipeline import BatchShapes
      >>> shapes = BatchShapes((8, 32), (16, 4))
      >>> [batch.size for batch in shapes.plan(np.array([5, 30]))]
      [16, 4]
    """

    lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]

    @classmethod
    def from_lengths(
        cls, sample: Int[np.ndarray, " n"], longest: int, *, token_budget: int, shapes: int, multiple: int = 1
    ) -> "BatchShapes":
        """Choose shapes from the lengths of some sentences.

        Lengths are the multiples of 8 that pad the sample least, and one that holds the longest sentence, which is
        compiled only where a sentence needs it.

        Args:
          sample: tokens of some sentences.
          longest: tokens that no sentence exceeds.
          token_budget: tokens of a batch, padding included.
          shapes: how many lengths at most, the longest apart.
          multiple: batch sizes are multiples of this, the number of devices that share the rows.

        Example:
          >>> import numpy as np
          >>> from atlas_jax.pipeline import BatchShapes
          >>> BatchShapes.from_lengths(np.array([5, 7, 30, 6]), 40, token_budget=64, shapes=2)
          BatchShapes(lengths=(8, 32, 40), batch_sizes=(8, 2, 1))
        """
        lengths = np.unique([*_least_padding(sample, shapes), -(-longest // 8) * 8]).tolist()
        batch_sizes = [max(1, token_budget // length // multiple) * multiple for length in lengths]
        return cls(tuple(lengths), tuple(batch_sizes))

    def plan(self, lengths: Int[np.ndarray, " n"]) -> "list[Batch]":
        """Group sentences of like length into batches.

        Example:
          >>> import numpy as np
          >>> from atlas_jax.pipeline import BatchShapes
          >>> batches = BatchShapes((8, 32), (2, 2)).plan(np.array([5, 7, 30, 6]))
          >>> [(b.length, b.size, b.rows.tolist()) for b in batches]
          [(8, 2, [0, 1]), (8, 2, [3]), (32, 2, [2])]
        """
        edge = np.searchsorted(self.lengths, lengths)
        batches = []
        for i, (length, batch_size) in enumerate(zip(self.lengths, self.batch_sizes, strict=True)):
            rows = np.flatnonzero(edge == i)
            batches += [Batch(length, batch_size, rows[j : j + batch_size]) for j in range(0, len(rows), batch_size)]
        return batches


class Batch(NamedTuple):
    """The sentences at some rows of a block, to be padded to one shape.

    Attributes:
      length: tokens of a padded row.
      size: rows, those that only fill the shape included.
      rows: positions in the block.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.pipeline import Batch
      >>> batch = Batch(length=8, size=4, rows=np.array([0, 2, 5]))
      >>> batch.size - len(batch.rows)
      1
    """

    length: int
    size: int
    rows: Int[np.ndarray, " r"]


def _least_padding(sample: Int[np.ndarray, " n"], shapes: int) -> list[int]:
    """At most ``shapes`` multiples of 8 to which the lengths of a sample are rounded up with the least padding."""
    eighths = -(-sample // 8)
    top = int(eighths.max())
    up_to = np.cumsum(np.bincount(eighths, minlength=top + 1))
    edges = np.arange(top + 1)
    cost = np.where(edges[:, None] <= edges, edges * (up_to - up_to[:, None]), np.inf)
    best, steps = cost[0], []
    for _ in range(shapes - 1):
        through = best[:, None] + cost
        steps.append(through.argmin(axis=0))
        best = through.min(axis=0)
    chosen = [top]
    for before in reversed(steps):
        chosen.append(int(before[chosen[-1]]))
    return [8 * edge for edge in set(chosen) if edge]


def share_of_rows(rows: Int[np.ndarray, " n"], share: Share) -> Int[np.ndarray, " m"]:
    """Return the sentences of a block that this process reads: every ``count``-th, from its own on.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.pipeline._batches import share_of_rows
      >>> from atlas_jax.sharding import Share
      >>> share_of_rows(np.arange(10, 17), Share(1, 3)).tolist()
      [11, 14]
    """
    return rows[share.index :: share.count]


def common_plan(block: Block, grid: BatchShapes, share: Share) -> tuple[list[Batch], Int[np.ndarray, "b 2"]]:
    """Plan the batches of this process's part of a block; with the sentences and tokens of each batch in all processes.

    All processes get the same shapes in the same order; where one has fewer sentences of a length than another, its
    last batches are empty. ``size`` counts the rows of one process.
    """
    local = grid._replace(batch_sizes=tuple(batch_size // share.count for batch_size in grid.batch_sizes))
    plan = local.plan(block.lengths)
    counts = np.array([sum(batch.length == length for batch in plan) for length in grid.lengths])
    missing = gather(counts).max(axis=0) - counts
    empty = np.zeros(0, np.int64)
    for length, batch_size, count in zip(local.lengths, local.batch_sizes, missing.tolist(), strict=True):
        plan += [Batch(length, batch_size, empty)] * count
    plan = sorted(plan, key=lambda batch: batch.length)
    tokens = sum(ids.lengths for ids in block.ids)
    sizes = np.array([(len(batch.rows), tokens[batch.rows].sum()) for batch in plan]).reshape(-1, 2)
    return plan, _first_of_each(share, sizes).sum(axis=0)


def _first_of_each(share: Share, x: Int[np.ndarray, "b 2"]) -> Int[np.ndarray, "s b 2"]:
    """Gather an array of one process of every share: those whose devices hold the same rows have the same."""
    _, first = np.unique(gather(np.array([share.index])), return_index=True)
    return gather(x)[first]


def to_device(
    block: Block, batch: Batch, tokenizers: tuple[Tokenizer | StoredRows, ...], mesh: Mesh | None = None
) -> tuple[Any, ...]:
    """Put one batch of a block on devices, padded, for every model, its rows over "data" of a mesh if there is one.

    Behind the tokens comes the match of a block that has one, -1 in its padding. Rows that only fill the shape have
    index -1 and no token that counts. In a run of several processes the block is this one's share, and the batch is
    that of all of them.
    """
    part = block.take(batch.rows)
    index = np.full(batch.size, -1, np.int32)
    index[: len(part.index)] = part.index
    shape = batch.size, batch.length
    padded: list[Any] = [_pad(ids, t, shape, index) for ids, t in zip(part.ids, tokenizers, strict=True)]
    if part.match is not None:
        padded.append(_filled(part.match, shape, -1)[0])
    return jax.tree.map(jnp.asarray, tuple(padded)) if mesh is None else global_rows(tuple(padded), mesh)


def _pad(rows: Ragged, tokenizer: Tokenizer | StoredRows, shape: tuple[int, int], index: np.ndarray) -> Tokens:
    ids, real = _filled(rows, shape, tokenizer.pad_id)
    if isinstance(tokenizer, StoredRows):
        return tokenizer.batch(ids, real, index)
    return Tokens(ids, real & ~np.isin(ids, list(tokenizer.special_ids)), index, real)


def _filled(rows: Ragged, shape: tuple[int, int], value: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in an array of a shape that ``value`` fills, and the places they take."""
    array, real = np.full(shape, value, np.int32), np.zeros(shape, bool)
    real[: len(rows.lengths)] = np.arange(shape[1]) < rows.lengths[:, None]
    array[real] = rows.values
    return array, real
