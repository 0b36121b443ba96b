"""Which sentences stay: one of each text, lengths within bounds, and every domain's share of a half."""

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, UInt64

SIDES = 2


class Unique(NamedTuple):
    """The sentences of one bucket that may be kept, in the order of their hashes.

    Attributes:
      row: position in the bucket.
      domain: number of the alphabetically first domain the text was found in.
      side: 0 for the fit half, 1 for the eval half.
      length: in characters.
    """

    row: Int[np.ndarray, " n"]
    domain: Int[np.ndarray, " n"]
    side: Int[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, bucket: pa.Table, rank: Int[np.ndarray, " d"], low: float, high: float) -> "Unique":
        """One of each text with a length in bounds; ``rank`` orders the domains."""
        digest, domain = bucket["digest"].to_numpy(), bucket["domain"].to_numpy()
        order = np.lexsort((rank[domain], digest))
        row = order[_first_of_each(digest[order])]
        length = pc.utf8_length(bucket["text"]).to_numpy().astype(np.int64)[row]
        row, length = (part[(low <= length) & (length <= high)] for part in (row, length))
        return cls(row, domain[row], (digest[row] % np.uint64(SIDES)).astype(np.int64), length)

    def take(self, keep: Bool[np.ndarray, " n"]) -> "Unique":
        """Some of them."""
        return Unique(*(part[keep] for part in self))

    def counts(self, domains: int) -> Int[np.ndarray, "2 d"]:
        """Sentences of each side and domain."""
        return np.bincount(self.side * domains + self.domain, minlength=SIDES * domains).reshape(SIDES, domains)

    def within(self, quotas: Int[np.ndarray, "2 d"]) -> "Unique":
        """The first of each side and domain, as many as its quota."""
        group = self.side * quotas.shape[1] + self.domain
        order = np.argsort(group, kind="stable")
        ordered = group[order]
        place = np.arange(len(group)) - np.searchsorted(ordered, ordered)
        keep = np.empty(len(group), bool)
        keep[order] = place < quotas.reshape(-1)[ordered]
        return self.take(keep)


def _first_of_each(ordered: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def quotas(counts: Counter[str], wanted: int, weights: Mapping[str, float | int]) -> dict[str, int]:
    """Shares of ``wanted`` in proportion to weight times count, by largest remainder; ties go to the first name.

    A domain that has less than its share gives all it has, and the others fill up.

    Example:
      >>> quotas(Counter(a=60, b=30, c=10), 10, {})
      {'a': 6, 'b': 3, 'c': 1}
      >>> quotas(Counter(a=60, b=30, c=10), 20, {"c": 10})
      {'c': 10, 'a': 7, 'b': 3}
    """
    shares: dict[str, int] = {}
    mass = {name: Fraction(weights.get(name, 1)) * count for name, count in counts.items()}
    left = min(wanted, counts.total())
    total = sum(mass.values())
    while full := [name for name in mass if left * mass[name] >= counts[name] * total]:
        shares |= {name: counts[name] for name in full}
        left -= sum(counts[name] for name in full)
        mass = {name: mass[name] for name in mass if name not in shares}
        total = sum(mass.values())
    exact = {name: left * m / total for name, m in mass.items()}
    rounded = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (rounded[name] - exact[name], name))
    for name in by_remainder[: left - sum(rounded.values())]:
        rounded[name] += 1
    return shares | rounded


def percentile(lengths: Counter[int], percent: float | int) -> float:
    """A percentile of counted lengths, as ``numpy.percentile`` (linear) gives it for the lengths themselves.

    Example:
      >>> percentile(Counter({10: 3, 20: 1}), 75)
      12.5
    """
    values = np.array(sorted(lengths))
    ends = np.cumsum([lengths[value] for value in values.tolist()])
    place = (int(ends[-1]) - 1) * (percent / 100)
    below = int(place)
    a, b = (float(values[np.searchsorted(ends, min(i, ends[-1] - 1), side="right")]) for i in (below, below + 1))
    part = place - below
    return b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part
