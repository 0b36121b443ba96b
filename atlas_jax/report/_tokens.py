"""Activations at the tokens of texts, as the pieces and the levels of colour that a page shows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.models import Tokenizer
from atlas_jax.pipeline import SentenceStream, site_activations
from atlas_jax.subject import Subject
from atlas_jax.types import Site

LEVELS = 9


class Traced(NamedTuple):
    """A text in pieces that make it up, one a token that counts, and values at these tokens.

    Attributes:
      pieces: of the text; one more than values where its end was cut off.
      values: by what was asked for.
    """

    pieces: list[str]
    values: Mapping[tuple, Float[np.ndarray, " t"]]


def trace_subject(
    subject: Subject, texts: Sequence[str], wanted: Sequence[Sequence[tuple[Site, int]]], max_length: int
) -> list[Traced]:
    """Compute the activations of features at every token of texts.

    Args:
      subject: the model and its sites.
      texts: texts with a token each.
      wanted: the features of each text.
      max_length: tokens at which texts are cut.
    """
    traced: dict[int, Traced] = {}
    sites = tuple(dict.fromkeys(site for features in wanted for site, _ in features))
    stream = SentenceStream.from_texts([subject], texts, max_length=max_length)
    for acts, tokens in site_activations(stream, sites):
        mask, index = np.asarray(tokens.mask), np.asarray(tokens.index)
        host = {site: np.asarray(x) for site, x in acts.items()}
        for row, text in enumerate(index.tolist()):
            if text >= 0:
                places = np.flatnonzero(mask[row])
                values = {(s, f): host[s][row, places, f].astype(np.float32) for s, f in wanted[text]}
                traced[text] = Traced(pieces(subject.model.tokenizer, texts[text], places.tolist()), values)
    return [traced[i] for i in range(len(texts))]


def trace_atlas(atlas: ConceptAtlas, texts: Sequence[str], queries: Sequence[Mapping[int, float]]) -> list[Traced]:
    """Compute the activation of a concept at every token of texts, ``a · q / sum |q|``, under the key ``()``.

    Args:
      atlas: the Concept Atlas.
      texts: texts with a token each.
      queries: of each text the atlas features of the concept, and their weights.
    """
    traced: dict[int, Traced] = {}
    limit = atlas.model.config.max_positions
    stream = SentenceStream.from_texts([atlas], texts, max_length=limit, token_budget=2048)
    for acts, tokens in site_activations(stream, (atlas.site,)):
        mask, index = np.asarray(tokens.mask), np.asarray(tokens.index)
        encoded = np.asarray(atlas.sae.encode(acts[atlas.site]))
        for row, text in enumerate(index.tolist()):
            if text >= 0:
                places, query = np.flatnonzero(mask[row]), queries[text]
                weights = np.array(list(query.values()), np.float32)
                active = encoded[row, places][:, list(query)] @ weights / np.abs(weights).sum()
                traced[text] = Traced(pieces(atlas.model.tokenizer, texts[text], places.tolist()), {(): active})
    return [traced[i] for i in range(len(texts))]


def pieces(tokenizer: Tokenizer, text: str, places: Sequence[int]) -> list[str]:
    """Cut a text behind each of some tokens; the pieces, put together, are the text."""
    spans, cut, start = tokenizer.spans([text])[0], [], 0
    for place in places:
        end = max(start, spans[place][1])
        cut.append(text[start:end])
        start = end
    return cut + [text[start:]] * (start < len(text))


def levels(values: Sequence[float], largest: float) -> str:
    """Return a digit a value, 0 where it is not positive and 9 at the largest.

    Example:
      >>> from atlas_jax.report._tokens import levels
      >>> levels([-1.0, 0.0, 0.1, 5.0, 10.0], 10.0)
      '00159'
    """
    if not largest > 0:
        return "0" * len(values)
    return "".join(str(min(LEVELS, int(np.ceil(LEVELS * v / largest)))) if v > 0 else "0" for v in values)
