"""What is shown of each feature of an SAE to label it, and the held-out sentences a label is tested on."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Context
from atlas_jax.models import Tokenizer
from atlas_jax.pipeline import Pass, pooled_activations, top_sentences
from atlas_jax.progress import Progress
from atlas_jax.statistics import TopK

STRONGEST, FIRING, SILENT = 50, 10, 10  # held-out sentences: looked for, and tested on of either kind
QUIET_POOL = 500  # held-out sentences among which silent ones are looked for


class Evidence(NamedTuple):
    """What is known of one feature.

    Attributes:
      feature: its id.
      contexts: sentences of the fit half that activate it most, strongest first.
      sentences: held-out sentences, in random order.
      fires: in which of these it is active.
    """

    feature: int
    contexts: list[Context]
    sentences: list[str]
    fires: Bool[np.ndarray, " n"]

    @property
    def tests(self) -> bool:
        """Whether the sentences can test a description: some activate the feature and some do not."""
        return bool(self.fires.any() and not self.fires.all())


def gather_evidence(
    atlas: ConceptAtlas,
    corpus: Corpus,
    *,
    features: Sequence[int] | None = None,
    contexts: int = 20,
    max_length: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Evidence]:
    """Top activating sentences of every feature that has any, and sentences to test a description on.

    The test sentences are held out: up to ten spread over the fifty that activate the feature most, and ten
    drawn at random among those in which it is silent.

    Args:
      atlas: the model, its SAE and their site; its labels are not read.
      corpus: sentences to show are of its fit half, those to test on of the other.
      features: ids; all of them by default.
      contexts: sentences to show for each feature.
      max_length: tokens at which sentences are cut.
      seed: of the draws.
      progress: called after every batch of each pass.

    Raises:
      AtlasError: for a feature the SAE does not have, or where none fires at all.
    """
    wanted = range(atlas.width) if features is None else features
    if outside := [f for f in wanted if not 0 <= f < atlas.width]:
        raise AtlasError(f"feature {outside[0]} does not exist; this SAE has 0 to {atlas.width - 1}")
    fit, held = (Pass.of([atlas], texts, max_length=max_length) for texts in (corpus.fit, corpus.eval))
    shown, tested = (
        jax.device_get(top_sentences(stream, top_k=k, stage=stage, progress=progress)[atlas.site])
        for stream, k, stage in ((fit, contexts, "contexts"), (held, STRONGEST, "test sentences"))
    )
    pool = np.array(corpus.eval[:QUIET_POOL], object)
    quiet = pooled_activations(Pass.of([atlas], pool.tolist(), max_length=max_length))[atlas.site] <= 0
    found = []
    for feature in wanted:
        if examples := list(_contexts(shown, feature, corpus.fit, atlas.model.tokenizer)):
            rng = np.random.default_rng([seed, feature])
            test = _test(tested, feature, corpus.eval, pool[quiet[:, feature]], rng)
            found.append(Evidence(feature, examples, *test))
    if not found:
        raise AtlasError(f"none of {len(wanted)} features fires on {len(corpus.fit)} sentences; give more text")
    return found


def _contexts(top: TopK, feature: int, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Context]:
    """The sentences in which a feature is most active, strongest first."""
    for value, index, position in zip(*(x[feature].tolist() for x in top), strict=True):
        if index >= 0 and value > 0:
            text = texts[index]
            start, end = tokenizer.span(text, position)
            yield Context(value, text[:start], text[start:end], text[end:])


def _test(
    top: TopK, feature: int, texts: Sequence[str], quiet: np.ndarray, rng: np.random.Generator
) -> tuple[list[str], Bool[np.ndarray, " n"]]:
    """Sentences in which a feature fires and others, shuffled, and which is which."""
    there = zip(top.values[feature].tolist(), top.index[feature].tolist(), strict=True)
    fires = [texts[i] for value, i in there if i >= 0 and value > 0]
    fires = [fires[i] for i in np.unique(np.linspace(0, len(fires) - 1, FIRING).astype(int))] if fires else []
    others = rng.permutation(quiet)[:SILENT].tolist()
    order = rng.permutation(len(fires) + len(others))
    both = [*fires, *others]
    return [both[i] for i in order], order < len(fires)
