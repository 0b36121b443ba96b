"""The corpus of Appendix A.2: filtered, deduplicated sentences in two disjoint halves, numbered once for all models."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atlas_jax.errors import AtlasError

_SUMMARY = "corpus.json"


class CorpusStatistics(NamedTuple):
    """How a corpus came about; every count is of sentences unless it says otherwise.

    Attributes:
      documents: documents read.
      split: sentences found by the splitter.
      after_length: left after the length percentiles.
      after_letters: left after dropping those without a single letter.
      unique: left after removing duplicates.
      fit_available: unique sentences of the fit half before it was cut to ``n_fit``.
      eval_available: unique sentences of the eval half before it was cut to ``n_eval``.
      length_bounds: shortest and longest length kept, in characters, both inclusive.
      percentiles: the percentiles of length that the bounds are.
      mean_chars: mean length of the sentences of the corpus, in characters.
      std_chars: its standard deviation.
      punkt: where the sentence splitter comes from.
      seed: the key of the hash that halves and orders.
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


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sentences for fitting a translation and, disjoint from them, for evaluating it.

    A sentence's integer id, the only join key between models, is its position in ``fit + eval``. Each half is in the
    order of a hash of its texts, so the same sentences get the same ids whatever order they were read in.

    Attributes:
      fit: sentences with ids ``0 .. len(fit) - 1``.
      eval: sentences with ids ``len(fit) .. len(fit) + len(eval) - 1``.
      domains: the domain of each sentence, by id.
      statistics: how the corpus came about.
      hash: hexadecimal digest of all texts and domains; equal hashes mean equal ids.

    Example:
      >>> from atlas_jax.corpus import Document, build_corpus
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "doctest")], percentiles=(0, 100))
      >>> corpus.sentence(len(corpus.fit)) == corpus.eval[0]
      True
    """

    fit: tuple[str, ...]
    eval: tuple[str, ...]
    domains: tuple[str, ...]
    statistics: CorpusStatistics
    hash: str

    def __len__(self) -> int:
        return len(self.fit) + len(self.eval)

    def sentence(self, index: int) -> str:
        """The sentence with this id.

        Raises:
          AtlasError: if there is no such id.
        """
        if not 0 <= index < len(self):
            raise AtlasError(f"there is no sentence {index}; the corpus has ids 0 to {len(self) - 1}")
        return self.fit[index] if index < len(self.fit) else self.eval[index - len(self.fit)]

    def save(self, directory: str | Path) -> None:
        """Write ``fit.jsonl``, ``eval.jsonl`` (``id``, ``domain``, ``text``) and ``corpus.json``, all or nothing.

        A corpus already there is replaced.

        Raises:
          AtlasError: if ``directory`` exists and is not a corpus.
        """
        target = Path(directory)
        replaces = (target / _SUMMARY).is_file()
        if target.exists() and not replaces and not (target.is_dir() and not any(target.iterdir())):
            raise AtlasError(f"'{target}' exists and is not a corpus; choose another directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write(partial)
            partial.chmod(0o755)
            if replaces:
                shutil.rmtree(target)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, directory: Path) -> None:
        for name, start, half in (("fit", 0, self.fit), ("eval", len(self.fit), self.eval)):
            with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for index, text in enumerate(half, start):
                    row = {"id": index, "domain": self.domains[index], "text": text}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        summary = {"hash": self.hash, "n_fit": len(self.fit), "n_eval": len(self.eval), **self.statistics._asdict()}
        (directory / _SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "Corpus":
        """Read a saved corpus and check its hash.

        Raises:
          AtlasError: if ``directory`` is no corpus, or its sentences are not those that were saved.
        """
        source = Path(directory)
        if not (source / _SUMMARY).is_file():
            raise AtlasError(f"'{source}' is not a corpus (no {_SUMMARY}); make one with 'atlas-jax corpus build'")
        try:
            summary = json.loads((source / _SUMMARY).read_text(encoding="utf-8"))
            fit, evaluation = (_rows(source / f"{name}.jsonl") for name in ("fit", "eval"))
            domains = tuple(row["domain"] for row in fit + evaluation)
            fit_texts, eval_texts = (tuple(row["text"] for row in half) for half in (fit, evaluation))
            statistics = {name: summary[name] for name in CorpusStatistics._fields}
            expected = summary["hash"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise AtlasError(f"the corpus in '{source}' is damaged ({error}); build it again") from error
        if content_hash(fit_texts, eval_texts, domains) != expected:
            raise AtlasError(f"the sentences in '{source}' are not those that were saved; build the corpus again")
        statistics |= {name: tuple(statistics[name]) for name in ("length_bounds", "percentiles")}
        return cls(fit_texts, eval_texts, domains, CorpusStatistics(**statistics), expected)


def _rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def content_hash(fit: Sequence[str], evaluation: Sequence[str], domains: Sequence[str]) -> str:
    """Digest of the texts of both halves, in order, and of their domains.

    Example:
      >>> content_hash(["a"], ["b"], ["x", "x"]) == content_hash(["b"], ["a"], ["x", "x"])
      False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (fit, evaluation, domains):
        digest.update(f"{len(part)}\n".encode())
        for text in part:
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()
