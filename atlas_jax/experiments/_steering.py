"""Steering: baseline beside steered text, for several strengths, in one batch (section 4.4)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.models import LanguageModel, generate
from atlas_jax.steering import Steer
from atlas_jax.translation import Translation
from atlas_jax.types import Site


class Steered(NamedTuple):
    """Text generated at one strength, and how strongly it expresses the concept.

    Attributes:
      prompt: what was continued.
      strength: λ of Eq. 4; 0 is the baseline.
      text: the continuation.
      concept: mean pooled activation of the query's atlas features on the continuation, weighted as in the query.
    """

    prompt: str
    strength: float
    text: str
    concept: float


def steer(
    model: LanguageModel,
    atlas: ConceptAtlas,
    translations: Mapping[Site, Translation],
    query: Any,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    max_new_tokens: int,
    temperature: float = 0.5,
    seed: int = 0,
) -> list[Steered]:
    """Steer along a concept at every site of ``translations`` at once; all rows decode as one batch.

    The direction at each site is the similarity vector ``s_c`` of Eq. 3, unnormalised as in the paper. A prompt is
    sampled with the same random numbers at every strength, so strength 0 is the unsteered text exactly.

    Returns:
      One entry a prompt and strength, prompts outermost.
    """
    grid = [(p, s) for p in prompts for s in strengths]
    strength = jnp.asarray([s for _, s in grid], jnp.float32)
    edits = {site: Steer(t.similarity(query), strength) for site, t in translations.items()}
    seeds = [seed + prompts.index(p) for p, _ in grid]
    texts = generate(
        model, [p for p, _ in grid], max_new_tokens=max_new_tokens, edits=edits, temperature=temperature, seed=seeds
    ).texts
    concept = concept_activation(atlas, query, texts)
    return [Steered(p, float(s), text, c) for (p, s), text, c in zip(grid, texts, concept, strict=True)]


def concept_activation(atlas: ConceptAtlas, query: Any, texts: Sequence[str]) -> list[float]:
    """How active the features of a concept query are on each text: ``a_c · q / sum |q|`` of pooled activations."""
    acts = np.asarray(atlas.activations(texts))
    q = np.asarray(query)
    return (acts @ q / np.abs(q).sum()).tolist()


def expression_rates(steered: Sequence[Steered]) -> dict[float, float]:
    """Share of the texts at each strength in which a feature of the concept fires, the offline judge of section 4.4."""
    strengths = dict.fromkeys(s.strength for s in steered)
    return {at: float(np.mean([s.concept > 0 for s in steered if s.strength == at])) for at in strengths}
