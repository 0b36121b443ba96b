"""AUROC and average precision in numpy: the two classes sorted apart, positives searched among negatives.

A sort of plain float32 values is vectorised and an argsort of all samples is not, so sorting the two classes apart
and locating one in the other is much faster than walking one sorted list; it is exact because only counts of
samples below and at each score enter both measures.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num


class _Class(NamedTuple):
    """One class in rising order of score; ``weights`` and their running sum are None for unit weights."""

    scores: Num[np.ndarray, " m"]
    weights: Num[np.ndarray, " m"] | None
    running: Float[np.ndarray, " m+1"] | None

    def mass_before(self, position: Int[np.ndarray, " k"]) -> Num[np.ndarray, " k"]:
        return position if self.running is None else self.running[position]

    def total(self) -> float:
        return float(self.scores.size if self.running is None else self.running[-1])

    def weighted_sum(self, values: Num[np.ndarray, " m"]) -> float:
        return float(np.sum(values) if self.weights is None else np.dot(values, self.weights))


def measure(
    scores: Num[np.ndarray, "*q n"],
    labels: Bool[np.ndarray, "*l n"],
    weights: Num[np.ndarray, "*w n"] | None = None,
    *,
    wanted: tuple[str, ...],
) -> tuple[Float[np.ndarray, "*q"], Float[np.ndarray, "*q"], Int[np.ndarray, "*q"]]:
    """AUROC, AP and the number of positives of every row; a measure that is not ``wanted`` is left nan."""
    shape = scores.shape[:-1]
    flat = _sortable(scores).reshape(-1, scores.shape[-1])
    shared = _members(labels) if labels.ndim == 1 else None
    labels = np.broadcast_to(labels, scores.shape)
    weights = None if weights is None else np.broadcast_to(weights, scores.shape)

    def row(i: int) -> tuple[float, float, int]:
        at = np.unravel_index(i, shape)
        members = _members(labels[at]) if shared is None else shared
        return _row(flat[i], members, None if weights is None else weights[at], wanted)

    workers = min(len(flat), os.cpu_count() or 1) if flat.size > 100_000 else 1
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            rows = list(pool.map(row, range(len(flat))))
    else:
        rows = [row(i) for i in range(len(flat))]
    table = np.array(rows, np.float64).reshape(*shape, 3)
    return table[..., 0], table[..., 1], table[..., 2].astype(np.int64)


def _sortable(scores: Num[np.ndarray, "*q n"]) -> Num[np.ndarray, "*q n"]:
    """Widen 16-bit floats, exactly, to the narrowest float that numpy sorts fast."""
    narrow = jnp.issubdtype(scores.dtype, jnp.floating) and scores.dtype.itemsize < 4
    return scores.astype(np.float32) if narrow else scores


def _members(labels: Bool[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " m"]]:
    return np.flatnonzero(labels), np.flatnonzero(~labels)


def _row(
    scores: Num[np.ndarray, " n"],
    members: tuple[Int[np.ndarray, " p"], Int[np.ndarray, " m"]],
    weights: Num[np.ndarray, " n"] | None,
    wanted: tuple[str, ...],
) -> tuple[float, float, int]:
    positive, negative = (_class(scores, index, weights) for index in members)
    count = positive.scores.size
    if count == 0 or _has_nan(positive) or _has_nan(negative):
        return np.nan, np.nan, count
    below = np.searchsorted(negative.scores, positive.scores, "left")
    area = _auroc(positive, negative, below) if "auroc" in wanted else np.nan
    precision = _average_precision(positive, negative, below) if "average_precision" in wanted else np.nan
    return area, precision, count


def _class(
    scores: Num[np.ndarray, " n"], index: Int[np.ndarray, " m"], weights: Num[np.ndarray, " n"] | None
) -> _Class:
    if weights is None:
        return _Class(np.sort(scores[index]), None, None)
    index = index[weights[index] > 0]
    index = index[np.argsort(scores[index])]
    sorted_weights = weights[index].astype(np.float64)
    return _Class(scores[index], sorted_weights, np.concatenate([[0.0], np.cumsum(sorted_weights)]))


def _has_nan(samples: _Class) -> bool:
    return samples.scores.size > 0 and bool(samples.scores[-1] != samples.scores[-1])


def _auroc(positive: _Class, negative: _Class, below: Int[np.ndarray, " p"]) -> float:
    """``below`` is the number of negatives below each positive; ties are searched again, from the right."""
    if negative.scores.size == 0:
        return np.nan
    tied = negative.scores[np.minimum(below, negative.scores.size - 1)] == positive.scores
    not_above = below.copy()
    not_above[tied] = np.searchsorted(negative.scores, positive.scores[tied], "right")
    won = positive.weighted_sum(negative.mass_before(below) + negative.mass_before(not_above))
    return won / (2 * positive.total() * negative.total())


def _average_precision(positive: _Class, negative: _Class, below: Int[np.ndarray, " p"]) -> float:
    hits = positive.total() - positive.mass_before(np.searchsorted(positive.scores, positive.scores, "left"))
    false = negative.total() - negative.mass_before(below)
    return positive.weighted_sum(hits / (hits + false)) / positive.total()
