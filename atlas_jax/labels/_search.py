"""Search over labels: by words, by meaning, and by both; and the index on disk, beside its labels."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.labels._embedders import Embedder, StaticEmbedding
from atlas_jax.labels._labels import Labels
from atlas_jax.labels._retrievers import BM25, LSA, Averaged, Dense, Embedded, count_matrix, terms, vocabulary_of
from atlas_jax.rows import unit
from atlas_jax.table import Column, Shown, Table

FEEDBACK = 10
_VERSION = 2
_HEAD = "index.json"
_CSC = ("data", "indices", "indptr")
_ARRAYS = {"lsa": ("documents", "basis", "rarity"), "static": ("documents", "rarity", "common")}


class Hit(NamedTuple):
    """One result of a search.

    Attributes:
      index: the feature.
      label: its chosen description.
      score: the retriever's score, comparable within one query only.
      weight: the score as a share of the best one, 0 to 1, for use in a concept query.

    Example:
      >>> from atlas_jax.labels import Hit
      >>> Hit(3, "dogs and cats", score=2.5, weight=1.0).label
      'dogs and cats'
    """

    index: int
    label: str
    score: float
    weight: float


def hits_table(title: str, hits: Sequence[Hit]) -> Table:
    """Tabulate atlas features with their scores and their weights in the query.

    Example:
      >>> from atlas_jax.labels import Hit, hits_table
      >>> hits_table("Atlas features", [Hit(3, "a dog's bark", 9.0, 1.0)]).rows
      [(3, "a dog's bark", 9.0, 1.0)]
    """
    columns = Column("feature", "d"), Column("label"), Column("score", ".3f"), Column("weight", ".3f")
    return Table(title, columns, [tuple(hit) for hit in hits])


@dataclasses.dataclass(frozen=True, eq=False)
class TextIndex:
    """The chosen labels of an atlas, searchable by text.

    Retrievers: ``bm25`` (shared rare words), ``lsa`` (latent semantic analysis of the labels themselves), ``static``
    (static word vectors; ``static_2``, ... where several were given), and ``hybrid``, the default. Hybrid adds the
    z-scores of all others, moves the dense queries halfway to the mean of the ten best labels, and adds once more;
    labels that share a rare word with the text come first, and with far larger weights.

    Attributes:
      features: the feature of each searchable label.
      texts: those labels.
      lexical: the BM25 retriever.
      dense: the others by name.

    Example:
      >>> from atlas_jax.labels import Label, Labels, TextIndex
      >>> labels = Labels.from_rows([Label(3, "dogs and cats"), Label(7, "stock prices"), Label(8, "a dog's bark")])
      >>> index = TextIndex.from_labels(labels)
      >>> [hit.index for hit in index.search("dog", k=2, method="bm25")], index.methods
      ([3, 8], ('hybrid', 'bm25', 'static'))
      >>> index.scores("stock", method="bm25").argmax().item()
      1
    """

    features: Int[np.ndarray, " n"]
    texts: tuple[str, ...]
    lexical: BM25
    dense: Mapping[str, Dense]

    @classmethod
    def from_labels(cls, labels: Labels, embeddings: Sequence[StaticEmbedding] | None = None) -> "TextIndex":
        """Index the chosen labels.

        Args:
          labels: the labels of an atlas.
          embeddings: static word vectors to use; by default those that come with the package.

        Raises:
          AtlasError: where no feature has a label.
        """
        features = labels.described()
        if not features:
            raise AtlasError("these labels are empty, so there is nothing to search; give feature ids instead")
        texts = chosen_texts(labels, features)
        bags = [terms(text) for text in texts]
        vocabulary = vocabulary_of(bags)
        counts = count_matrix([[vocabulary[term] for term in bag] for bag in bags], len(vocabulary))
        embeddings = [StaticEmbedding.default()] if embeddings is None else embeddings
        dense: dict[str, Dense | None] = {"lsa": LSA.from_counts(counts, vocabulary)}
        for i, embedding in enumerate(embeddings, 1):
            dense["static" if i == 1 else f"static_{i}"] = Averaged.from_texts(texts, embedding)
        dense = {name: one for name, one in dense.items() if one is not None}
        return cls(np.array(features), texts, BM25.from_counts(counts, vocabulary), dense)

    of = from_labels

    def with_embedder(self, embedder: Embedder) -> "TextIndex":
        """Return an index of the same labels by ``bm25`` and ``embedder``, and by both as ``hybrid``.

        Embeds every label once; see :func:`open_embedder` for a cache of the vectors.

        Example:
          >>> import numpy as np
          >>> from atlas_jax.labels import Label, Labels, TextIndex
          >>> class Lengths:
          ...     name = "lengths"
          ...     def encode(self, texts): return np.array([[1, len(t)] for t in texts], np.float32)
          >>> labels = Labels.from_rows([Label(3, "dogs"), Label(7, "the prices of stocks")])
          >>> TextIndex.from_labels(labels).with_embedder(Lengths()).search("cats", method="embedder")[0].index
          3
        """
        return dataclasses.replace(self, dense={"embedder": Embedded.from_texts(self.texts, embedder)})

    @property
    def methods(self) -> tuple[str, ...]:
        """The retrievers of this index."""
        return ("hybrid", "bm25", *self.dense)

    def search(self, text: str, k: int = 20, method: str = "hybrid") -> list[Hit]:
        """Return the k features whose labels fit a text best, best first; none where the text has no known word.

        Raises:
          AtlasError: for a blank text, k below 1, or an unknown retriever.
        """
        if k < 1:
            raise AtlasError(f"a search returns at least one feature, not {k}")
        scores = self.scores(text, method)
        if not np.any(scores):
            return []
        best = _best(scores, k)
        if method == "bm25":
            best = best[scores[best] > 0]
        top = scores[best[0]]
        share = np.clip(scores[best] / top, 0, 1) if top > 0 else np.ones(len(best))
        ranked = zip(best.tolist(), scores[best].tolist(), share.tolist(), strict=True)
        hits = [Hit(int(self.features[i]), self.texts[i], score, weight) for i, score, weight in ranked]
        return Shown(hits, partial(hits_table, f"Features for “{text}”"))

    def scores(self, text: str, method: str = "hybrid") -> Float[np.ndarray, " n"]:
        """Return the score of every label, in the order of ``features``; all zero where the text has no known word.

        Raises:
          AtlasError: for a blank text or an unknown retriever.
        """
        if not isinstance(text, str) or not text.strip():
            raise AtlasError("the text to search for is blank" if isinstance(text, str) else f"{text!r} is no text")
        if method not in self.methods:
            raise AtlasError(f"there is no retriever '{method}'; this index has {', '.join(self.methods)}")
        if method == "bm25":
            return self.lexical.scores(text)
        if method == "hybrid":
            return self._hybrid(text)
        return (self.dense[method].documents @ self.dense[method].embed(text)).astype(np.float64)

    def _hybrid(self, text: str) -> Float[np.ndarray, " n"]:
        lexical = self.lexical.scores(text)
        queries = {name: one.embed(text) for name, one in self.dense.items()}
        if not np.any(lexical) and not any(map(np.any, queries.values())):
            return lexical
        first = self._added(lexical, queries)
        best = _best(first, FEEDBACK)
        moved = {name: unit(q + unit(self.dense[name].documents[best].mean(0))) for name, q in queries.items()}
        return self._added(lexical, moved)

    def _added(
        self, lexical: Float[np.ndarray, " n"], queries: Mapping[str, Float[np.ndarray, " w"]]
    ) -> Float[np.ndarray, " n"]:
        similarities = (self.dense[name].documents @ query for name, query in queries.items())
        return _z_score(lexical) + sum(_z_score(one.astype(np.float64)) for one in similarities)


def chosen_texts(labels: Labels, features: Sequence[int]) -> tuple[str, ...]:
    """Return the chosen descriptions of some features."""
    return tuple(labels.entries[i][0].description for i in features)


def _best(scores: Float[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    """Return the k places of highest score, best first, the first of equals first; without sorting all of them."""
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= limit)
    return places[np.argsort(-scores[places], kind="stable")][:k]


def _z_score(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Scale to zero mean and unit deviation; where all are equal, to one for a match and zero for none."""
    deviation = scores.std()
    return (scores - scores.mean()) / deviation if deviation > 0 else np.sign(scores)


def open_index(labels: Labels, directory: str | Path | None = None) -> TextIndex:
    """Return the index of some labels by the package's own retrievers: read from a directory, or made where none fits.

    An index on disk is used only if it was made of exactly these descriptions and word vectors. Arrays are mapped
    into memory, not read.

    Args:
      labels: the labels of an atlas.
      directory: directory that :func:`write_index` wrote; None makes the index anew.

    Raises:
      AtlasError: where no feature has a label, or the files are damaged.

    Example:
      >>> import tempfile
      >>> from atlas_jax.labels import Label, Labels, open_index, write_index
      >>> labels = Labels.from_rows([Label(3, "dogs and cats"), Label(7, "stock prices")])
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     write_index(labels, directory)
      ...     open_index(labels, directory).search("dogs", method="bm25")[0].index
      3
    """
    index = None if directory is None else _read(Path(directory), labels)
    return TextIndex.from_labels(labels) if index is None else index


def write_index(labels: Labels, directory: str | Path) -> None:
    """Make the index of some labels and write it into a directory, for :func:`open_index`.

    Raises:
      AtlasError: where no feature has a label.

    Example:
      >>> import os
      >>> import tempfile
      >>> from atlas_jax.labels import Label, Labels, write_index
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     write_index(Labels.from_rows([Label(3, "dogs and cats")]), directory)
      ...     "index.json" in os.listdir(directory)
      True
    """
    index, directory = TextIndex.from_labels(labels), Path(directory)
    lexical = index.lexical.contributions
    arrays = {"features": index.features} | {f"bm25_{name}": getattr(lexical, name) for name in _CSC}
    for part, dense in index.dense.items():
        arrays |= {f"{part}_{name}": getattr(dense, name) for name in _ARRAYS[part]}
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", np.ascontiguousarray(array))
    head = {"version": _VERSION, "fingerprint": _fingerprint(labels), "parts": list(index.dense)}
    head["vocabulary"] = list(index.lexical.vocabulary)
    (directory / _HEAD).write_text(json.dumps(head, ensure_ascii=False), encoding="utf-8")


def _read(directory: Path, labels: Labels) -> TextIndex | None:
    """Read the index in a directory, None where there is none of these labels."""
    if not (directory / _HEAD).is_file():
        return None
    array = lambda name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    try:
        head = json.loads((directory / _HEAD).read_text(encoding="utf-8"))
        if (head["version"], head["fingerprint"]) != (_VERSION, _fingerprint(labels)):
            return None
        vocabulary = {word: i for i, word in enumerate(head["vocabulary"])}
        features = np.array(array("features"))
        csc = tuple(array(f"bm25_{name}") for name in _CSC)
        lexical = BM25(sp.csc_matrix(csc, (len(features), len(vocabulary)), copy=False), vocabulary)
        arrays = {part: {name: array(f"{part}_{name}") for name in _ARRAYS[part]} for part in head["parts"]}
        if any(len(part["documents"]) != len(features) for part in arrays.values()):
            raise ValueError("its arrays are of different lengths")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AtlasError(f"the search index in {directory} is damaged ({error}); delete the folder") from error
    dense: dict[str, Dense] = {}
    if "lsa" in arrays:
        dense["lsa"] = LSA(**arrays["lsa"], vocabulary=vocabulary)
    if "static" in arrays:
        dense["static"] = Averaged(**arrays["static"], embedding=StaticEmbedding.default())
    return TextIndex(features, chosen_texts(labels, features.tolist()), lexical, dense)


def _fingerprint(labels: Labels) -> str:
    """Hash all that determines the index."""
    features = labels.described()
    digest = hashlib.sha256(np.ascontiguousarray(StaticEmbedding.default().table))
    digest.update("\0".join(chosen_texts(labels, features)).encode())
    digest.update(np.array(features, np.int64))
    return digest.hexdigest()
