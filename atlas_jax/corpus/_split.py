"""Splitting of documents into sentences, in chunks and over worker processes; and choice of those to keep."""

import functools
import hashlib
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, UInt64

from atlas_jax.corpus._prose import Document, Splitter
from atlas_jax.errors import AtlasError

CHUNK_CHARACTERS = 500_000
ALONE_CHARACTERS = 20_000_000
_LETTER = re.compile(r"[^\W\d_]")
_worker: list[functools.partial] = []
SIDES = 2


class Split(NamedTuple):
    """The sentences of a chunk of documents.

    Attributes:
      domains: domain of each document.
      lettered: number of sentences with a letter, of each document.
      lengths: number of sentences of each length in characters.
      unlettered: the same for those without a letter.
      digest: keyed hash of each sentence with a letter.
      texts: these sentences.
    """

    domains: list[str]
    lettered: list[int]
    lengths: Counter[int]
    unlettered: Counter[int]
    digest: UInt64[np.ndarray, " n"]
    texts: pa.Array


def split_documents(
    splitter: Splitter, documents: Iterable[Document], seed: int, workers: int | None
) -> Iterator[Split]:
    """Split documents into sentences, in their order.

    Args:
      splitter: splits a text.
      documents: the texts, read no further ahead than the workers need.
      seed: key of the hash.
      workers: processes; 1 splits in this one, None in this one until the text proves long and then on every CPU.
    """
    chunks = _chunks(documents)
    split = functools.partial(split_chunk, splitter, seed)
    if workers is None:
        seen = 0
        while seen < ALONE_CHARACTERS:
            if (chunk := next(chunks, None)) is None:
                return
            seen += sum(len(document.text) for document in chunk)
            yield split(chunk)
    count = workers or _cpus()
    yield from map(split, chunks) if count == 1 else _in_processes(splitter, seed, chunks, count)


def _cpus() -> int:
    """Number of CPUs that this process may use."""
    import joblib

    return joblib.cpu_count()


def split_chunk(splitter: Splitter, seed: int, chunk: list[Document]) -> Split:
    """Split a few documents into sentences."""
    key = str(seed).encode()
    lengths: Counter[int] = Counter()
    unlettered: Counter[int] = Counter()
    counts, kept = [], []
    for document in chunk:
        sentences = list(splitter.split(document.text))
        lettered = [sentence for sentence in sentences if _LETTER.search(sentence)]
        lengths.update(map(len, sentences))
        if len(lettered) < len(sentences):
            unlettered.update(len(sentence) for sentence in sentences if not _LETTER.search(sentence))
        counts.append(len(lettered))
        kept += lettered
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in kept)
    digest = np.frombuffer(digests, ">u8").astype(np.uint64)
    domains = [document.domain for document in chunk]
    return Split(domains, counts, lengths, unlettered, digest, pa.array(kept, pa.large_string()))


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_processes(splitter: Splitter, seed: int, chunks: Iterator[list[Document]], count: int) -> Iterator[Split]:
    """Split in processes that start without running the caller's script again, two chunks ahead of each."""
    from joblib.externals import loky

    executor = loky.ProcessPoolExecutor(count, initializer=_set_splitter, initargs=(splitter, seed))
    ahead: deque = deque()
    try:
        for chunk in chunks:
            ahead.append(executor.submit(_split_in_worker, chunk))
            if len(ahead) > 2 * count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except loky.BrokenProcessPool as error:
        raise AtlasError(
            "a process that splits sentences was killed (out of memory?); run again with fewer workers"
        ) from error
    finally:
        executor.shutdown(kill_workers=True)


def _set_splitter(splitter: Splitter, seed: int) -> None:
    _worker[:] = [functools.partial(split_chunk, splitter, seed)]


def _split_in_worker(chunk: list[Document]) -> Split:
    return _worker[0](chunk)


class Unique(NamedTuple):
    """The sentences of one bucket that may be kept, in the order of their hashes.

    Attributes:
      row: position in the bucket.
      domain: number of the alphabetically first domain of the text.
      side: 0 for the fit half, 1 for the eval half.
      length: length in characters.
    """

    row: Int[np.ndarray, " n"]
    domain: Int[np.ndarray, " n"]
    side: Int[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]

    @classmethod
    def from_bucket(cls, bucket: pa.Table, rank: Int[np.ndarray, " d"], low: float, high: float) -> "Unique":
        """Take one of each text with a length in bounds; ``rank`` orders the domains."""
        digest, domain = bucket["digest"].to_numpy(), bucket["domain"].to_numpy()
        order = np.lexsort((rank[domain], digest))
        row = order[_first_of_each(digest[order])]
        length = pc.utf8_length(bucket["text"]).to_numpy().astype(np.int64)[row]
        row, length = (part[(low <= length) & (length <= high)] for part in (row, length))
        return cls(row, domain[row], (digest[row] % np.uint64(SIDES)).astype(np.int64), length)

    def take(self, keep: Bool[np.ndarray, " n"]) -> "Unique":
        """Take some of them."""
        return Unique(*(part[keep] for part in self))

    def counts(self, domains: int) -> Int[np.ndarray, "2 d"]:
        """Count the sentences of each side and domain."""
        return np.bincount(self.side * domains + self.domain, minlength=SIDES * domains).reshape(SIDES, domains)

    def within(self, quotas: Int[np.ndarray, "2 d"]) -> "Unique":
        """Take the first of each side and domain, as many as its quota."""
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
    """Divide ``wanted`` in proportion to weight times count, by largest remainder; ties go to the first name.

    A domain that has less than its share gives all it has, and the others fill up.

    Example:
      >>> from collections import Counter
      >>> from atlas_jax.corpus._split import quotas
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
    """Compute a percentile of counted lengths, as ``numpy.percentile`` (linear) gives it for the lengths themselves.

    Example:
      >>> from collections import Counter
      >>> from atlas_jax.corpus._split import percentile
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
