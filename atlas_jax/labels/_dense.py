"""Texts as unit vectors: latent semantic analysis of the texts themselves, and averages of static word vectors."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from scipy.sparse.linalg import svds

from atlas_jax.labels._lexical import document_frequency
from atlas_jax.labels._static import StaticEmbedding
from atlas_jax.labels._terms import count_matrix, terms

LSA_ROWS = 50_000
COMMON_DIRECTIONS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """Texts in a space of meaning.

    Attributes:
      documents: unit rows, zero for a text of unknown words only.
      embed: puts a query into the same space.
    """

    documents: Float[np.ndarray, "n w"]
    embed: Callable[[str], Float[np.ndarray, " w"]]

    def scores(self, text: str) -> Float[np.ndarray, " n"]:
        """Cosine similarity of every text to a query."""
        return (self.documents @ self.embed(text)).astype(np.float64)


def unit(rows: Float[np.ndarray, "*n w"]) -> Float[np.ndarray, "*n w"]:
    """Rows of norm one; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def lsa(counts: sp.csr_matrix, vocabulary: Mapping[str, int], width: int = 100) -> Dense | None:
    """Latent semantic analysis: right singular vectors of the log-TF-IDF matrix of the texts, None for tiny ones.

    Words that occur in one text only are left out. The space is fitted to at most 50,000 evenly spaced texts.
    """
    containing = document_frequency(counts)
    rarity = np.where(containing > 1, np.log((1 + counts.shape[0]) / (1 + containing)) + 1, 0)
    weigh = lambda x: _log_weighted(x, rarity)
    weighted = weigh(counts)
    fitted = weighted[np.unique(np.linspace(0, counts.shape[0] - 1, LSA_ROWS).astype(int))]
    rank = min(width, min(fitted.shape) - 1)
    if rank < 2:
        return None
    start = np.random.default_rng(0).standard_normal(min(fitted.shape)).astype(np.float32)
    basis = svds(fitted, k=rank, v0=start, return_singular_vectors="vh")[2].T

    def embed(text: str) -> Float[np.ndarray, " w"]:
        ids = [vocabulary[term] for term in terms(text) if term in vocabulary]
        return unit(weigh(count_matrix([ids], len(vocabulary))) @ basis)[0]

    return Dense(unit(weighted @ basis), embed)


def averaged(texts: Sequence[str], embedding: StaticEmbedding) -> Dense:
    """Means of static word vectors, weighted by how rare a token is among the texts.

    The two strongest common directions of the texts are removed (fewer below width 40): what all descriptions share
    tells none apart.
    """
    vectors = embedding.vectors
    counts = count_matrix(embedding.token_ids(texts), len(vectors))
    rarity = np.log((1 + len(texts)) / (1 + document_frequency(counts))).astype(np.float32)
    vectors = rarity[:, None] * vectors
    raw = unit(counts @ vectors)
    width = vectors.shape[1]
    common = np.linalg.eigh(raw.T @ raw)[1][:, width - min(COMMON_DIRECTIONS, width // 20) :]
    clean = lambda rows: unit(rows - (rows @ common) @ common.T)
    embed = lambda text: clean(unit(count_matrix(embedding.token_ids([text]), len(vectors)) @ vectors))[0]
    return Dense(clean(raw), embed)


def _log_weighted(counts: sp.csr_matrix, rarity: Float[np.ndarray, " words"]) -> sp.csr_matrix:
    """Unit rows of (1 + log f) * rarity."""
    weighted = counts.copy()
    weighted.data = (1 + np.log(counts.data)) * rarity[counts.indices]
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    per_entry = np.repeat(norms, np.diff(weighted.indptr))
    weighted.data = (weighted.data / np.where(per_entry > 0, per_entry, 1)).astype(np.float32)
    return weighted
