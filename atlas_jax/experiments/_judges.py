"""The protocol of judges of generated text, an offline proxy of one, and the agreement of two (section 4.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.checks import as_number, as_texts
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._identify import check_query
from atlas_jax.experiments._model_judge import batches
from atlas_jax.experiments._rating import check_aspect
from atlas_jax.labels import StaticEmbedding, terms
from atlas_jax.pipeline import encode_batch
from atlas_jax.rows import unit

PARTS = ("activation", "embedding")
FEWEST = 20  # neutral texts that a threshold can be set by


@runtime_checkable
class Judge(Protocol):
    """Protocol of judges of generated text.

    Attributes:
      name: a name that tells its ratings from those of any other judge.
      aspects: the aspects it rates, of "concept", "instruction" and "fluency".
      missing: ratings that could not be had so far.

    Example:
      >>> class Mentions:
      ...     name, aspects, missing = "mentions", ("concept",), 0
      ...     def judge(self, concept, texts, aspect="concept", *, instruction=None):
      ...         return [2 if concept in text else 0 for text in texts]
      >>> Mentions().judge("dog", ["a dog barks", "rain"])
      [2, 0]
    """

    name: str
    aspects: tuple[str, ...]
    missing: int

    def judge(
        self, concept: str, texts: Sequence[str], aspect: str = "concept", *, instruction: Sequence[str] | None = None
    ) -> list[int | None]:
        """Return 2 where a text has the aspect, 1 where it partly has, 0 where it has not, None where that is missing.

        Raises:
          AtlasError: for an aspect or a concept that the judge does not know.
        """


def agreement(
    first: Sequence[int | None], second: Sequence[int | None], *, weights: Literal["quadratic"] | None = "quadratic"
) -> float:
    r"""Compute Cohen's kappa of two judges on the same texts: their agreement beyond chance.

    :math:`1 - \sum_{ij} w_{ij} O_{ij} / \sum_{ij} w_{ij} E_{ij}` over pairs of ratings, with observed shares O, the
    product of both judges' own shares E, and :math:`w_{ij} = (i - j)^2`, or 1 for all pairs that differ where
    ``weights`` is None. Texts that either judge has no rating for are left out.

    Returns:
      1 for full agreement, 0 for chance; nan where there is no text, or where both judges rate all texts alike.

    Raises:
      AtlasError: for lists of different length, or what is no rating.

    Example:
      >>> from atlas_jax.experiments import agreement
      >>> agreement([0, 0, 2, 2, None], [0, 1, 2, 2, 0])
      0.8571428571428572
    """
    if len(first) != len(second):
        raise AtlasError(f"judges agree on the same texts: {len(first)} ratings do not go with {len(second)}")
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if strange := [x for pair in pairs for x in pair if x not in (0, 1, 2)]:
        raise AtlasError(f"a rating is 0, 1, 2 or None, not {strange[0]!r}")
    observed = np.zeros((3, 3))
    np.add.at(observed, tuple(np.array(pairs, int).reshape(-1, 2).T), 1.0)
    i, j = np.indices((3, 3))
    cost = (i - j) ** 2 if weights == "quadratic" else i != j
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / max(1, len(pairs))
    by_chance = float(np.sum(cost * expected))
    return 1 - float(np.sum(cost * observed)) / by_chance if by_chance else float("nan")


class WordsJudge:
    """Offline judge that asks no model: a text has a concept where it has a word of the concept's name.

    Words are compared by their stems; function words and numbers do not count.

    Attributes:
      missing: texts so far whose concept has no word.

    Example:
      >>> from atlas_jax.experiments import WordsJudge
      >>> WordsJudge().judge("978 dogs, training", ["A dog barks.", "Rain falls on 978 roofs."])
      [2, 0]
    """

    name, aspects = "words", ("concept",)

    def __init__(self) -> None:
        self.missing = 0

    def judge(
        self, concept: str, texts: Sequence[str], aspect: str = "concept", *, instruction: Sequence[str] | None = None
    ) -> list[int | None]:
        """Rate texts 2 or 0, None for a concept without words.

        Raises:
          AtlasError: for another aspect than the concept, or what is no text.
        """
        del instruction
        check_aspect(self.name, self.aspects, aspect)
        texts, words = as_texts(texts), {word for word in terms(concept) if not word.isnumeric()}
        if not words:
            self.missing += len(texts)
            return [None] * len(texts)
        return [2 if words & set(terms(text)) else 0 for text in texts]


@dataclasses.dataclass(eq=False)
class AtlasJudge:
    """Offline proxy of a judge: a text has a concept where its score is above that of nearly all neutral texts.

    It understands nothing. The score is the sum of its parts, each less its mean over the neutral texts and divided by
    its standard deviation there (by 1 where that is 0): the activation of the query's atlas features,
    ``a_c · q / sum |q|`` of pooled activations, and the cosine between the static embeddings of text and concept name.
    A text is rated 2 where its score is above the ``quantile`` of the neutral scores, 0 otherwise, and never 1. Pooled
    activations grow with the length of a text, so neutral texts should be about as long as those to be judged. Where
    steering raises the very features that are measured, the first part is no independent evidence.

    On utterances labelled with intents (SNIPS and CLINC150; ``benchmarks/judges.py``, 2026-11-28) the bundled atlas
    has an AUROC of 0.79 and 0.87, by activations alone 0.58 and 0.68, by embeddings alone 0.81 and 0.87; its kappa with
    the labels of SNIPS is 0.37. It is a weak judge: report another beside it.

    Attributes:
      atlas: the Concept Atlas.
      queries: concept queries ``[d_c]`` by concept name.
      neutral: twenty texts or more that are about no concept in particular, such as held-out sentences.
      quantile: share of the neutral texts that are rated 0 for each concept.
      parts: of the score: "activation", "embedding", or both.
      embedder: has ``encode(texts) -> [n, w]``; the package's own word vectors by default.
      thresholds: score of each concept ``[c]`` above which a text has it.
      missing: texts so far whose activations were not finite.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.experiments import AtlasJudge
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> nouns, places = ("sun", "sea", "sky", "tree", "rain"), ("near", "far", "up", "here")
      >>> neutral = [f"The {noun} is {place}." for noun in nouns for place in places]
      >>> judge = AtlasJudge(atlas, {"random numbers": atlas.query_text("random")}, neutral)
      >>> judge.name, judge.judge("random numbers", ["A random number generator.", "The sea is far."])
      ('atlas-proxy', [2, 0])
    """

    atlas: ConceptAtlas
    queries: Mapping[str, Any]
    neutral: Sequence[str] = dataclasses.field(repr=False)
    quantile: float = 0.95
    parts: Sequence[str] = PARTS
    embedder: Any = dataclasses.field(default_factory=StaticEmbedding.default, repr=False)
    thresholds: Float[np.ndarray, " c"] = dataclasses.field(init=False, repr=False)
    missing: int = dataclasses.field(default=0, init=False)
    aspects = ("concept",)

    def __post_init__(self):
        as_number(self.quantile, "the quantile", least=0, most=1)
        if not self.parts or set(self.parts) - set(PARTS):
            raise AtlasError(f"the parts of the atlas judge's score are {' and '.join(PARTS)}, not {self.parts!r}")
        if len(self.neutral) < FEWEST:
            raise AtlasError(f"{len(self.neutral)} neutral texts cannot set a threshold; give {FEWEST} or more")
        if not self.queries:
            raise AtlasError("the atlas judge needs a concept query; give one at least")
        queries = np.stack([self._checked(*item) for item in self.queries.items()], axis=1)
        self._queries, self._place = queries / np.abs(queries).sum(axis=0), {c: i for i, c in enumerate(self.queries)}
        raw = self._raw(self.neutral)
        if not np.isfinite(raw).all():
            raise AtlasError("the atlas's activations of the neutral texts are not finite; load it as float32")
        self._mean, deviation = raw.mean(axis=1, keepdims=True), raw.std(axis=1, keepdims=True)
        self._deviation = np.where(deviation > 0, deviation, 1)
        self.thresholds = np.quantile(self._standard(raw), self.quantile, axis=0)

    @property
    def name(self) -> str:
        """Name in tables and files: "atlas-proxy", and the part of the score where it is one alone."""
        return "-".join(["atlas-proxy", *(self.parts if len(self.parts) == 1 else ())])

    def judge(
        self, concept: str, texts: Sequence[str], aspect: str = "concept", *, instruction: Sequence[str] | None = None
    ) -> list[int | None]:
        """Rate texts 2 or 0, None where their activations are not finite.

        Raises:
          AtlasError: for a concept the judge has no query for, another aspect than the concept, or what is no text.
        """
        del instruction
        check_aspect(self.name, self.aspects, aspect)
        if concept not in self._place:
            raise AtlasError(f"the atlas judge has no query for '{concept}'; it has {', '.join(self._place)}")
        if not len(texts):
            return []
        at = self._place[concept]
        scores = self.scores(texts)[:, at]
        ratings = [2 * int(score > self.thresholds[at]) if np.isfinite(score) else None for score in scores]
        self.missing += ratings.count(None)
        return ratings

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Score of each text for every concept, in the order of the queries, in standard deviations of neutral text.

        Raises:
          AtlasError: for what is no text.
        """
        return self._standard(self._raw(as_texts(texts)))

    def _checked(self, concept: str, query: Any) -> Float[np.ndarray, " d_c"]:
        check_query(query)
        if np.shape(query) != (self.atlas.width,):
            raise AtlasError(f"the query of '{concept}' should be {self.atlas.width} numbers, one an atlas feature")
        return np.asarray(query, np.float64)

    def _standard(self, raw: Float[np.ndarray, "p n c"]) -> Float[np.ndarray, "n c"]:
        return ((raw - self._mean) / self._deviation).sum(axis=0)

    def _raw(self, texts: Sequence[str]) -> Float[np.ndarray, "p n c"]:
        """The parts of the score of texts for every concept, before they are standardised."""
        measure = {"activation": self._activations, "embedding": self._similarities}
        return np.stack([measure[part](texts) for part in self.parts])

    def _activations(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        model, scores = self.atlas.model, np.zeros((len(texts), len(self._place)))
        rows = model.tokenizer.encode(texts, model.config.max_positions)
        cells = lambda width: width * max(self.atlas.width, model.config.num_heads * width)
        for some, tokens in batches(model, rows, cells):
            pooled = np.asarray(encode_batch(self.atlas, tokens)[self.atlas.site], np.float64)
            scores[some] = pooled[: len(some)] @ self._queries
        return scores

    def _similarities(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        rows, names = (unit(np.asarray(self.embedder.encode(t), np.float64)) for t in (texts, list(self._place)))
        return rows @ names.T
