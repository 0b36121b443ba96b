"""Steering: baseline beside steered text, for several strengths, in one batch (section 4.4)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._perplexity import perplexities
from atlas_jax.experiments._query import check_finite, check_query
from atlas_jax.models import LanguageModel, generate
from atlas_jax.steering import Steer
from atlas_jax.translation import Translation
from atlas_jax.types import Site

Unit = Literal["norm", "raw"]


class Steered(NamedTuple):
    """Text generated at one strength, how strongly it expresses the concept, and how likely it is without steering.

    Attributes:
      prompt: what was continued.
      strength: in the unit that was asked for; 0 is the baseline.
      text: the continuation.
      concept: mean pooled activation of the query's atlas features on the continuation, weighted as in the query.
      perplexity: of the continuation after the prompt under the unsteered subject; None where it has no token.
    """

    prompt: str
    strength: float
    text: str
    concept: float
    perplexity: float | None = None


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
    unit: Unit = "raw",
) -> list[Steered]:
    """Steer along a concept at every site of ``translations`` at once; all rows decode as one batch.

    A prompt is sampled with the same random numbers at every strength, so strength 0 is the unsteered text exactly.

    Args:
      model: the subject.
      atlas: the Concept Atlas, which judges the continuations.
      translations: by site, where to steer.
      query: the concept query ``[d_c]``.
      prompts: what to continue.
      strengths: in ``unit``; negative ones steer away from the concept.
      max_new_tokens: tokens to add to each prompt.
      temperature: of sampling, 0 is greedy.
      seed: of sampling.
      unit: what a strength of 1 is. "raw" is λ of Eq. 4 along the similarity vector ``s_c`` of Eq. 3, unnormalised as
        in the paper. "norm" is one mean token norm of the site along ``s_c`` of unit length, which means the same at
        every site of every model.

    Returns:
      One entry a prompt and strength, prompts outermost.

    Raises:
      AtlasError: for a query or strengths that are not finite, a query that is zero or has no direction at a site, or
        translations that do not know the token norm of their site and ``unit="norm"``.
    """
    check_query(query)
    check_finite(strengths, "steering strengths")
    grid = [(p, s) for p in prompts for s in strengths]
    strength = jnp.asarray([s for _, s in grid], jnp.float32)
    edits = {site: Steer(direction(t, query, unit), strength) for site, t in translations.items()}
    seeds = [seed + prompts.index(p) for p, _ in grid]
    found = generate(
        model, [p for p, _ in grid], max_new_tokens=max_new_tokens, edits=edits, temperature=temperature, seed=seeds
    )
    measured = concept_activation(atlas, query, found.texts), perplexities(model, [p for p, _ in grid], found)
    return [
        Steered(p, float(s), text, concept, perplexity)
        for (p, s), text, concept, perplexity in zip(grid, found.texts, *measured, strict=True)
    ]


def direction(translation: Translation, query: Any, unit: Unit) -> Float[Array, " d_s"]:
    """What a strength of 1 adds to the activations of a site.

    Raises:
      AtlasError: for an unknown unit, a token norm that is not known, or a query without a direction here.
    """
    similarity = translation.similarity(query)
    if unit == "raw":
        return similarity
    if unit != "norm":
        raise AtlasError(f"unknown unit of strength '{unit}'; known are norm and raw")
    if translation.token_norm is None:
        raise AtlasError(
            f"this run does not know the mean token norm of {translation.site}, the unit of strengths; "
            "align again, or give strengths as λ of Eq. 4 (--raw-strength, unit='raw')"
        )
    length = float(jnp.linalg.norm(similarity))
    if not length:
        raise AtlasError(f"the concept has no direction at {translation.site}: no feature there is similar to it")
    return similarity * (translation.token_norm / length)


def concept_activation(atlas: ConceptAtlas, query: Any, texts: Sequence[str]) -> list[float]:
    """How active the features of a concept query are on each text: ``a_c · q / sum |q|`` of pooled activations."""
    acts = np.asarray(atlas.activations(texts))
    q = np.asarray(query)
    return (acts @ q / np.abs(q).sum()).tolist()


def expression_rates(steered: Sequence[Steered]) -> dict[float, float]:
    """Share of the texts at each strength in which a feature of the concept fires, the offline judge of section 4.4."""
    strengths = dict.fromkeys(s.strength for s in steered)
    return {at: float(np.mean([s.concept > 0 for s in steered if s.strength == at])) for at in strengths}
