"""Texts as unit vectors: latent semantic analysis, averages of static word vectors, and embedders of one's own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from atlas_jax.labels._embedders import Embedder
from atlas_jax.labels._leading import leading_directions
from atlas_jax.labels._lexical import document_frequency
from atlas_jax.labels._static import StaticEmbedding
from atlas_jax.labels._terms import count_matrix, terms

LSA_ROWS = 50_000
COMMON_DIRECTIONS = 2


@runtime_checkable
class Dense(Protocol):
    """Texts in a space of meaning.

    Attributes:
      documents: unit rows, zero for a text of which nothing is known.
    """

    documents: Float[np.ndarray, "n w"]

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """A query as a unit vector of the same space, zero where nothing of it is known."""


@dataclasses.dataclass(frozen=True, eq=False)
class LSA:
    """Texts by latent semantic analysis: the log-TF-IDF matrix of the texts times its right singular vectors.

    Attributes:
      documents: unit rows.
      basis: right singular vectors, ``[words, w]``.
      rarity: inverse document frequency of each word, 0 for one that a single text has.
      vocabulary: row of each word.
    """

    documents: Float[np.ndarray, "n w"]
    basis: Float[np.ndarray, "words w"]
    rarity: Float[np.ndarray, " words"]
    vocabulary: Mapping[str, int]

    @classmethod
    def of(cls, counts: sp.csr_matrix, vocabulary: Mapping[str, int], width: int = 100) -> "LSA | None":
        """Fit to at most 50,000 evenly spaced texts, alike to the bit each time; None for tiny sets."""
        containing = document_frequency(counts)
        rarity = np.where(containing > 1, np.log((1 + counts.shape[0]) / (1 + containing)) + 1, 0)
        weighted = _log_weighted(counts, rarity)
        fitted = weighted[np.unique(np.linspace(0, counts.shape[0] - 1, LSA_ROWS).astype(int))]
        basis = leading_directions(fitted, width)
        if basis.shape[1] < 2:
            return None
        return cls(unit(weighted @ basis), basis.astype(np.float32), rarity, vocabulary)

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """A query in the same space."""
        ids = [self.vocabulary[term] for term in terms(text) if term in self.vocabulary]
        return unit(_log_weighted(count_matrix([ids], len(self.vocabulary)), self.rarity) @ self.basis)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Averaged:
    """Texts as means of static word vectors, weighted by how rare a token is among the texts.

    The two strongest common directions of the texts are removed (fewer below width 40): what all descriptions share
    tells none apart.

    Attributes:
      documents: unit rows.
      rarity: weight of each token.
      common: the directions removed, ``[w, directions]``.
      embedding: the word vectors.
    """

    documents: Float[np.ndarray, "n w"]
    rarity: Float[np.ndarray, " v"]
    common: Float[np.ndarray, "w c"]
    embedding: StaticEmbedding

    @classmethod
    def of(cls, texts: Sequence[str], embedding: StaticEmbedding) -> "Averaged":
        """Average the words of each text."""
        vectors = embedding.vectors
        counts = count_matrix(embedding.token_ids(texts), len(vectors))
        rarity = np.log((1 + len(texts)) / (1 + document_frequency(counts))).astype(np.float32)
        raw = unit(counts @ (rarity[:, None] * vectors))
        width = vectors.shape[1]
        common = np.linalg.eigh(raw.T @ raw)[1][:, width - min(COMMON_DIRECTIONS, width // 20) :]
        return cls(_without(raw, common), rarity, common, embedding)

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """A query in the same space."""
        ids = np.array(self.embedding.token_ids([text])[0], np.int64)
        total = self.rarity[ids] @ self.embedding.table[self.embedding.rows[ids]]
        return _without(unit(total[None]), self.common)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Texts as vectors of the user's own embedder.

    Attributes:
      documents: unit rows.
      embedder: what made them.
    """

    documents: Float[np.ndarray, "n w"]
    embedder: Embedder

    @classmethod
    def of(cls, texts: Sequence[str], embedder: Embedder) -> "Embedded":
        """Embed the texts."""
        return cls(unit(embedder.encode(texts)), embedder)

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """A query in the same space."""
        return unit(self.embedder.encode([text]))[0]


def unit(rows: Float[np.ndarray, "*n w"]) -> Float[np.ndarray, "*n w"]:
    """Rows of norm one; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def _without(rows: Float[np.ndarray, "n w"], common: Float[np.ndarray, "w c"]) -> Float[np.ndarray, "n w"]:
    return unit(rows - (rows @ common) @ common.T)


def _log_weighted(counts: sp.csr_matrix, rarity: Float[np.ndarray, " words"]) -> sp.csr_matrix:
    """Unit rows of (1 + log f) * rarity."""
    weighted = counts.astype(np.float64)
    weighted.data = (1 + np.log(weighted.data)) * rarity[weighted.indices]
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    per_entry = np.repeat(norms, np.diff(weighted.indptr))
    weighted.data = weighted.data / np.where(per_entry > 0, per_entry, 1)
    return weighted
