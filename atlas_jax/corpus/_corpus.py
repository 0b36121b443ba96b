"""The corpus of Appendix A.2: filtered, deduplicated sentences in two disjoint halves, numbered once for all models."""

import dataclasses
import hashlib
import itertools
import json
import numbers
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from atlas_jax.corpus._files import HALVES, ROWS, SUMMARY, Half, HalfWriter, read_half
from atlas_jax.errors import AtlasError
from atlas_jax.files import new_directory, reading


class CorpusStatistics(NamedTuple):
    """Statistics of the making of a corpus; every count is of sentences unless stated otherwise.

    Attributes:
      documents: documents read.
      split: sentences that the splitter made.
      after_length: left after the length percentiles.
      after_letters: left after dropping those without a single letter.
      unique: left after removing duplicates.
      fit_available: unique sentences of the fit half before it was cut to ``n_fit``.
      eval_available: unique sentences of the eval half before it was cut to ``n_eval``.
      length_bounds: shortest and longest length kept, in characters, both inclusive.
      percentiles: the percentiles of length that the bounds are.
      mean_chars: mean length of the sentences of the corpus, in characters.
      std_chars: its standard deviation.
      punkt: origin of the sentence splitter.
      seed: the key of the hash that halves and orders.

    Example:
      >>> from atlas_jax.corpus import Document, build_corpus
      >>> corpus = build_corpus([Document("Rows sum to one. Rows sum to one.", "matrices", "doctest")], at_least=0)
      >>> corpus.statistics.split, corpus.statistics.dropped["duplicates"]
      (2, 1)
    """

    documents: int
    split: int
    after_length: int
    after_letters: int
    unique: int
    fit_available: int
    eval_available: int
    length_bounds: tuple[float, float]
    percentiles: tuple[float, float]
    mean_chars: float
    std_chars: float
    punkt: str
    seed: int

    @property
    def dropped(self) -> dict[str, int]:
        """Number of sentences that each filter of Appendix A.2 dropped, in its order."""
        return dropped(self.split, self.after_length, self.after_letters, self.unique)


def dropped(split: int, after_length: int, after_letters: int, unique: int) -> dict[str, int]:
    """Compute the number of sentences that each filter dropped from the numbers left after each.

    Example:
      >>> from atlas_jax.corpus._corpus import dropped
      >>> dropped(100, 90, 88, 60)
      {'too short or too long': 10, 'without a letter': 2, 'duplicates': 28}
    """
    left = itertools.pairwise((split, after_length, after_letters, unique))
    names = ("too short or too long", "without a letter", "duplicates")
    return {name: before - after for name, (before, after) in zip(names, left, strict=True)}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sentences for fitting a translation and, disjoint from them, for evaluating it.

    A sentence's integer id, the only join key between models, is its position in ``fit`` followed by ``eval``. Each
    half is in the order of a hash of its texts, so the same sentences get the same ids in whatever order they were
    read. A corpus that was built or loaded holds no sentence in memory: its sequences read from mapped files.

    Two corpora are equal if their hashes and statistics are.

    Attributes:
      fit: sentences with ids ``0 .. len(fit) - 1``.
      eval: sentences with ids ``len(fit) .. len(fit) + len(eval) - 1``.
      domains: the domain of each sentence, by id.
      statistics: statistics of its making.
      hash: hexadecimal digest of all texts and domains; equal hashes mean equal ids.

    Example:
      >>> from atlas_jax.corpus import Document, build_corpus
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "doctest")], percentiles=(0, 100))
      >>> corpus.sentence(len(corpus.fit)) == corpus.eval[0]
      True
    """

    fit: Sequence[str] = dataclasses.field(compare=False)
    eval: Sequence[str] = dataclasses.field(compare=False)
    domains: Sequence[str] = dataclasses.field(compare=False)
    statistics: CorpusStatistics
    hash: str

    @classmethod
    def of_halves(cls, fit: Half, evaluation: Half, statistics: CorpusStatistics) -> "Corpus":
        """Make the corpus of two written halves."""
        domains = fit.domains + evaluation.domains
        return cls(fit.texts, evaluation.texts, domains, statistics, content_hash(fit.texts, evaluation.texts, domains))

    def __len__(self) -> int:
        return len(self.fit) + len(self.eval)

    def sentence(self, index: Any) -> str:
        """Return the sentence with this id.

        Raises:
          AtlasError: if there is no such id.
        """
        if not isinstance(index, numbers.Integral) or not 0 <= index < len(self):
            raise AtlasError(f"there is no sentence {index}; the corpus has ids 0 to {len(self) - 1}")
        return self.fit[index] if index < len(self.fit) else self.eval[index - len(self.fit)]

    def head(self, n_fit: int, n_eval: int) -> "Corpus":
        """Return the corpus of the first sentences of each half; the statistics stay those of the whole.

        Raises:
          AtlasError: if a half holds fewer.

        Example:
          >>> from atlas_jax.corpus import Document, build_corpus
          >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All are real."
          >>> corpus = build_corpus([Document(text, "matrices", "doctest")], percentiles=(0, 100))
          >>> len(corpus.head(1, 1))
          2
        """
        halves = []
        for name, half, first, wanted in (("fit", self.fit, 0, n_fit), ("eval", self.eval, len(self.fit), n_eval)):
            if not 0 <= wanted <= len(half):
                raise AtlasError(
                    f"the {name} half of this corpus has {len(half):,} sentences, not {wanted:,}; ask for fewer"
                )
            halves.append(Half(half[:wanted], self.domains[first : first + wanted]))
        return Corpus.of_halves(*halves, self.statistics)

    def domain_counts(self) -> dict[str, tuple[int, int]]:
        """Count the sentences of each domain for fitting and for evaluating, the largest domain first.

        Example:
          >>> from atlas_jax.corpus import Document, build_corpus
          >>> build_corpus([Document("Rows sum to one.", "matrices", "doctest")], at_least=0).domain_counts()
          {'matrices': (1, 0)}
        """
        split = len(self.fit)
        fit, evaluation = Counter(self.domains[:split]), Counter(self.domains[split:])
        largest = sorted(fit.keys() | evaluation.keys(), key=lambda name: (-fit[name] - evaluation[name], name))
        return {name: (fit[name], evaluation[name]) for name in largest}

    def save(self, directory: str | Path) -> None:
        """Write ``fit.arrow``, ``eval.arrow`` (``id``, ``domain``, ``text``) and ``corpus.json``, all or nothing.

        The halves are Arrow streams, which ``datasets.Dataset.from_file`` opens too. The files of a corpus already
        there are replaced, all others stay.

        Raises:
          AtlasError: if ``directory`` exists and is not a corpus.

        Example:
          >>> import tempfile
          >>> from atlas_jax.corpus import Corpus, Document, build_corpus
          >>> corpus = build_corpus([Document("Rows sum to one.", "matrices", "doctest")], at_least=0)
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     corpus.save(f"{directory}/corpus")
          ...     Corpus.load(f"{directory}/corpus").fit[0]
          'Rows sum to one.'
        """
        with new_directory(directory, "a corpus", overwrite=True) as partial:
            self._write(partial)

    def _write(self, directory: Path) -> None:
        for name, first, half in zip(HALVES, (0, len(self.fit)), (self.fit, self.eval), strict=True):
            with (directory / name).open("wb") as file, HalfWriter(file, first) as writer:
                for start in range(0, len(half), ROWS):
                    texts = list(half[start : start + ROWS])
                    domains = list(self.domains[first + start : first + start + len(texts)])
                    writer.write(pa.array(texts, pa.large_string()), pa.array(domains, pa.large_string()))
        self.write_summary(directory)

    def write_summary(self, directory: Path) -> None:
        """Write ``corpus.json``."""
        summary = {"hash": self.hash, "n_fit": len(self.fit), "n_eval": len(self.eval), **self.statistics._asdict()}
        (directory / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "Corpus":
        """Map a saved corpus, and read it once to check its hash.

        Raises:
          AtlasError: if ``directory`` is no corpus, or its sentences are not those that were saved.
        """
        source = Path(directory)
        if not (source / SUMMARY).is_file():
            raise AtlasError(f"'{source}' is not a corpus (no {SUMMARY}); make one with 'atlas-jax corpus build'")
        with reading(source / SUMMARY, "build the corpus again"):
            summary = json.loads((source / SUMMARY).read_text(encoding="utf-8"))
            statistics = {name: summary[name] for name in CorpusStatistics._fields}
            statistics |= {name: tuple(statistics[name]) for name in ("length_bounds", "percentiles")}
            expected = summary["hash"]
        halves = []
        for name in HALVES:
            with reading(source / name, "build the corpus again"):
                halves.append(_half(source / name))
        corpus = cls.of_halves(*halves, CorpusStatistics(**statistics))
        if corpus.hash != expected:
            raise AtlasError(f"the sentences in '{source}' are not those that were saved; build the corpus again")
        return corpus


def _half(path: Path) -> Half:
    with path.open("rb") as file:
        return read_half(file)


def content_hash(fit: Sequence[str], evaluation: Sequence[str], domains: Sequence[str]) -> str:
    """Hash the texts of both halves, in order, and their domains, read a block at a time.

    Example:
      >>> from atlas_jax.corpus._corpus import content_hash
      >>> content_hash(["a"], ["b"], ["x", "x"]) == content_hash(["b"], ["a"], ["x", "x"])
      False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (fit, evaluation, domains):
        digest.update(f"{len(part)}\n".encode())
        for start in range(0, len(part), ROWS):
            digest.update("".join(f"{text}\n" for text in part[start : start + ROWS]).encode())
    return digest.hexdigest()
