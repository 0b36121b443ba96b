"""Identification: the subject features of a concept, with the sentences that activate them most (Table 1)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from atlas_jax.experiments._query import check_query
from atlas_jax.models import Tokenizer
from atlas_jax.statistics import TopK
from atlas_jax.table import Column, Marked, Table
from atlas_jax.translation import Translation


class Peak(NamedTuple):
    """A sentence, and the token at which a feature is most active: ``before + token + after`` is the sentence."""

    sentence: int
    activation: float
    before: str
    token: str
    after: str


class Identified(NamedTuple):
    """A subject feature found by a concept query (Eq. 3), with its maximally activating sentences where known."""

    feature: int
    similarity: float
    peaks: list[Peak]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"peaks": [p._asdict() for p in self.peaks]}

    as_json = to_dict


def identify(
    translation: Translation,
    query: Float[Array, " d_c"],
    top: TopK | None,
    sentence: Callable[[int], str],
    tokenizer: Tokenizer,
    *,
    k: int = 3,
    sentences: int = 3,
) -> list[Identified]:
    """The k subject features most similar to a concept query, with evidence.

    Args:
      translation: of the subject's site.
      query: the concept query.
      top: the maximally activating sentences of that site's features; None for features alone.
      sentence: the text of a sentence id.
      tokenizer: the subject's.
      k: features to return.
      sentences: sentences a feature.

    Raises:
      AtlasError: for a query of the wrong width, one that is zero or not finite, or more features than there are.
    """
    check_query(query)
    ranked = translation.top_features(query, k)
    return [
        Identified(int(f), float(s), [] if top is None else top_peaks(top, int(f), sentence, tokenizer, sentences))
        for f, s in zip(np.asarray(ranked.features), np.asarray(ranked.scores), strict=True)
    ]


def identified_table(title: str, identified: Sequence[Identified]) -> Table:
    """Subject features with their maximally activating sentences, the peak token marked."""
    columns = (
        Column("feature", "d", group=True),
        Column("similarity", ".3f", group=True),
        Column("activation", ".2f"),
        Column("maximally activating held-out sentences"),
    )
    rows = []
    for item in identified:
        shown = [(p.activation, Marked(p.token, p.before, p.after)) for p in item.peaks] or [(None, "none known")]
        rows += [(item.feature, item.similarity, *cells) for cells in shown]
    return Table(title, columns, rows)


def top_peaks(top: TopK, feature: int, sentence: Callable[[int], str], tokenizer: Tokenizer, count: int) -> list[Peak]:
    """The sentences that activate a feature most, best first, with the token of the peak."""
    values, index, position = (np.asarray(x[feature]) for x in (top.values, top.index, top.position))
    return [
        _peak(int(i), float(v), sentence(int(i)), tokenizer.span(sentence(int(i)), int(p)))
        for v, i, p in list(zip(values, index, position, strict=True))[:count]
        if i >= 0
    ]


def _peak(index: int, value: float, text: str, span: tuple[int, int]) -> Peak:
    start, end = span
    return Peak(index, value, text[:start], text[start:end], text[end:])
