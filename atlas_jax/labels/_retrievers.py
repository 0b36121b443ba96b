"""Retrievers: BM25, and texts as unit vectors by latent semantic analysis, by static word vectors, by an embedder.

BM25 is not left to bm25s: its scores are the same to 2e-7, but it indexes 262,144 labels in 8 s where this takes 0.1 s,
because the counts are there for the latent semantic analysis.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from atlas_jax.labels._embedders import Embedder, StaticEmbedding
from atlas_jax.rows import unit

_WORD = re.compile(r"[^\W_]+")
_FUNCTION_WORDS = (
    "a an and are as at be but by for from has have in into is it its not of on or that the their this to was were "
    "which with within"
)
_DESCRIBING_WORDS = "such particularly related various often including other especially"
_STOP = frozenset(f"{_FUNCTION_WORDS} {_DESCRIBING_WORDS}".split())
_PLURAL = (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"))
_VERB = ("ing", "ed")


def terms(text: str) -> list[str]:
    """Return the lower-case word stems of a text, without function words and the words that every description uses.

    Example:
      >>> from atlas_jax.labels import terms
      >>> terms("references to Dogs, and dog training")
      ['referenc', 'dog', 'dog', 'train']
    """
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP]


def count_matrix(bags: Sequence[Sequence[int]], width: int) -> sp.csr_matrix:
    """Count how often each of ``width`` terms occurs in each bag of term ids."""
    starts = np.cumsum([0, *map(len, bags)])
    columns = np.fromiter((i for bag in bags for i in bag), np.int32, starts[-1])
    counts = sp.csr_matrix((np.ones(len(columns), np.float32), columns, starts), (len(bags), width))
    counts.sum_duplicates()
    return counts


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    """A light English stem: no plural, no -ing or -ed, no final e, final y as i."""
    if len(word) <= 3:
        return word
    word = _without_verb_ending(_singular(word))
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


def _singular(word: str) -> str:
    for ending, replacement in _PLURAL:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + replacement
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _without_verb_ending(word: str) -> str:
    for ending in _VERB:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and re.search("[aeiouy]", stem):
            doubled = stem[-1] == stem[-2] and stem[-1] not in "lsz"
            return stem[:-1] if doubled else stem
    return word


@dataclasses.dataclass(frozen=True, eq=False)
class BM25:
    r"""Okapi BM25 over stemmed words.

    :math:`\sum_{w \in q} \log(1 + \frac{N - n_w + 1/2}{n_w + 1/2}) \frac{f_w (k + 1)}{f_w + k (1 - b + b L / \bar L)}`
    for a text of L words in which word w occurs f_w times; n_w of the N texts contain w.

    Attributes:
      contributions: the summand of every word in every text, ``[n, words]``, sparse columns.
      vocabulary: column of each word.
    """

    contributions: sp.csc_matrix
    vocabulary: Mapping[str, int]

    @classmethod
    def from_counts(
        cls, counts: sp.csr_matrix, vocabulary: Mapping[str, int], k: float = 1.2, b: float = 0.75
    ) -> "BM25":
        """Weigh the counts ``[n, words]`` of some texts."""
        n = counts.shape[0]
        containing = document_frequency(counts)
        rarity = np.log1p((n - containing + 0.5) / (containing + 0.5))
        length = np.asarray(counts.sum(axis=1)).ravel()
        saturation = k * (1 - b + b * length / max(length.mean(), 1e-9))
        entries = counts.tocoo()
        f = entries.data
        values = f * (k + 1) / (f + saturation[entries.row]) * rarity[entries.col]
        return cls(sp.csc_matrix((values, (entries.row, entries.col)), counts.shape), vocabulary)

    def scores(self, text: str) -> Float[np.ndarray, " n"]:
        """Return the BM25 of every text for a query."""
        columns = [self.vocabulary[term] for term in terms(text) if term in self.vocabulary]
        return np.asarray(self.contributions[:, columns].sum(axis=1), np.float64).ravel()


def vocabulary_of(bags: Sequence[Sequence[str]]) -> dict[str, int]:
    """Give a column to each word, in alphabetical order."""
    return {word: i for i, word in enumerate(sorted({word for bag in bags for word in bag}))}


def document_frequency(counts: sp.csr_matrix) -> Int[np.ndarray, " words"]:
    """Count the texts in which each word occurs."""
    return np.bincount(counts.indices, minlength=counts.shape[1])


LSA_ROWS = 50_000
COMMON_DIRECTIONS = 2


@runtime_checkable
class Dense(Protocol):
    """Texts in a space of meaning.

    Attributes:
      documents: unit rows, zero for a text without a known word.
    """

    documents: Float[np.ndarray, "n w"]

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """Return a query as a unit vector of the same space, zero where it has no known word."""


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
    def from_counts(cls, counts: sp.csr_matrix, vocabulary: Mapping[str, int], width: int = 100) -> "LSA | None":
        """Fit to at most 50,000 evenly spaced texts, with the same result each time; None for tiny sets."""
        containing = document_frequency(counts)
        rarity = np.where(containing > 1, np.log((1 + counts.shape[0]) / (1 + containing)) + 1, 0)
        weighted = _log_weighted(counts, rarity)
        fitted = weighted[np.unique(np.linspace(0, counts.shape[0] - 1, LSA_ROWS).astype(int))]
        basis = leading_directions(fitted, width)
        if basis.shape[1] < 2:
            return None
        return cls(unit(weighted @ basis).astype(np.float32), basis.astype(np.float32), rarity, vocabulary)

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """Return a query in the same space."""
        ids = [self.vocabulary[term] for term in terms(text) if term in self.vocabulary]
        counts = _log_weighted(count_matrix([ids], len(self.vocabulary)), self.rarity)
        return unit(counts @ self.basis)[0].astype(np.float32)


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
    def from_texts(cls, texts: Sequence[str], embedding: StaticEmbedding) -> "Averaged":
        """Average the words of each text."""
        vectors = embedding.vectors
        counts = count_matrix(embedding.token_ids(texts), len(vectors))
        rarity = np.log((1 + len(texts)) / (1 + document_frequency(counts))).astype(np.float32)
        raw = unit(counts @ (rarity[:, None] * vectors))
        width = vectors.shape[1]
        common = np.linalg.eigh(raw.T @ raw)[1][:, width - min(COMMON_DIRECTIONS, width // 20) :]
        return cls(_without(raw, common), rarity, common, embedding)

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """Return a query in the same space."""
        ids = np.array(self.embedding.token_ids([text])[0], np.int64)
        total = self.rarity[ids] @ self.embedding.table[self.embedding.rows[ids]]
        return _without(unit(total[None]), self.common)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Texts as vectors of the user's own embedder.

    Attributes:
      documents: unit rows.
      embedder: the embedder.
    """

    documents: Float[np.ndarray, "n w"]
    embedder: Embedder

    @classmethod
    def from_texts(cls, texts: Sequence[str], embedder: Embedder) -> "Embedded":
        """Embed the texts."""
        return cls(unit(embedder.encode(texts)), embedder)

    def embed(self, text: str) -> Float[np.ndarray, " w"]:
        """Return a query in the same space."""
        return unit(self.embedder.encode([text]))[0]


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


BLOCK = 32
DIMENSION = 768
GAP = 1e-4
FRESH = 1e-10


def leading_directions(matrix: sp.csr_matrix, width: int) -> Float[np.ndarray, "columns w"]:
    """Return the right singular vectors of the ``width`` largest singular values, float64, largest first.

    Never more than one less than the smaller side, and fewer where the last would be one of several whose singular
    values differ by less than a ten-thousandth of the largest: any mixture of these could stand for it, so that all of
    them are left out. Computed by the Rayleigh-Ritz method in a block Krylov space with a fixed start, or in the
    whole space of the columns that are not zero where its dimension is at most 768.

    Example:
      >>> import numpy as np
      >>> import scipy.sparse as sp
      >>> from atlas_jax.labels._retrievers import leading_directions
      >>> directions = leading_directions(sp.csr_matrix(np.diag([3.0, 2.0, 2.0, 1.0])), 2)
      >>> np.abs(directions).round(6).T.tolist()
      [[1.0, 0.0, 0.0, 0.0]]
    """
    used = np.unique(matrix.indices[matrix.data != 0])
    kept = matrix[:, used]
    space = _krylov(kept) if len(used) > DIMENSION else np.eye(len(used))
    image = kept @ space
    squares, vectors = np.linalg.eigh(image.T @ image)
    values = np.sqrt(np.maximum([*squares[::-1], 0.0], 0))[: min(width, min(matrix.shape) - 1) + 1]
    rank = max(np.flatnonzero(values[:-1] - values[1:] > GAP * values[0]) + 1, default=0)
    directions = np.zeros((matrix.shape[1], rank))
    directions[used] = space @ vectors[:, ::-1][:, :rank]
    return directions


def _krylov(matrix: sp.csr_matrix) -> Float[np.ndarray, "columns d"]:
    """Return an orthonormal basis of the block Krylov space of the Gram matrix and random vectors."""
    transposed, random = matrix.T.tocsr(), np.random.default_rng(0)
    basis = np.zeros((matrix.shape[1], DIMENSION))
    block = np.zeros((matrix.shape[1], BLOCK))
    for start in range(0, DIMENSION, BLOCK):
        before = basis[:, :start]
        # Without fresh vectors nothing but rounding would be left where the powers span no more than what came before.
        block = block + FRESH * random.standard_normal(block.shape)
        for _ in range(2):  # once leaves what rounding adds
            block = np.linalg.qr(block - before @ (before.T @ block))[0]
        basis[:, start : start + BLOCK] = block
        block = transposed @ (matrix @ block)
    return basis
