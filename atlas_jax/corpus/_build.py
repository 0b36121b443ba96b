"""From documents to a corpus (Appendix A.2): split, filter by length, drop what has no letters, deduplicate, halve."""

import hashlib
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from atlas_jax.corpus._corpus import Corpus, CorpusStatistics, content_hash
from atlas_jax.corpus._document import Document
from atlas_jax.corpus._sentences import TRAINING_CHARACTERS, Splitter, published_splitter, train_splitter
from atlas_jax.errors import AtlasError

_LETTER = re.compile(r"[^\W\d_]")


def build_corpus(
    documents: Iterable[Document],
    *,
    n_fit: int | None = None,
    n_eval: int | None = None,
    at_least: int = 1,
    percentiles: tuple[float | int, float | int] = (5, 95),
    seed: int = 0,
) -> Corpus:
    """Sentences of ``documents`` filtered as in Appendix A.2, in two halves that share no text.

    Lengths in characters are compared with their percentiles over all sentences found, duplicates included, as
    ``numpy.percentile`` (linear) gives them; a sentence of exactly a bound's length stays. A keyed 64-bit hash of the
    text then deduplicates, chooses the half by its lowest bit and orders each half, so a text never changes sides and
    the order of the documents has no say. Where a half is cut to ``n_fit`` or ``n_eval``, every domain keeps its share
    of that half and the first in hash order stay. A text found in several domains belongs to the alphabetically first.

    Documents are read once; only unique sentences are held. Without NLTK's published English model a Punkt model is
    trained on the first million characters of ``documents`` (there, alone, their order counts).

    Args:
      documents: the texts.
      n_fit: most sentences to keep for fitting; None keeps the whole half.
      n_eval: most sentences to keep for evaluation; None keeps the whole half.
      at_least: fewest sentences of either half.
      percentiles: shortest and longest length kept, as percentiles of length.
      seed: key of the hash.

    Returns:
      The corpus, with the counts of every step in its ``statistics``.

    Raises:
      AtlasError: if there is no text, or a half has fewer than ``at_least`` sentences.

    Example:
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "doctest")], percentiles=(0, 100))
      >>> len(corpus.fit) + len(corpus.eval)
      5
    """
    splitter, stream = _splitter(iter(documents))
    pool = _Pool(seed)
    for document in stream:
        pool.add(document, splitter)
    if not pool.lengths:
        raise AtlasError("the corpus has no usable text; give documents that hold sentences")
    lengths = np.frombuffer(pool.lengths, np.int32)
    low, high = (float(bound) for bound in np.percentile(lengths, percentiles))
    halves = pool.halves(low, high)
    fit = _cut(halves[0], pool.domains, n_fit, at_least, "fit")
    evaluation = _cut(halves[1], pool.domains, n_eval, at_least, "eval")
    kept = [len(pool.texts[i]) for i in fit + evaluation]
    statistics = CorpusStatistics(
        documents=pool.documents,
        split=len(lengths),
        **_filtered(pool, low, high),
        unique=sum(map(len, halves)),
        fit_available=len(halves[0]),
        eval_available=len(halves[1]),
        length_bounds=(low, high),
        percentiles=(float(percentiles[0]), float(percentiles[1])),
        mean_chars=float(np.mean(kept)) if kept else 0.0,
        std_chars=float(np.std(kept)) if kept else 0.0,
        punkt=splitter.source,
        seed=seed,
    )
    return _corpus(pool, fit, evaluation, statistics)


class _Pool:
    """Unique sentences that have a letter, by hash, and the length of every sentence met."""

    def __init__(self, seed: int) -> None:
        self.key = str(seed).encode()
        self.position: dict[int, int] = {}
        self.texts: list[str] = []
        self.domains: list[str] = []
        self.lengths = array("i")
        self.lettered = array("b")
        self.documents = 0

    def add(self, document: Document, splitter: Splitter) -> None:
        self.documents += 1
        for sentence in splitter.split(document.text):
            lettered = _LETTER.search(sentence) is not None
            self.lengths.append(len(sentence))
            self.lettered.append(lettered)
            if lettered:
                self._add_unique(sentence, document.domain)

    def _add_unique(self, sentence: str, domain: str) -> None:
        digest = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8, key=self.key).digest())
        position = self.position.setdefault(digest, len(self.texts))
        if position == len(self.texts):
            self.texts.append(sentence)
            self.domains.append(domain)
        elif domain < self.domains[position]:
            self.domains[position] = domain

    def halves(self, low: float, high: float) -> tuple[list[int], list[int]]:
        """Positions, in hash order, of the sentences with an even and with an odd hash and a length in bounds."""
        kept = [digest for digest in sorted(self.position) if low <= len(self.texts[self.position[digest]]) <= high]
        even, odd = ([self.position[digest] for digest in kept if digest % 2 == side] for side in (0, 1))
        return even, odd


def _splitter(documents: Iterator[Document]) -> tuple[Splitter, Iterator[Document]]:
    """The published splitter, or one trained on the head of the stream; the stream comes back whole."""
    if (splitter := published_splitter()) is not None:
        return splitter, documents
    head, characters = [], 0
    for document in documents:
        head.append(document)
        characters += len(document.text)
        if characters >= TRAINING_CHARACTERS:
            break
    return train_splitter([document.text for document in head]), itertools.chain(head, documents)


def _cut(half: list[int], domains: list[str], wanted: int | None, at_least: int, name: str) -> list[int]:
    """The first ``wanted`` of a half in hash order, each domain in proportion."""
    if len(half) < at_least:
        raise AtlasError(f"too few sentences: the {name} half has {len(half)} and needs {at_least}; give more text")
    if wanted is None or wanted >= len(half):
        return half
    left = _quotas(Counter(domains[i] for i in half), wanted)
    kept = []
    for i in half:
        if left[domains[i]]:
            left[domains[i]] -= 1
            kept.append(i)
    return kept


def _quotas(counts: Counter[str], wanted: int) -> dict[str, int]:
    """Shares of ``wanted`` in proportion to ``counts``, by largest remainder; ties go to the first name."""
    total = max(counts.total(), 1)
    quotas = {name: wanted * count // total for name, count in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(wanted * counts[name] % total), name))
    for name in by_remainder[: wanted - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _filtered(pool: _Pool, low: float, high: float) -> dict[str, int]:
    lengths = np.frombuffer(pool.lengths, np.int32)
    within = (lengths >= low) & (lengths <= high)
    lettered = within & np.frombuffer(pool.lettered, np.bool_)
    return {"after_length": int(within.sum()), "after_letters": int(lettered.sum())}


def _corpus(pool: _Pool, fit: list[int], evaluation: list[int], statistics: CorpusStatistics) -> Corpus:
    fit_texts, eval_texts = (tuple(pool.texts[i] for i in half) for half in (fit, evaluation))
    domains = tuple(pool.domains[i] for i in fit + evaluation)
    return Corpus(fit_texts, eval_texts, domains, statistics, content_hash(fit_texts, eval_texts, domains))
