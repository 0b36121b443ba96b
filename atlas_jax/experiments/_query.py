"""A concept query from words, features or texts, with the atlas features it is made of (section 3.4)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Hit, terms
from atlas_jax.table import Column, Table


class ConceptQuery(NamedTuple):
    """A query and what it means.

    Attributes:
      vector: the query ``[d_c]``, float32.
      features: the atlas features of largest weight in it, best first; ``score`` is the score of the search where
        words were given, and the weight otherwise.
      warning: why the features may not be the concept that was meant; None where nothing speaks against them.
    """

    vector: Float[Array, " d_c"]
    features: list[Hit]
    warning: str | None = None

    def table(self) -> Table:
        """The atlas features the concept became."""
        return hits_table("Atlas features of the concept", self.features)


def concept_query(
    atlas: ConceptAtlas,
    *,
    concept: str | None = None,
    features: Mapping[int, float] | None = None,
    like: str | Sequence[str] = (),
    unlike: str | Sequence[str] = (),
    k: int = 5,
    mean: Float[Array | np.ndarray, " d_c"] | None = None,
) -> ConceptQuery:
    """The query of a concept, given in exactly one of three ways.

    Args:
      atlas: the Concept Atlas.
      concept: words, searched for among the labels; the k best are weighted by how well they match.
      features: atlas features and their weights, which may be negative.
      like: texts the concept is in.
      unlike: texts it is not in, beside ``like``.
      k: labels to use for ``concept``, and features to tell for texts.
      mean: what is subtracted where there are texts without ``unlike``, see :meth:`ConceptAtlas.query_from`.

    Raises:
      AtlasError: for none or several of the three, words that no label matches, features the atlas does not have,
        weights that are not finite, or a query that is zero.

    Example:
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> [hit.label for hit in concept_query(atlas, concept="attention", k=1).features]
      ['attention']
      >>> concept_query(atlas, concept="dog").warning
      "no label of the features found has a word of 'dog', so they may mean something else"
    """
    like, unlike = ([x] if isinstance(x, str) else list(x) for x in (like, unlike))
    if (concept is not None) + bool(features) + bool(like) != 1 or (unlike and not like):
        raise AtlasError("give a concept in words, or features, or texts it is in (and perhaps texts it is not in)")
    if concept is not None:
        hits = atlas.search(concept, k)
        if not hits:
            raise AtlasError(f"no label of this atlas matches '{concept}'; try other words, or give feature ids")
        return ConceptQuery(_of_hits(atlas, hits), hits, weakness(concept, hits))
    if features:
        vector = atlas.query(list(features), list(features.values()))
        hits = [Hit(i, atlas.labels[i] or "", w, w) for i, w in sorted(features.items(), key=lambda f: -abs(f[1]))]
    else:
        if any(not text.strip() for text in [*like, *unlike]):
            raise AtlasError("a text to take the concept from is blank; give some words")
        vector = atlas.query_from(like, unlike or None, mean=mean)
        hits = atlas.top_features(vector, k)
    check_query(vector)
    return ConceptQuery(vector, hits)


def hits_table(title: str, hits: Sequence[Hit]) -> Table:
    """Atlas features with how well they match, and their weights in the query."""
    columns = Column("feature", "d"), Column("label"), Column("score", ".3f"), Column("weight", ".3f")
    return Table(title, columns, [tuple(hit) for hit in hits])


def weakness(concept: str, hits: Sequence[Hit]) -> str | None:
    """Why search hits may not be what the words mean: none of their labels has a word of them, up to endings.

    On the bundled atlas this holds of none of 600 words that occur in labels and of all of 600 that do not, whose
    best scores overlap; similarities of static word vectors tell nothing there (up to 0.99 for unrelated words).

    Example:
      >>> weakness("dogs", [Hit(3, "a dog's bark", 9.0, 1.0)]), weakness("dog", [Hit(3, "bit, bounds", 9.0, 1.0)])
      (None, "no label of the features found has a word of 'dog', so they may mean something else")
    """
    wanted = set(terms(concept))
    if any(wanted.intersection(terms(hit.label)) for hit in hits):
        return None
    return f"no label of the features found has a word of '{concept}', so they may mean something else"


def check_query(vector: Float[Array | np.ndarray, "*q d_c"]) -> None:
    """Refuse a query that asks for nothing, or holds a nan.

    Raises:
      AtlasError: saying which.
    """
    if not np.any(finite_numbers(vector, "the concept query")):
        raise AtlasError("the concept query is zero everywhere; give features or texts that make it something")


def _of_hits(atlas: ConceptAtlas, hits: Sequence[Hit]) -> Float[Array, " d_c"]:
    return atlas.query([h.index for h in hits], [h.weight for h in hits])
