"""Building of a corpus (Appendix A.2): split, filter by length, drop text without letters, deduplicate, halve."""

import contextlib
import errno
import itertools
import math
import operator
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from atlas_jax.corpus._corpus import Corpus, CorpusStatistics, dropped
from atlas_jax.corpus._files import HALVES, HalfWriter, Spill, parent_of, read_half
from atlas_jax.corpus._prose import TRAINING_CHARACTERS, Document, Splitter, published_splitter, train_splitter
from atlas_jax.corpus._split import SIDES, Unique, percentile, quotas, split_documents
from atlas_jax.errors import AtlasError
from atlas_jax.files import new_directory

ReadProgress = Callable[[int, int], None]
"""Called with the numbers of documents read and of sentences so far."""


def build_corpus(
    documents: Any,
    *,
    n_fit: int | None = None,
    n_eval: int | None = None,
    at_least: int | tuple[int, int] = 1,
    percentiles: tuple[float | int, float | int] = (5, 95),
    seed: int = 0,
    weights: Mapping[str, float | int] | None = None,
    workers: int | None = None,
    directory: str | Path | None = None,
    progress: ReadProgress | None = None,
) -> Corpus:
    """Build a corpus of the sentences of ``documents``, filtered as in Appendix A.2, in two halves that share no text.

    Lengths in characters are compared with their percentiles over all sentences, duplicates included, as
    ``numpy.percentile`` (linear) gives them; a sentence of exactly a bound's length stays. A keyed 64-bit hash of the
    text then deduplicates, chooses the half by its lowest bit and orders each half, so a text never changes sides and
    neither the order of the documents nor the number of workers matters. Where a half is cut to ``n_fit`` or
    ``n_eval``, every domain keeps its share of that half, times its weight, and the first in hash order stay. A text
    that occurs in several domains belongs to the alphabetically first.

    Documents are read once and memory does not grow with them: past 32 MB, sentences wait in unnamed temporary files
    (beside ``directory``, or where ``tempfile`` puts them) of about the size of the text, and the corpus is mapped from
    a file. Without NLTK's published English model a Punkt model is trained on the first million characters of
    ``documents`` (there, alone, their order counts).

    Args:
      documents: the texts.
      n_fit: most sentences to keep for fitting; None keeps the whole half.
      n_eval: most sentences to keep for evaluation; None keeps the whole half.
      at_least: fewest sentences of either half, or of the fit half and of the eval half.
      percentiles: shortest and longest length kept, as percentiles of length.
      seed: key of the hash.
      weights: for some domains, the factor of their share where a half is cut.
      workers: processes that split sentences; None takes this one alone until the text proves long, then every CPU.
      directory: directory in which the corpus is saved, all or nothing; None keeps it until the process ends.
      progress: called after every half million characters or so.

    Returns:
      The corpus, with the counts of every step in its ``statistics``.

    Raises:
      AtlasError: if there is no text, a half has fewer than ``at_least`` sentences, an option is out of range,
        ``directory`` is something else than a corpus, or the disk is full. Too few sentences come with how many each
        filter took away.

    Example:
      >>> from atlas_jax.corpus import Document, build_corpus
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "doctest")], percentiles=(0, 100))
      >>> len(corpus.fit) + len(corpus.eval)
      5
    """
    fewest = (at_least, at_least) if isinstance(at_least, int) else at_least
    _check(percentiles, weights or {}, workers, (n_fit, n_eval, *fewest))
    target = None if directory is None else Path(directory).absolute()
    folder = None if target is None else parent_of(target)
    splitter, stream = _splitter(map(_document, documents))
    with _room(folder), Spill(folder) as spill:
        sentences = _collect(spill, split_documents(splitter, stream, seed, workers), progress)
        bounds = percentile(sentences.lengths, percentiles[0]), percentile(sentences.lengths, percentiles[1])
        chosen = _choose(sentences, bounds, (n_fit, n_eval), fewest, weights or {})
        facts = {"percentiles": tuple(map(float, percentiles)), "punkt": splitter.source, "seed": seed}
        if target is None:
            with tempfile.TemporaryFile() as fit, tempfile.TemporaryFile() as evaluation:
                return _write(chosen, (fit, evaluation), facts)
        with new_directory(target, "a corpus", overwrite=True) as partial, contextlib.ExitStack() as stack:
            files = [stack.enter_context((partial / name).open("w+b")) for name in HALVES]
            corpus = _write(chosen, (files[0], files[1]), facts)
            corpus.write_summary(partial)
        return corpus


class _Sentences(NamedTuple):
    """All sentences, those with a letter in ``spill``, and their counts."""

    spill: Spill
    domains: list[str]
    documents: int
    lengths: Counter[int]
    unlettered: Counter[int]

    @property
    def rank(self) -> Int[np.ndarray, " d"]:
        """Rank of each domain in alphabetical order."""
        rank = np.empty(len(self.domains), np.int64)
        rank[sorted(range(len(rank)), key=self.domains.__getitem__)] = np.arange(len(rank))
        return rank

    def after(self, bounds: tuple[float, float]) -> tuple[int, int, int]:
        """Count the sentences: all, those within the length bounds, and those of them with a letter."""
        within = lambda lengths: sum(count for length, count in lengths.items() if bounds[0] <= length <= bounds[1])
        after_length = within(self.lengths)
        return self.lengths.total(), after_length, after_length - within(self.unlettered)


class _Chosen(NamedTuple):
    """The numbers of sentences of each half and domain: available, and to keep."""

    sentences: _Sentences
    bounds: tuple[float, float]
    available: Int[np.ndarray, "2 d"]
    quotas: Int[np.ndarray, "2 d"]


def _collect(spill: Spill, splits: Iterable, progress: ReadProgress | None) -> _Sentences:
    numbers: dict[str, int] = {}
    documents = count = 0
    lengths: Counter[int] = Counter()
    unlettered: Counter[int] = Counter()
    for split in splits:
        ids = [numbers.setdefault(domain, len(numbers)) for domain in split.domains]
        spill.add(split.digest, np.repeat(np.array(ids, np.int32), split.lettered), split.texts)
        lengths.update(split.lengths)
        unlettered.update(split.unlettered)
        documents += len(ids)
        count += split.lengths.total()
        if progress is not None:
            progress(documents, count)
    if not lengths:
        raise AtlasError("the corpus has no usable text; give documents that hold sentences")
    return _Sentences(spill, list(numbers), documents, lengths, unlettered)


def _choose(
    sentences: _Sentences,
    bounds: tuple[float, float],
    wanted: tuple[int | None, int | None],
    fewest: tuple[int, int],
    weights: Mapping[str, float | int],
) -> _Chosen:
    if unknown := sorted(set(weights) - set(sentences.domains)):
        known = ", ".join(sorted(sentences.domains)[:20])
        raise AtlasError(f"there is no domain '{unknown[0]}' to weigh; the domains are {known}")
    rank, width = sentences.rank, len(sentences.domains)
    available = np.zeros((SIDES, width), np.int64)
    for bucket in sentences.spill.buckets():
        available += Unique.from_bucket(bucket, rank, *bounds).counts(width)
    if any(size < least for size, least in zip(available.sum(axis=1).tolist(), fewest, strict=True)):
        raise AtlasError(_too_few(sentences, bounds, available, wanted, fewest))
    shares = available.copy()
    for side, number in enumerate(wanted):
        if number is not None:
            counts = Counter(dict(zip(sentences.domains, available[side].tolist(), strict=True)))
            share = quotas(counts, number, weights)
            shares[side] = [share[name] for name in sentences.domains]
    return _Chosen(sentences, bounds, available, shares)


def _too_few(
    sentences: _Sentences,
    bounds: tuple[float, float],
    available: Int[np.ndarray, "2 d"],
    wanted: tuple[int | None, int | None],
    fewest: tuple[int, int],
) -> str:
    """Return the error where too few sentences are left: the numbers that each filter dropped."""
    steps = sentences.after(bounds)
    there = available.sum(axis=1).tolist()
    removed = ", ".join(f"{count:,} {name}" for name, count in dropped(*steps, sum(there)).items())
    fix = "give more text" + ", or ask for fewer sentences" * any(map(operator.eq, wanted, fewest))
    kept = f"shortest {bounds[0]:g} and longest {bounds[1]:g} characters"
    left = f"{there[0]:,} to fit on and {there[1]:,} held out where {fewest[0]:,} and {fewest[1]:,} are needed"
    return f"too few sentences: of {steps[0]:,} found, {removed} ({kept}), which leaves {left}; {fix}"


def _write(chosen: _Chosen, files: tuple[IO[bytes], IO[bytes]], facts: dict) -> Corpus:
    sentences, left = chosen.sentences, chosen.quotas.copy()
    n_fit = int(left[0].sum())
    names, rank = pa.array(sentences.domains, pa.large_string()), sentences.rank
    lengths: Counter[int] = Counter()
    with HalfWriter(files[0], 0) as fit, HalfWriter(files[1], n_fit) as evaluation:
        for bucket in sentences.spill.buckets():
            kept = Unique.from_bucket(bucket, rank, *chosen.bounds).within(left)
            left -= kept.counts(len(sentences.domains))
            lengths.update(kept.length.tolist())
            texts = bucket["text"].combine_chunks()
            for side, writer in enumerate((fit, evaluation)):
                here = kept.take(kept.side == side)
                writer.write(texts.take(pa.array(here.row)), names.take(pa.array(here.domain)))
    halves = [read_half(file) for file in files]
    statistics = _statistics(chosen, lengths, facts)
    return Corpus.of_halves(*halves, statistics)


def _statistics(chosen: _Chosen, kept: Counter[int], facts: dict) -> CorpusStatistics:
    split, after_length, after_letters = chosen.sentences.after(chosen.bounds)
    n, total = kept.total(), sum(length * count for length, count in kept.items())
    squares = sum(length**2 * count for length, count in kept.items())
    fit_available, eval_available = chosen.available.sum(axis=1).tolist()
    return CorpusStatistics(
        documents=chosen.sentences.documents,
        split=split,
        after_length=after_length,
        after_letters=after_letters,
        unique=fit_available + eval_available,
        fit_available=fit_available,
        eval_available=eval_available,
        length_bounds=chosen.bounds,
        mean_chars=total / n if n else 0.0,
        std_chars=math.sqrt(n * squares - total**2) / n if n else 0.0,
        **facts,
    )


def _document(document: Document) -> Document:
    if not isinstance(document, Document):
        kind = type(document).__name__
        raise AtlasError(f"a corpus is built of Document(text, domain, source), not of {kind}; make documents of it")
    return document


def _splitter(documents: Iterator[Document]) -> tuple[Splitter, Iterator[Document]]:
    """Return the published splitter, or one trained on the head of the stream, and the whole stream."""
    if (splitter := published_splitter()) is not None:
        return splitter, documents
    head, characters = [], 0
    for document in documents:
        head.append(document)
        characters += len(document.text)
        if characters >= TRAINING_CHARACTERS:
            break
    return train_splitter([document.text for document in head]), itertools.chain(head, documents)


def _check(
    percentiles: tuple[float | int, float | int],
    weights: Mapping[str, float | int],
    workers: int | None,
    sizes: tuple[int | None, ...],
) -> None:
    if not 0 <= percentiles[0] <= percentiles[1] <= 100:
        raise AtlasError(f"percentiles {percentiles} are no range; give two ascending numbers between 0 and 100")
    if wrong := [name for name, weight in weights.items() if not 0 < weight < math.inf]:
        raise AtlasError(f"the weight {weights[wrong[0]]} of '{wrong[0]}' is no positive number; leave its text out")
    if wrong := [size for size in sizes if size is not None and size < 0]:
        raise AtlasError(f"a half cannot have {wrong[0]} sentences; give a number from 0 up")
    if workers is not None and workers < 1:
        raise AtlasError(f"there must be at least 1 worker, not {workers}")


@contextlib.contextmanager
def _room(folder: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        place = tempfile.gettempdir() if folder is None else folder
        raise AtlasError(f"the disk of '{place}' is full; a corpus needs about twice the size of its text") from error
