"""Features to explain: which, what they mean by other means, what they fire on, and their directions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel
from atlas_jax.pipeline import SentenceStream, pooled_activations
from atlas_jax.progress import Progress
from atlas_jax.rows import unit
from atlas_jax.sae_lab import gather_evidence
from atlas_jax.subject import Subject
from atlas_jax.types import Site


class ExplainedFeature(NamedTuple):
    """A feature to explain.

    Attributes:
      feature: its id.
      reference: what it means by other means: its label, or what its own model's verbalizer says.
      tokens: tokens it fires on most, strongest first.
      texts: sentences it fires on most.

    Example:
      >>> from atlas_jax.experiments import ExplainedFeature
      >>> ExplainedFeature(3, "dogs", ["dog"], ["A dog barks."]).reference
      'dogs'
    """

    feature: int
    reference: str
    tokens: Sequence[str]
    texts: Sequence[str]


def draw_features(atlas: ConceptAtlas, count: int, seed: int = 0, among: Sequence[int] | None = None) -> list[int]:
    """Draw labelled features at random.

    Raises:
      AtlasError: if there are none.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.experiments import draw_features
      >>> len(draw_features(ConceptAtlas.from_pretrained(ATLAS), 45))
      45
    """
    labelled = sorted(set(atlas.labels.described()) & set(atlas.labels.described() if among is None else among))
    if not labelled:
        raise AtlasError("none of these features has a label to compare with; give others")
    drawn = np.random.default_rng(seed).permutation(labelled)[:count]
    return sorted(map(int, drawn))


def features_to_explain(
    atlas: ConceptAtlas,
    corpus: Corpus,
    features: Sequence[int],
    *,
    contexts: int = 10,
    progress: Progress | None = None,
) -> list[ExplainedFeature]:
    """Return features with their labels and what they fire on, those left out that fire on nothing or have no label.

    Raises:
      AtlasError: for a feature that the SAE does not have, or where none fires.

    Example:
      >>> from atlas_jax.experiments import features_to_explain  # doctest: +SKIP
      >>> features_to_explain(atlas, corpus, [3, 5])  # doctest: +SKIP
    """
    evidence = gather_evidence(atlas, corpus, features=features, contexts=contexts, progress=progress)
    shown = [(e.feature, atlas.labels[e.feature], e.contexts) for e in evidence]
    return [
        ExplainedFeature(f, label, [c.token for c in contexts_of], [c.before + c.token + c.after for c in contexts_of])
        for f, label, contexts_of in shown
        if label
    ]


def directions_of(atlas: ConceptAtlas, features: Sequence[ExplainedFeature]) -> Float[np.ndarray, "n d"]:
    """Return the decoder directions of features.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.experiments import ExplainedFeature, directions_of
      >>> directions_of(ConceptAtlas.from_pretrained(ATLAS), [ExplainedFeature(3, "", [], [])]).shape
      (1, 160)
    """
    return np.asarray(atlas.sae.W_dec[np.array([f.feature for f in features])], np.float32)


def mean_unit_activation(model: LanguageModel, site: Site, texts: Sequence[str]) -> Float[np.ndarray, " d"]:
    """Return the mean over texts of their mean activations, each of length one: a background for washout.

    Example:
      >>> from atlas_jax import LanguageModel, Site
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import mean_unit_activation
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> mean_unit_activation(lm, Site("resid_post", 2), ["the font of a text", "an open file"]).shape
      (128,)
    """
    stream = SentenceStream.from_texts([Subject.from_model(model, [site], "mean")], list(texts))
    return unit(pooled_activations(stream)[site]).mean(axis=0)
