"""From documents to a corpus (Appendix A.2): split, filter by length, drop what has no letters, deduplicate, halve."""

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
"""Called with the documents read and the sentences found so far."""


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
    """Sentences of ``documents`` filtered as in Appendix A.2, in two halves that share no text.

    Lengths in characters are compared with their percentiles over all sentences found, duplicates included, as
    ``numpy.percentile`` (linear) gives them; a sentence of exactly a bound's length stays. A keyed 64-bit hash of the
    text then deduplicates, chooses the half by its lowest bit and orders each half, so a text never changes sides and
    neither the order of the documents nor the number of workers has a say. Where a half is cut to ``n_fit`` or
    ``n_eval``, every domain keeps its share of that half, times its weight, and the first in hash order stay. A text
    found in several domains belongs to the alphabetically first.

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
      weights: for some domains, how many times their share of the text they get where a half is cut.
      workers: processes that split sentences; None takes this one alone until the text proves long, then every CPU.
      directory: where the corpus is saved, all or nothing; None keeps it until the process ends.
      progress: called after every half million characters or so.

    Returns:
      The corpus, with the counts of every step in its ``statistics``.

    Raises:
      AtlasError: if there is no text, a half has fewer than ``at_least`` sentences, an option is out of range,
        ``directory`` is something else than a corpus, or the disk is full. Too few sentences come with how many each
        filter took away.

    Example:
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
        found = _collect(spill, split_documents(splitter, stream, seed, workers), progress)
        bounds = percentile(found.lengths, percentiles[0]), percentile(found.lengths, percentiles[1])
        chosen = _choose(found, bounds, (n_fit, n_eval), fewest, weights or {})
        facts = {"percentiles": tuple(map(float, percentiles)), "punkt": splitter.source, "seed": seed}
        if target is None:
            with tempfile.TemporaryFile() as fit, tempfile.TemporaryFile() as evaluation:
                return _write(chosen, (fit, evaluation), facts)
        with new_directory(target, "a corpus", overwrite=True) as partial, contextlib.ExitStack() as stack:
            files = [stack.enter_context((partial / name).open("w+b")) for name in HALVES]
            corpus = _write(chosen, (files[0], files[1]), facts)
            corpus.write_summary(partial)
        return corpus


class _Found(NamedTuple):
    """All sentences, those with a letter in ``spill``, and what was counted on the way."""

    spill: Spill
    domains: list[str]
    documents: int
    lengths: Counter[int]
    unlettered: Counter[int]

    @property
    def rank(self) -> Int[np.ndarray, " d"]:
        """Place of each domain in alphabetical order."""
        rank = np.empty(len(self.domains), np.int64)
        rank[sorted(range(len(rank)), key=self.domains.__getitem__)] = np.arange(len(rank))
        return rank

    def after(self, bounds: tuple[float, float]) -> tuple[int, int, int]:
        """How many sentences there are, are left after the length bounds, and after those without a letter go."""
        within = lambda lengths: sum(count for length, count in lengths.items() if bounds[0] <= length <= bounds[1])
        after_length = within(self.lengths)
        return self.lengths.total(), after_length, after_length - within(self.unlettered)


class _Chosen(NamedTuple):
    """How many sentences of each half and domain there are and how many of these stay."""

    found: _Found
    bounds: tuple[float, float]
    available: Int[np.ndarray, "2 d"]
    quotas: Int[np.ndarray, "2 d"]


def _collect(spill: Spill, splits: Iterable, progress: ReadProgress | None) -> _Found:
    numbers: dict[str, int] = {}
    documents = sentences = 0
    lengths: Counter[int] = Counter()
    unlettered: Counter[int] = Counter()
    for split in splits:
        ids = [numbers.setdefault(domain, len(numbers)) for domain in split.domains]
        spill.add(split.digest, np.repeat(np.array(ids, np.int32), split.found), split.texts)
        lengths.update(split.lengths)
        unlettered.update(split.unlettered)
        documents += len(ids)
        sentences += split.lengths.total()
        if progress is not None:
            progress(documents, sentences)
    if not lengths:
        raise AtlasError("the corpus has no usable text; give documents that hold sentences")
    return _Found(spill, list(numbers), documents, lengths, unlettered)


def _choose(
    found: _Found,
    bounds: tuple[float, float],
    wanted: tuple[int | None, int | None],
    fewest: tuple[int, int],
    weights: Mapping[str, float | int],
) -> _Chosen:
    if unknown := sorted(set(weights) - set(found.domains)):
        known = ", ".join(sorted(found.domains)[:20])
        raise AtlasError(f"there is no domain '{unknown[0]}' to weigh; the domains are {known}")
    rank, width = found.rank, len(found.domains)
    available = np.zeros((SIDES, width), np.int64)
    for bucket in found.spill.buckets():
        available += Unique.from_bucket(bucket, rank, *bounds).counts(width)
    if any(size < least for size, least in zip(available.sum(axis=1).tolist(), fewest, strict=True)):
        raise AtlasError(_too_few(found, bounds, available, wanted, fewest))
    shares = available.copy()
    for side, number in enumerate(wanted):
        if number is not None:
            counts = Counter(dict(zip(found.domains, available[side].tolist(), strict=True)))
            share = quotas(counts, number, weights)
            shares[side] = [share[name] for name in found.domains]
    return _Chosen(found, bounds, available, shares)


def _too_few(
    found: _Found,
    bounds: tuple[float, float],
    available: Int[np.ndarray, "2 d"],
    wanted: tuple[int | None, int | None],
    fewest: tuple[int, int],
) -> str:
    """What became of the sentences where too few are left."""
    steps = found.after(bounds)
    there = available.sum(axis=1).tolist()
    told = ", ".join(f"{count:,} {name}" for name, count in dropped(*steps, sum(there)).items())
    fix = "give more text" + ", or ask for fewer sentences" * any(map(operator.eq, wanted, fewest))
    kept = f"shortest {bounds[0]:g} and longest {bounds[1]:g} characters"
    left = f"{there[0]:,} to fit on and {there[1]:,} held out where {fewest[0]:,} and {fewest[1]:,} are needed"
    return f"too few sentences: of {steps[0]:,} found, {told} ({kept}), which leaves {left}; {fix}"


def _write(chosen: _Chosen, files: tuple[IO[bytes], IO[bytes]], facts: dict) -> Corpus:
    found, left = chosen.found, chosen.quotas.copy()
    n_fit = int(left[0].sum())
    names, rank = pa.array(found.domains, pa.large_string()), found.rank
    lengths: Counter[int] = Counter()
    with HalfWriter(files[0], 0) as fit, HalfWriter(files[1], n_fit) as evaluation:
        for bucket in found.spill.buckets():
            kept = Unique.from_bucket(bucket, rank, *chosen.bounds).within(left)
            left -= kept.counts(len(found.domains))
            lengths.update(kept.length.tolist())
            texts = bucket["text"].combine_chunks()
            for side, writer in enumerate((fit, evaluation)):
                here = kept.take(kept.side == side)
                writer.write(texts.take(pa.array(here.row)), names.take(pa.array(here.domain)))
    halves = [read_half(file) for file in files]
    statistics = _statistics(chosen, lengths, facts)
    return Corpus.of_halves(*halves, statistics)


def _statistics(chosen: _Chosen, kept: Counter[int], facts: dict) -> CorpusStatistics:
    split, after_length, after_letters = chosen.found.after(chosen.bounds)
    n, total = kept.total(), sum(length * count for length, count in kept.items())
    squares = sum(length**2 * count for length, count in kept.items())
    fit_available, eval_available = chosen.available.sum(axis=1).tolist()
    return CorpusStatistics(
        documents=chosen.found.documents,
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
