"""Tokens of two tokenizers matched by their characters, and statistics over such pairs."""

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.bundled._tokenizers import train_byte_fallback, train_byte_level
from atlas_jax.models import Tokenizer, match_tokens, pad_spans

MODELS = Path(os.environ.get("ATLAS_JAX_DATA", "/nowhere")) / "models"
PLACES = {"subject": SUBJECT, "atlas": ATLAS / "model", "babyllama": MODELS / "babyllama-tok361"}
PLACES["stories"] = MODELS / "stories260K"
TEXTS = [
    "Return the value of an informative dictionary.",
    "  The naïve café 😀 costs 12345 €, information. ",
    "<s>hello</s> world\n\n漢字 ok",
    "tabs\tand  two   spaces",
    "ﬁne ligatures and e\u0301",
    " ",
]


def _tokenizer(name):
    if name in ("trained-bytes", "trained-spaces"):
        train = train_byte_level if name == "trained-bytes" else train_byte_fallback
        return Tokenizer.from_backend(train(TEXTS, 300), "<s>")
    if not PLACES[name].is_dir():
        pytest.skip(f"{PLACES[name]} is not there")
    return Tokenizer.load(PLACES[name])


def _by_definition(a, b):
    """The last token of a that covers the last character of each token of b, one at a time."""
    covers = lambda span, c: span[0] <= c < span[1]
    return [
        max((i for i, span in enumerate(a) if after > first and covers(span, after - 1)), default=-1)
        for first, after in b
    ]


@pytest.mark.parametrize(("a", "b"), [*permutations(PLACES, 2), ("trained-bytes", "trained-spaces")])
@pytest.mark.parametrize("max_length", [None, 6])
def test_matched_tokens_end_at_the_same_character(a, b, max_length):
    a, b = _tokenizer(a), _tokenizer(b)
    spans_a, spans_b = a.spans(TEXTS, max_length), b.spans(TEXTS, max_length)
    for tokenizer, spans in ((a, spans_a), (b, spans_b)):
        assert list(map(len, spans)) == list(map(len, tokenizer.encode(TEXTS, max_length)))
    match = match_tokens(pad_spans(spans_a, 80), pad_spans(spans_b, 70))
    assert (match.shape, match.dtype) == ((len(TEXTS), 70), np.int32)
    for text, row, one, other in zip(TEXTS, match, spans_a, spans_b, strict=True):
        assert row[: len(other)].tolist() == _by_definition(one, other), text
        assert (row[len(other) :] == -1).all()
        read = max(after for _, after in one)
        for place, (first, after) in zip(row, other, strict=False):
            # Every character of these tokenizers has a token: what was read and is no special token is matched.
            assert (place >= 0) == (first < after <= read), (text, first, after)


def test_matching_holds_pieces_to_words_in_one_piece():
    """Values by hand: words against pieces, a space in or out of the span, a character of several tokens."""
    words = [(0, 0), (0, 6), (6, 18), (18, 19)]
    pieces = [(0, 0), (0, 3), (3, 6), (7, 13), (13, 18), (18, 19), (18, 19), (18, 19), (19, 19)]
    spans = pad_spans([words]), pad_spans([pieces])
    assert match_tokens(*spans).tolist() == [[-1, 1, 1, 2, 2, 3, 3, 3, -1]]
    assert match_tokens(*spans[::-1]).tolist() == [[-1, 2, 4, 7]]
    moved = pad_spans([[(first + 1, after + 1) for first, after in pieces]])
    assert match_tokens(spans[0], moved).tolist() != match_tokens(*spans).tolist()
