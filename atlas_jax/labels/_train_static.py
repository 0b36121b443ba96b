"""Word vectors from your own text: positive pointwise mutual information and a truncated SVD."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.sparse.linalg import svds

from atlas_jax.errors import AtlasError
from atlas_jax.labels._embedders import StaticEmbedding
from atlas_jax.labels._retrievers import terms
from atlas_jax.rows import unit

_UNKNOWN = "[UNK]"


def train_static(
    texts: Iterable[str], *, width: int = 128, min_count: int = 8, window: int = 8, smoothing: float = 0.75
) -> StaticEmbedding:
    r"""Train static word vectors from some texts, for label search in their language and domain.

    Words with one stem share a vector and function words have none. The others co-occur within ``window`` of
    themselves, counted 1 / distance. Vectors are the rows of :math:`U \Sigma^{1/2}`, scaled to norm one, of the
    truncated SVD of :math:`\max(0, \log \frac{P(w, c)}{P(w) P(c)})` with context counts raised to ``smoothing``.

    Args:
      texts: sentences or documents; no pair of words crosses from one to the next.
      width: width of the vectors.
      min_count: rarer stems are unknown, and words that occur once.
      window: reach of co-occurrence, in words.
      smoothing: below 1 keeps rare contexts from dominating.

    Raises:
      AtlasError: where the texts have no more than ``width`` stems of that count.

    Example:
      >>> from atlas_jax.labels import train_static
      >>> train_static(["the red cats sat", "the red dog sat"] * 9, width=2).vectors.shape
      (5, 2)
    """
    split = _word_tokenizer({_UNKNOWN: 0})
    documents = [[word for word in _words(split, text) if terms(word)] for text in texts]
    forms = Counter(word for words in documents for word in words)
    stems = Counter()
    for word, n in forms.items():
        stems.update(dict.fromkeys(terms(word), n))
    kept = sorted(stem for stem, n in stems.items() if n >= min_count)
    if len(kept) <= width:
        raise AtlasError(f"{width} dimensions need more than {len(kept)} words that occur {min_count} times or more")
    row = {stem: i for i, stem in enumerate(kept, 1)}
    row_of = {word: row[stem] for word in sorted(forms) for stem in terms(word) if stem in row and forms[word] > 1}
    ids = _joined([[row_of.get(word, 0) for word in words] for words in documents], window)
    table = _factors(_positive_pmi(_co_occurrence(ids, len(kept) + 1, window), smoothing), width)
    tokenizer = _word_tokenizer({word: i for i, word in enumerate([_UNKNOWN, *row_of])})
    rows = np.array([0, *row_of.values()])
    return StaticEmbedding(tokenizer, table, rows, np.ones(len(rows), np.float32))


def _factors(association: sp.csr_matrix, width: int) -> Float[np.ndarray, "v w"]:
    start = np.random.default_rng(0).standard_normal(association.shape[0]).astype(np.float32)
    left, strength, _ = svds(association, k=width, v0=start)
    return np.ascontiguousarray(unit(left[:, ::-1] * np.sqrt(strength[::-1])), np.float32)


def _word_tokenizer(vocabulary: Mapping[str, int]) -> Any:
    """Return a tokenizer of lower-case runs of letters and digits."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), behavior="removed")
    return tokenizer


def _words(tokenizer: Any, text: str) -> list[str]:
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def _joined(documents: Sequence[Sequence[int]], window: int) -> Int[np.ndarray, " n"]:
    """Join all documents in a row, ``window`` unknown words apart."""
    gap = [0] * window
    return np.fromiter((i for document in documents for i in (*document, *gap)), np.int32)


def _co_occurrence(ids: Int[np.ndarray, " n"], size: int, window: int) -> sp.csr_matrix:
    total = sp.csr_matrix((size, size), dtype=np.float32)
    for distance in range(1, window + 1):
        first, second = ids[:-distance], ids[distance:]
        known = (first > 0) & (second > 0)
        ones = np.full(int(known.sum()), 1 / distance, np.float32)
        total = total + sp.csr_matrix((ones, (first[known], second[known])), (size, size))
    return total + total.T


def _positive_pmi(counts: sp.csr_matrix, smoothing: float) -> sp.csr_matrix:
    words: Float[np.ndarray, " v"] = np.asarray(counts.sum(axis=1), np.float64).ravel()
    contexts = words**smoothing
    contexts /= contexts.sum()
    pairs = counts.tocoo()
    information = np.log(pairs.data / (words[pairs.row] * contexts[pairs.col]))
    kept = information > 0
    values = information[kept].astype(np.float32)
    return sp.csr_matrix((values, (pairs.row[kept], pairs.col[kept])), counts.shape)
