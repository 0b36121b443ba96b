"""A text token by token: where the atlas sees a concept, and where the subject does."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._query import check_query
from atlas_jax.models import LanguageModel, forward
from atlas_jax.table import Column, Marked, Table
from atlas_jax.translation import Translation
from atlas_jax.types import Site, Tokens


class Traced(NamedTuple):
    """Values at the tokens of a text, those left out of pooling (BOS, special tokens) left out here too.

    Attributes:
      tokens: the part of the text that each token stands for.
      values: float32, one column a feature or site.
      title: of the table.
      columns: of the table, one a feature or site.
      caption: of the table.
    """

    tokens: list[str]
    values: Float[np.ndarray, "t c"]
    title: str
    columns: tuple[Column, ...]
    caption: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"tokens": self.tokens, "values": self.values.tolist()}

    as_json = to_dict

    def table(self) -> Table:
        """Rows of tokens; zeros are blank, and the largest value of each column stands out."""
        highest, rows = self.values.argmax(axis=0).tolist(), []
        for i, (token, values) in enumerate(zip(self.tokens, self.values.tolist(), strict=True)):
            cells = [Marked(x) if x and i == top else x or None for x, top in zip(values, highest, strict=True)]
            rows.append((token.replace("\n", "⏎").replace(" ", "␣"), *cells))
        return Table(self.title, (Column("token"), *self.columns), rows, self.caption)


def token_features(atlas: ConceptAtlas, text: str, features: Sequence[int]) -> Traced:
    """SAE activations of some atlas features at every token of a text, ``[t, f]``.

    Raises:
      AtlasError: for an empty text, one longer than the model's context, or a feature the atlas does not have.

    Example:
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> token_features(atlas, "The font family", [17, 40]).values.shape[1]
      2
    """
    atlas.query(features)
    tokens = _tokens(atlas.model, text)
    values = _features(atlas, tokens, jnp.asarray(features, jnp.int32))
    columns = tuple(Column(str(i), ".2f") for i in features)
    caption = "activation of each atlas feature; blank where it is 0"
    return Traced(*_traced(atlas.model, text, tokens, values), "The atlas, token by token", columns, caption)


def token_projections(
    model: LanguageModel, translations: Mapping[Site, Translation], query: Float[Array | np.ndarray, " d_c"], text: str
) -> Traced:
    """Length of the subject's activation along the concept at every token of a text and every site, ``[t, sites]``.

    It is ``x · s_c / |s_c|`` with the similarity vector ``s_c`` of Eq. 3, divided by the site's mean token norm where
    that is known: a token has as much of the concept as steering at that strength would add.

    Raises:
      AtlasError: for an empty text, one longer than the model's context, or a query that is zero or not finite.

    Example:
      >>> lm, site = LanguageModel.from_pretrained(SUBJECT), Site("resid_post", 2)
      >>> t = Translation(jnp.eye(lm.config.width("resid_post"), 3), jnp.zeros(2), jnp.zeros(3), "covariance", site)
      >>> token_projections(lm, {site: t}, jnp.ones(3), "The font family").values.shape[1]
      1
    """
    check_query(query)
    tokens = _tokens(model, text)
    directions = {}
    for site, translation in translations.items():
        similarity = translation.similarity(query)
        length = jnp.linalg.norm(similarity) * (translation.token_norm or 1.0)
        directions[site] = similarity / jnp.where(length > 0, length, 1.0)
    along = _projections(model, tokens, directions)
    values = jnp.stack([along[site] for site in translations], axis=-1)
    title = f"The subject, token by token, by {', '.join(dict.fromkeys(t.method for t in translations.values()))}"
    columns = tuple(Column(str(site), ".3f") for site in translations)
    caption = f"length of the activation along the concept, {_unit(translations)}"
    return Traced(*_traced(model, text, tokens, values), title, columns, caption)


def _unit(translations: Mapping[Site, Translation]) -> str:
    known = [str(site) for site, t in translations.items() if t.token_norm is not None]
    if not known:
        return "in units of the activation"
    elsewhere = f" at {', '.join(known)}, and in units of the activation elsewhere"
    return "in mean token norms of the site" + elsewhere * (len(known) < len(translations))


def _tokens(model: LanguageModel, text: str) -> Tokens:
    tokens = model.tokenize(text)
    if not bool(tokens.mask.any()):
        raise AtlasError("the text to inspect has no token; give some words")
    return tokens


def _traced(
    model: LanguageModel, text: str, tokens: Tokens, values: Float[Array, "1 t c"]
) -> tuple[list[str], Float[np.ndarray, "t c"]]:
    """The text and the values of the tokens that count."""
    places = np.flatnonzero(np.asarray(tokens.mask[0]))
    spans = [model.tokenizer.span(text, place) for place in places.tolist()]
    return [text[start:end] for start, end in spans], np.asarray(values[0, places], np.float32)


@jax.jit
def _features(atlas: ConceptAtlas, tokens: Tokens, features: Int[Array, " f"]) -> Float[Array, "1 t f"]:
    pool = lambda x: atlas.sae.encode(x)[..., features]
    return forward(atlas.model.decoder, tokens, capture=atlas.sites, logits=False, pool=pool).acts[atlas.site]


@jax.jit
def _projections(
    model: LanguageModel, tokens: Tokens, directions: dict[Site, Float[Array, " _"]]
) -> dict[Site, Float[Array, "1 t"]]:
    acts = forward(model.decoder, tokens, capture=tuple(directions), logits=False).acts
    along = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    return {site: along(acts[site].astype(jnp.float32), direction) for site, direction in directions.items()}
