"""Positions of two tokenizers, matched by the characters that their tokens cover."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

Spans = Sequence[Sequence[tuple[int, int]]]


def match_tokens(spans_a: Int[np.ndarray, "b t_a 2"], spans_b: Int[np.ndarray, "b t_b 2"]) -> Int[np.ndarray, "b t_b"]:
    """Find, for every token of ``b``, the last token of ``a`` that covers its last character.

    So a word in one piece is matched to the last of the pieces that ``a`` has for it, which has read them all, and a
    space that only one of the tokenizers counts to a word changes nothing. A token without characters (BOS, padding, a
    space that its tokenizer gives no span) has no counterpart, nor has one past the end of what ``a`` has read.

    Args:
      spans_a: first character of each token and the one past its last, from :func:`pad_spans`.
      spans_b: the same of the other tokenizer, for the same texts.

    Returns:
      Positions in ``a``, int32; -1 where there is no counterpart.

    Example:
      >>> from atlas_jax.models import match_tokens, pad_spans
      >>> one_piece, pieces = [(0, 0), (0, 11)], [(0, 0), (0, 6), (6, 11)]
      >>> match_tokens(pad_spans([pieces]), pad_spans([one_piece])).tolist()
      [[-1, 2]]
      >>> match_tokens(pad_spans([one_piece]), pad_spans([pieces])).tolist()
      [[-1, 1, 1]]
    """
    last = spans_b[:, :, None, 1] - 1
    covers = (spans_a[:, None, :, 0] <= last) & (last < spans_a[:, None, :, 1])
    last_covered = covers.shape[2] - 1 - np.argmax(covers[:, :, ::-1], axis=2)
    return np.where((spans_b[..., 0] <= last[:, :, 0]) & covers.any(axis=2), last_covered, -1).astype(np.int32)


def pad_spans(rows: Spans, length: int | None = None) -> Int[np.ndarray, "b t 2"]:
    """Stack the spans of some texts (:meth:`Tokenizer.spans`), padded on the right by spans without characters.

    Args:
      rows: spans of each text.
      length: tokens a row; those of the longest text by default.

    Example:
      >>> from atlas_jax.models import pad_spans
      >>> pad_spans([[(0, 3)], [(0, 2), (2, 5)]]).tolist()
      [[[0, 3], [0, 0]], [[0, 2], [2, 5]]]
    """
    padded = np.zeros((len(rows), max(map(len, rows)) if length is None else length, 2), np.int32)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = np.reshape(row, (-1, 2))
    return padded
