"""Labels without a language model: the words that set a feature's strongest sentences apart from the others."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from atlas_jax.labels._labels import Label, Labels

_WORD = re.compile(r"[^\W\d_]{2,}|\d+|[^\w\s]")


class WordTable(NamedTuple):
    """Which words occur in which sentences.

    Attributes:
      words: the vocabulary, lower case.
      present: boolean ``[sentences, words]``, sparse rows.
      first: id of the first sentence.
    """

    words: list[str]
    present: sp.csr_matrix
    first: int

    @classmethod
    def of(cls, texts: Sequence[str], *, first: int = 0, min_count: int = 5) -> "WordTable":
        """Words of at least two letters, numbers and punctuation marks that occur in ``min_count`` sentences or more.

        Example:
          >>> WordTable.of(["A red ball.", "a red hat", "blue"], min_count=2).words
          ['red']
        """
        bags = [words_of(text) for text in texts]
        counts = Counter(word for bag in bags for word in bag)
        words = sorted(word for word, n in counts.items() if n >= min_count)
        column = {word: i for i, word in enumerate(words)}
        rows = [sorted(column[w] for w in bag if w in column) for bag in bags]
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.fromiter((i for row in rows for i in row), np.int32, indptr[-1])
        present = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), (len(texts), len(words)))
        return cls(words, present, first)

    def contains_any(self, words: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Which sentences contain at least one of the words."""
        columns = [i for i, word in enumerate(self.words) if word in set(words)]
        return np.asarray(self.present[:, columns].sum(axis=1)).ravel() > 0


def words_of(text: str) -> set[str]:
    """The distinct words of a text: two letters or more, numbers, and single punctuation marks, in lower case."""
    return set(_WORD.findall(text.lower()))


def characteristic_words(
    table: WordTable, index: Int[np.ndarray, "m k"], *, count: int = 3, prior: float = 10.0
) -> list[list[tuple[str, float]]]:
    r"""The most characteristic words of each feature's top sentences.

    The statistic is the z-score of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn
    2008): a word in :math:`y` of :math:`n` top sentences and in a share :math:`\pi` of all :math:`N` scores

    .. math:: z = \frac{\log\frac{y + a}{n + A - y - a} - \log\frac{\pi N + a}{N + A - \pi N - a}}
                       {\sqrt{1 / (y + a) + 1 / (\pi N + a)}}, \quad a = A \pi,

    with :math:`A` the ``prior``. Words must occur in at least 15% of the top sentences.

    Args:
      table: the words of all sentences.
      index: ids of each feature's top sentences, -1 where there are fewer.
      count: words a feature.
      prior: weight of the prior, in sentences.

    Returns:
      For each feature up to ``count`` words with their scores, best first; empty for a feature without sentences.
    """
    total = table.present.shape[0]
    share = np.asarray(table.present.mean(axis=0)).ravel().astype(np.float64)
    result = []
    for ids in index:
        ids = ids[ids >= 0] - table.first
        if not len(ids):
            result.append([])
            continue
        y = np.asarray(table.present[ids].sum(axis=0)).ravel().astype(np.float64)
        z = _z_scores(y, len(ids), share, total, prior)
        z[y < max(2.0, 0.15 * len(ids))] = -np.inf
        best = np.argsort(-z, kind="stable")[:count]
        result.append([(table.words[i], float(z[i])) for i in best if z[i] > 0])
    return result


def statistical_labels(table: WordTable, index: Int[np.ndarray, "m k"], *, count: int = 3) -> Labels:
    """Labels that list each feature's :func:`characteristic_words`; the label's score is the first word's z.

    Args:
      table: the words of all sentences.
      index: ids of each feature's top sentences, -1 where there are fewer.
      count: words a label.

    Example:
      >>> table = WordTable.of(["red hat", "red ball", "blue sea", "blue sky"] * 5)
      >>> statistical_labels(table, np.array([[0, 1, 4, 5]]), count=1)[0]
      'red'
    """
    found = characteristic_words(table, index, count=count)
    rows = [
        Label(i, ", ".join(word for word, _ in words), explainer="log-odds", source="statistical", score=words[0][1])
        for i, words in enumerate(found)
        if words
    ]
    return Labels.from_rows(rows, len(index))


def _z_scores(
    y: Float[np.ndarray, " v"], n: int, share: Float[np.ndarray, " v"], total: int, prior: float
) -> Float[np.ndarray, " v"]:
    a, background = prior * share, share * total
    top = np.log((y + a) / (n + prior - y - a))
    rest = np.log((background + a) / (total + prior - background - a))
    return (top - rest) / np.sqrt(1 / (y + a) + 1 / (background + a))
