"""BM25: texts that share rare words with the query."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from atlas_jax.labels._terms import terms


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
    def of(cls, counts: sp.csr_matrix, vocabulary: Mapping[str, int], k: float = 1.2, b: float = 0.75) -> "BM25":
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
        """BM25 of every text for a query."""
        columns = [self.vocabulary[term] for term in terms(text) if term in self.vocabulary]
        return np.asarray(self.contributions[:, columns].sum(axis=1), np.float64).ravel()


def vocabulary_of(bags: Sequence[Sequence[str]]) -> dict[str, int]:
    """A column for each word, in alphabetical order."""
    return {word: i for i, word in enumerate(sorted({word for bag in bags for word in bag}))}


def document_frequency(counts: sp.csr_matrix) -> Int[np.ndarray, " words"]:
    """In how many texts each word occurs."""
    return np.bincount(counts.indices, minlength=counts.shape[1])
