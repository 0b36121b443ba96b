"""Shuffled batches of an endless stream of activations, resumable at any batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Chunks = Callable[[int], Iterable[Float[np.ndarray, "n d"]]]
"""Given a number, the rows of that chunk of a stream, in as many arrays as is convenient; the same rows each time."""


class Cursor(NamedTuple):
    """A position in the batches of :func:`mixed_batches`.

    Attributes:
      round: rounds handed out in full.
      batch: batches handed out of the next round.
      chunk: the chunk in which the segment before that round begins; 0 in round 0.
      row: the row of that chunk with which it begins.

    Example:
      >>> from atlas_jax.sae import Cursor
      >>> Cursor(round=2, batch=5)
      Cursor(round=2, batch=5, chunk=0, row=0)
    """

    round: int = 0
    batch: int = 0
    chunk: int = 0
    row: int = 0


def mixed_batches(
    chunks: Chunks, *, batch: int, buffer: int, seed: int = 0, start: Cursor | None = None
) -> Iterator[tuple[Float[np.ndarray, "{batch} d"], Cursor]]:
    """Yield shuffled batches of a stream of rows, each with the cursor from which the next ones can be repeated.

    The stream, chunk after chunk, is cut into segments of half the buffer, and each segment at random into two
    halves. A round is one half of its segment and one of the segment before, shuffled. So no row is handed out
    twice, neighbours in the text come far apart, and a run resumes at a cursor after computing two segments, without
    anything on disk.

    Args:
      chunks: the stream. It ends with the first chunk that has no array; what does not fill a segment is left out.
      batch: rows in a batch.
      buffer: rows held, at least four batches.
      seed: seed of the shuffling.
      start: the cursor to begin at; the beginning by default.

    Raises:
      ValueError: if the buffer is smaller than four batches.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import mixed_batches
      >>> rows = [np.arange(8.0)[:, None]]
      >>> stream = lambda i: rows[i:]
      >>> first, cursor = next(mixed_batches(stream, batch=1, buffer=4))
      >>> later = [b for b, _ in mixed_batches(stream, batch=1, buffer=4, start=cursor)]
      >>> len({float(b[0, 0]) for b in [first, *later]})
      7
    """
    if buffer < 4 * batch:
        raise ValueError(f"a buffer of {buffer} rows cannot mix batches of {batch}: use at least {4 * batch}")
    quarter = buffer // (4 * batch) * batch
    at = start or Cursor()
    segments = _segments(chunks, 2 * quarter, at)
    place, held = (0, 0), None
    if at.round > 0:
        rows, place = next(segments)
        held = _halves(rows, seed, at.round - 1)[1]
    for number, (rows, next_place) in enumerate(segments, at.round):
        now, later = _halves(rows, seed, number)
        mixed = now if held is None else np.concatenate([held, now])
        mixed = mixed[np.random.default_rng([seed, 1, number]).permutation(len(mixed))].reshape(
            -1, batch, rows.shape[1]
        )
        first = at.batch if number == at.round else 0
        for i in range(first, len(mixed)):
            yield mixed[i], Cursor(number, i + 1, *place)
        place, held = next_place, later


def _halves(rows: Float[np.ndarray, "n d"], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a segment into two halves at random."""
    order = np.random.default_rng([seed, 0, number]).permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


def _segments(chunks: Chunks, size: int, at: Cursor) -> Iterator[tuple[Float[np.ndarray, "n d"], tuple[int, int]]]:
    """Yield runs of ``size`` rows, each with its first chunk and row."""
    held, count, place, skip = [], 0, (at.chunk, at.row), at.row
    for number, row, rows in _numbered(chunks, at.chunk):
        taken, skip = min(skip, len(rows)), max(0, skip - len(rows))
        while taken < len(rows):
            part = rows[taken : taken + size - count]
            held, count, taken = [*held, part], count + len(part), taken + len(part)
            if count == size:
                yield np.concatenate(held), place
                held, count, place = [], 0, (number, row + taken)


def _numbered(chunks: Chunks, start: int) -> Iterator[tuple[int, int, Float[np.ndarray, "n d"]]]:
    """Yield arrays of rows with the number of their chunk and of their first row in it."""
    for number in itertools.count(start):
        row = None
        for rows in chunks(number):
            row = row or 0
            yield number, row, rows
            row += len(rows)
        if row is None:
            return
