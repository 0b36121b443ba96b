"""Labels without a language model: the words that set a feature's strongest sentences apart from the others."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float

from atlas_jax.labels._label import Label
from atlas_jax.labels._labels import Labels

_WORD = re.compile(r"[^\W\d_]{2,}|\d+")


class WordTable(NamedTuple):
    """Table of the words that occur in each sentence.

    Attributes:
      words: the vocabulary, lower case.
      present: boolean ``[sentences, words]``, sparse rows.
      first: id of the first sentence.

    Example:
      >>> from atlas_jax.labels import WordTable
      >>> table = WordTable.from_texts(["A red ball.", "a red hat", "blue"], min_count=1)
      >>> table.contains_any(["ball", "blue"]).tolist()
      [True, False, True]
    """

    words: list[str]
    present: sp.csr_matrix
    first: int

    @classmethod
    def from_texts(cls, texts: Sequence[str], *, first: int = 0, min_count: int = 5) -> "WordTable":
        """Count words of at least two letters and numbers that occur in ``min_count`` sentences or more.

        Example:
          >>> from atlas_jax.labels import WordTable
          >>> WordTable.from_texts(["A red ball.", "a red hat", "blue"], min_count=2).words
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

    of = from_texts

    def contains_any(self, words: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Mark the sentences that contain at least one of the words."""
        columns = [i for i, word in enumerate(self.words) if word in set(words)]
        return np.asarray(self.present[:, columns].sum(axis=1)).ravel() > 0


def words_of(text: str) -> set[str]:
    """Return the distinct words of two letters or more and numbers of a text, in lower case.

    Example:
      >>> from atlas_jax.labels import words_of
      >>> sorted(words_of("A dog and 12 dogs"))
      ['12', 'and', 'dog', 'dogs']
    """
    return set(_WORD.findall(text.lower()))


def words_at(text: str, position: int, reach: int = 1) -> set[str]:
    """Return the word that covers a character, or the last one before it, and up to ``reach - 1`` words before that.

    Example:
      >>> from atlas_jax.labels import words_at
      >>> sorted(words_at("the mean of the sample variance", 18, reach=2))
      ['sample', 'the']
    """
    words = [m.group() for m in _WORD.finditer(text.lower()) if m.start() <= position]
    return set(words[-reach:])


def characteristic_words(
    table: WordTable, bags: Sequence[Sequence[set[str]]], *, count: int = 3, prior: float = 10.0, common: float = 0.05
) -> list[list[tuple[str, float]]]:
    r"""Return the most characteristic words of each feature's strongest examples.

    The statistic is the z-score of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn
    2008): a word in :math:`y` of :math:`n` examples and in a share :math:`\pi` of all :math:`N` sentences scores
    :math:`z = \frac{\log\frac{y + a}{n + A - y - a} - \log\frac{\pi N + a}{N + A - \pi N - a}}
    {\sqrt{1 / (y + a) + 1 / (\pi N + a)}}` with :math:`a = A \pi`,
    :math:`A` the ``prior``. Words must occur in two examples and in 10% of them.

    Args:
      table: the words of all sentences.
      bags: for each feature, the words of each of its examples.
      count: words a feature.
      prior: weight of the prior, in sentences.
      common: words in a larger share of all sentences are used only for a feature that has no other.

    Returns:
      For each feature up to ``count`` words with their scores, best first; empty for a feature without examples.

    Example:
      >>> from atlas_jax.labels import WordTable, characteristic_words
      >>> table = WordTable.from_texts(["red hat", "red ball", "blue sea", "blue sky"] * 5)
      >>> (red, score), *_ = characteristic_words(table, [[{"red", "hat"}, {"red", "ball"}]])[0]
      >>> red, score > 0
      ('red', True)
    """
    total = table.present.shape[0]
    share = np.asarray(table.present.mean(axis=0)).ravel().astype(np.float64)
    column = {word: i for i, word in enumerate(table.words)}
    result = []
    for examples in bags:
        y = Counter(column[w] for bag in examples for w in bag if w in column)
        ids = np.array([i for i, n in y.items() if n >= max(2, 0.1 * len(examples))], np.int64)
        z = _z_scores(np.array([y[i] for i in ids], np.float64), len(examples), share[ids], total, prior)
        ranked = sorted((share[i] > common, -score, i) for i, score in zip(ids, z, strict=True) if score > 0)
        rare = [row for row in ranked if not row[0]] or ranked[:1]
        result.append([(table.words[i], float(-score)) for _, score, i in rare[:count]])
    return result


def statistical_labels(table: WordTable, bags: Sequence[Sequence[set[str]]], *, count: int = 3) -> Labels:
    """Return labels that list each feature's :func:`characteristic_words`.

    Args:
      table: the words of all sentences.
      bags: for each feature, the words of each of its strongest examples.
      count: words a label.

    Example:
      >>> from atlas_jax.labels import WordTable, statistical_labels
      >>> table = WordTable.from_texts(["red hat", "red ball", "blue sea", "blue sky"] * 5)
      >>> statistical_labels(table, [[{"red", "hat"}, {"red", "ball"}]], count=1)[0]
      'red'
    """
    per_feature = characteristic_words(table, bags, count=count)
    rows = [
        Label(i, ", ".join(word for word, _ in words), explainer="log-odds", source="statistical")
        for i, words in enumerate(per_feature)
        if words
    ]
    return Labels.from_rows(rows, len(bags))


def _z_scores(
    y: Float[np.ndarray, " v"], n: int, share: Float[np.ndarray, " v"], total: int, prior: float
) -> Float[np.ndarray, " v"]:
    a, background = prior * share, share * total
    top = np.log((y + a) / (n + prior - y - a))
    rest = np.log((background + a) / (total + prior - background - a))
    return (top - rest) / np.sqrt(1 / (y + a) + 1 / (background + a))
