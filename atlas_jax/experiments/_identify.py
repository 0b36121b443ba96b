"""Concept queries, and identification: the subject features of a concept with their strongest sentences (Table 1)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Hit, hits_table, terms
from atlas_jax.lens import JacobianLens
from atlas_jax.models import Tokenizer
from atlas_jax.statistics import TopK
from atlas_jax.table import Column, Marked, Shown, Table
from atlas_jax.translation import Translation


class ConceptQuery(NamedTuple):
    """A query and its meaning.

    Attributes:
      vector: the query ``[d_c]``, float32.
      features: the atlas features of largest weight in it, best first; ``score`` is the score of the search where
        words were given, and the weight otherwise.
      warning: why the features may not be the concept that was meant; None where nothing speaks against them.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.experiments import ConceptQuery
      >>> from atlas_jax.labels import Hit
      >>> query = ConceptQuery(jnp.array([0.0, 1.0]), [Hit(1, "dogs", 9.0, 1.0)])
      >>> query.table().rows
      [(1, 'dogs', 9.0, 1.0)]
    """

    vector: Float[Array, " d_c"]
    features: list[Hit]
    warning: str | None = None

    def table(self) -> Table:
        """Tabulate the atlas features of the concept."""
        return hits_table("Atlas features of the concept", self.features)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


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
    """Make the query of a concept, given in exactly one of three ways.

    Args:
      atlas: the Concept Atlas.
      concept: words, searched for among the labels; the k best are weighted by how well they match.
      features: atlas features and their weights, which may be negative.
      like: texts the concept is in.
      unlike: texts it is not in, beside ``like``.
      k: labels to use for ``concept``, and features to return for texts.
      mean: what is subtracted where there are texts without ``unlike``, see :meth:`ConceptAtlas.query_from`.

    Raises:
      AtlasError: for none or several of the three, words that no label matches, features the atlas does not have,
        weights that are not finite, or a query that is zero.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.experiments import concept_query
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


def weakness(concept: str, hits: Sequence[Hit]) -> str | None:
    """Return why search hits may not be what the words mean: no label has a word of them, up to endings; else None.

    On the bundled atlas this holds of none of 600 words that occur in labels and of all of 600 that do not, whose
    best scores overlap; similarities of static word vectors decide nothing there (up to 0.99 for unrelated words).

    Example:
      >>> from atlas_jax.experiments import weakness
      >>> from atlas_jax.labels import Hit
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
      AtlasError: naming the fault.
    """
    if not np.any(finite_numbers(vector, "the concept query")):
        raise AtlasError("the concept query is zero everywhere; give features or texts that make it something")


def _of_hits(atlas: ConceptAtlas, hits: Sequence[Hit]) -> Float[Array, " d_c"]:
    return atlas.query([h.index for h in hits], [h.weight for h in hits])


class Peak(NamedTuple):
    """A sentence, and the token at which a feature is most active: ``before + token + after`` is the sentence.

    Example:
      >>> from atlas_jax.experiments import Peak
      >>> peak = Peak(sentence=4, activation=2.5, before="the", token=" font", after=" family")
      >>> peak.before + peak.token + peak.after
      'the font family'
    """

    sentence: int
    activation: float
    before: str
    token: str
    after: str


class Identified(NamedTuple):
    """A subject feature similar to a concept query (Eq. 3), with its maximally activating sentences where known.

    Attributes:
      feature: of the subject's site.
      similarity: to the query.
      peaks: its maximally activating sentences.
      tokens: whose logits it raises most, where a lens was given.

    Example:
      >>> from atlas_jax.experiments import Identified, Peak
      >>> Identified(7, 0.9, [Peak(4, 2.5, "the", " font", " family")]).to_dict()["peaks"][0]["token"]
      ' font'
    """

    feature: int
    similarity: float
    peaks: list[Peak]
    tokens: Sequence[str] = ()

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
    lens: JacobianLens | None = None,
) -> list[Identified]:
    """Return the k subject features most similar to a concept query, with evidence.

    Args:
      translation: of the subject's site.
      query: the concept query.
      top: the maximally activating sentences of that site's features; None for features alone.
      sentence: the text of a sentence id.
      tokenizer: the subject's.
      k: features to return.
      sentences: sentences a feature.
      lens: of the subject, to name the features by five tokens as well.

    Raises:
      AtlasError: for a query of the wrong width, one that is zero or not finite, more features than there are, or a
        lens that lacks the site.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import LanguageModel, Translation
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import identify
      >>> from atlas_jax.statistics import TopK
      >>> tokenizer = LanguageModel.from_pretrained(SUBJECT).tokenizer
      >>> t = Translation(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), "covariance")
      >>> top = TopK(jnp.ones((2, 1)), jnp.zeros((2, 1), int), jnp.ones((2, 1), int))
      >>> (one,) = identify(t, jnp.array([0.0, 1.0]), top, lambda i: "the font family", tokenizer, k=1)
      >>> one.feature, one.similarity, one.peaks[0].token
      (1, 1.0, 'the')
    """
    check_query(query)
    features, scores = (np.asarray(x).tolist() for x in translation.top_features(query, k))
    peaks = [[] if top is None else top_peaks(top, f, sentence, tokenizer, sentences) for f in features]
    named = [()] * k if lens is None else lens.name_features(features, translation.site, 5)
    tokens = [[token.text for token in row] for row in named]
    identified = [Identified(*parts) for parts in zip(features, scores, peaks, tokens, strict=True)]
    return Shown(identified, partial(identified_table, f"Subject features at {translation.site}"))


def identified_table(title: str, identified: Sequence[Identified]) -> Table:
    """Tabulate subject features with their maximally activating sentences, the peak token marked.

    Example:
      >>> from atlas_jax.experiments import Identified, Peak, identified_table
      >>> table = identified_table("Concept", [Identified(7, 0.9, [Peak(4, 2.5, "the", " font", " family")])])
      >>> table.rows[0][:3]
      (7, 0.9, 2.5)
    """
    by_lens = any(item.tokens for item in identified)
    columns = (
        Column("feature", "d", group=True),
        Column("similarity", ".3f", group=True),
        *[Column("tokens by the lens", group=True)] * by_lens,
        Column("activation", ".2f"),
        Column("maximally activating held-out sentences"),
    )
    rows = []
    for item in identified:
        shown = [(p.activation, Marked(p.token, p.before, p.after)) for p in item.peaks] or [(None, "none known")]
        tokens = [", ".join(map(repr, item.tokens))] * by_lens
        rows += [(item.feature, item.similarity, *tokens, *cells) for cells in shown]
    return Table(title, columns, rows)


def top_peaks(top: TopK, feature: int, sentence: Callable[[int], str], tokenizer: Tokenizer, count: int) -> list[Peak]:
    """Return the sentences that activate a feature most, best first, with the token of the peak."""
    values, index, position = (np.asarray(x[feature]) for x in (top.values, top.index, top.position))
    return [
        _peak(int(i), float(v), sentence(int(i)), tokenizer.span(sentence(int(i)), int(p)))
        for v, i, p in list(zip(values, index, position, strict=True))[:count]
        if i >= 0
    ]


def _peak(index: int, value: float, text: str, span: tuple[int, int]) -> Peak:
    start, end = span
    return Peak(index, value, text[:start], text[start:end], text[end:])
