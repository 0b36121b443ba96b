"""Steering: baseline beside steered text, for several strengths, in one batch (section 4.4)."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._direction import Direction
from atlas_jax.experiments._identify import check_query
from atlas_jax.models import Generation, LanguageModel, generate, run
from atlas_jax.pipeline import encode_batch
from atlas_jax.steering import Steer
from atlas_jax.table import Column, Shown, Table
from atlas_jax.translation import Translation
from atlas_jax.types import Site

Unit = Literal["norm", "raw", "length"]
UNITS = get_args(Unit)
MEANING: dict[Unit, str] = {
    "norm": "in mean token norms of the site", "raw": "λ of Eq. 4", "length": "in units of the activation",
}  # fmt: skip
BUCKET = 32  # tokens that lengths of texts are rounded up to, so that few shapes are compiled


class Steered(NamedTuple):
    """Text generated at one strength, how strongly it expresses the concept, and how likely it is without steering.

    Attributes:
      prompt: what was continued.
      strength: in the unit that was asked for; 0 is the baseline.
      text: the continuation.
      concept: mean pooled activation of the query's atlas features on the continuation, weighted as in the query.
      perplexity: of the continuation after the prompt under the unsteered subject; None where it has no token.
      along: what was steered along, "concept" or "random".

    Example:
      >>> from atlas_jax.experiments import Steered
      >>> Steered("The", 0.5, " dog barks", concept=1.2, perplexity=9.0)._asdict()["strength"]
      0.5
    """

    prompt: str
    strength: float
    text: str
    concept: float
    perplexity: float | None = None
    along: str = "concept"


def steer(
    model: LanguageModel,
    atlas: ConceptAtlas,
    translations: Mapping[Site, Translation | Direction],
    query: Any,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    max_new_tokens: int,
    temperature: float = 0.5,
    seed: int = 0,
    unit: Unit = "raw",
    chat: bool = False,
    random: bool = False,
) -> list[Steered]:
    """Steer along a concept at every site of ``translations`` at once; all rows decode as one batch.

    A prompt is sampled with the same random numbers at every strength, so strength 0 is the unsteered text exactly.

    Args:
      model: the subject.
      atlas: the Concept Atlas, which judges the continuations.
      translations: by site, where to steer: along the translated query, or along a direction found otherwise.
      query: the concept query ``[d_c]``.
      prompts: what to continue.
      strengths: in ``unit``; negative ones steer away from the concept.
      max_new_tokens: tokens to add to each prompt.
      temperature: of sampling, 0 is greedy.
      seed: of sampling.
      unit: what a strength of 1 is. "raw" is λ of Eq. 4 along the similarity vector ``s_c`` of Eq. 3, unnormalised as
        in the paper. "norm" is one mean token norm of the site along ``s_c`` of unit length, which means the same at
        every site of every model. "length" is one unit of the activation along ``s_c``.
      chat: each prompt is a user's message in the model's own chat template.
      random: steer along a random direction too, of the same length and at the largest strength.

    Returns:
      One entry a prompt and strength, prompts outermost; with ``random`` one more a prompt, after the others.

    Raises:
      AtlasError: for a query or strengths that are not finite, a query that is zero or has no direction at a site,
        translations that do not know the token norm of their site and ``unit="norm"``, a :class:`Direction` and
        ``unit="raw"``, or ``chat`` without a template.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import steer  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> sites = {site: run.translation(site, "procrustes") for site in run.subject.sites}  # doctest: +SKIP
      >>> query, options = run.atlas.query([3, 5]), {"max_new_tokens": 8, "unit": "norm"}  # doctest: +SKIP
      >>> steered = steer(run.subject.model, run.atlas, sites, query, ["The"], [0.0, 1.0], **options)  # doctest: +SKIP
      >>> [s.strength for s in steered]  # doctest: +SKIP
      [0.0, 1.0]
    """
    check_query(query)
    finite_numbers(strengths, "the strength")
    check_unit(unit)
    ways = [(s, "concept") for s in strengths] + [(max(strengths, key=abs), "random")] * (random and any(strengths))
    grid = [(p, *way) for p in prompts for way in ways]
    strength = jnp.asarray([s for _, s, _ in grid], jnp.float32)
    edits = {}
    for number, (site, t) in enumerate(translations.items()):
        own = steering_direction(t, query, unit)
        vectors = {"concept": own, "random": _random_like(own, [seed, number])}
        edits[site] = Steer(jnp.stack([vectors[along] for *_, along in grid]), strength)
    seeds = [seed + prompts.index(p) for p, *_ in grid]
    ids = {p: as_chat(model, p) if chat else model.tokenizer.encode([p])[0] for p in prompts}
    rows = [ids[p] for p, *_ in grid]
    generation = generate(model, rows, max_new_tokens=max_new_tokens, edits=edits, temperature=temperature, seed=seeds)
    measured = concept_activation(atlas, query, generation.texts), perplexities(model, rows, generation)
    steered = [
        Steered(p, float(s), text, concept, perplexity, along)
        for (p, s, along), text, concept, perplexity in zip(grid, generation.texts, *measured, strict=True)
    ]
    return Shown(steered, partial(steered_table, "Steered", unit=unit))


def _random_like(x: Float[Array, " d"], seed: list[int]) -> Float[Array, " d"]:
    drawn = np.random.default_rng(seed).standard_normal(x.shape[0])
    return jnp.asarray(drawn / np.linalg.norm(drawn), jnp.float32) * jnp.linalg.norm(x)


def check_unit(unit: str) -> None:
    """Refuse an unknown unit of strength."""
    if unit not in UNITS:
        raise AtlasError(f"unknown unit of strength '{unit}'; known are {', '.join(UNITS)}")


def steering_direction(translation: Translation | Direction, query: Any, unit: Unit) -> Float[Array, " d_s"]:
    """Return what steering at strength 1 adds to an activation ``[d_s]``; units as in :func:`steer`."""
    if isinstance(translation, Direction):
        return jnp.asarray(translation.along(unit))
    if unit == "norm":
        return translation.direction(query)
    similarity = translation.similarity(query)
    return similarity if unit == "raw" else similarity / jnp.maximum(jnp.linalg.norm(similarity), 1e-30)


def as_chat(model: LanguageModel, prompt: str) -> list[int]:
    return model.chat([{"role": "user", "content": prompt}])


def concept_activation(atlas: ConceptAtlas, query: Any, texts: Sequence[str]) -> list[float]:
    """Measure how active a concept query's features are on each text: ``a_c · q / sum |q|`` of pooled activations.

    Texts are cut to the atlas's context.
    """
    return concept_activations(atlas, np.asarray(query)[:, None], texts)[:, 0].tolist()


def concept_activations(
    atlas: ConceptAtlas, queries: Float[np.ndarray, "d_c q"], texts: Sequence[str]
) -> Float[np.ndarray, "n q"]:
    """Return :func:`concept_activation` of several queries, a column each, by one pass over the texts."""
    limit, tokenizer = atlas.model.config.max_positions, atlas.model.tokenizer
    rows = tokenizer.encode(list(texts), limit)
    length = min(limit, -(-max(1, *map(len, rows)) // BUCKET) * BUCKET)
    tokens = tokenizer.pad(rows, length, range(len(rows)))
    acts = np.asarray(encode_batch(atlas, tokens)[atlas.site])
    return acts @ queries / np.abs(queries).sum(axis=0)


def steered_table(title: str, steered: Sequence[Steered], unit: Unit) -> Table:
    """Tabulate baseline beside steered text.

    Example:
      >>> from atlas_jax.experiments import Steered, steered_table
      >>> table = steered_table("Steering", [Steered("The", 0.5, " dog  barks", 1.2, 9.0)], "norm")
      >>> table.rows
      [('The', 'concept', 0.5, 1.2, 9.0, 'dog barks')]
    """
    columns = (
        Column("prompt", group=True),
        Column("along"),
        Column("strength", "g"),
        Column("concept", ".2f"),
        Column("perplexity", ".3g"),
        Column("continuation"),
    )
    rows = [(s.prompt, s.along, float(s.strength), s.concept, s.perplexity, " ".join(s.text.split())) for s in steered]
    caption = (
        f"strength: {MEANING[unit]}, 0 is the baseline; random: a direction of the same length; "
        "concept: activation of the query's atlas features on the "
        "continuation; perplexity: of the continuation under the unsteered subject, sense is lost where it soars"
    )
    return Table(title, columns, rows, caption)


def expression_rates(steered: Sequence[Steered]) -> dict[float, float]:
    """Return the share of texts at each strength in which the concept fires, the offline judge of section 4.4.

    Example:
      >>> from atlas_jax.experiments import Steered, expression_rates
      >>> expression_rates([Steered("The", 0.5, " dog barks", 1.2), Steered("A", 0.5, " list", 0.0)])
      {0.5: 0.5}
    """
    own = [s for s in steered if s.along == "concept"]
    strengths = dict.fromkeys(s.strength for s in own)
    return {at: float(np.mean([s.concept > 0 for s in own if s.strength == at])) for at in strengths}


CELLS = 2**26  # logits that are held at a time


def perplexities(model: LanguageModel, prompts: Sequence[Sequence[int]], generation: Generation) -> list[float | None]:
    """Return the perplexity of each continuation after its prompt, under a model without edits.

    Every row is read once; the end-of-text token that ends a continuation does not count.

    Args:
      model: the language model.
      prompts: the token ids that were continued, a row each.
      generation: the continuations.

    Returns:
      ``exp`` of the mean negative log-likelihood of a row's new tokens; None where it has none.

    Example:
      >>> from atlas_jax import LanguageModel, generate
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import perplexities
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> prompts = lm.tokenizer.encode(["Return the"])
      >>> len(perplexities(lm, prompts, generate(lm, prompts, max_new_tokens=4)))
      1
    """
    after = [new[:n].tolist() for new, n in zip(generation.ids, generation.lengths.tolist(), strict=True)]
    rows = [[*ids, *new] for ids, new in zip(prompts, after, strict=True)]
    tokens = model.tokenizer.pad(rows, max(map(len, rows)), range(len(rows)))
    place = np.arange(tokens.ids.shape[1])[None, :]
    begin, end = (np.array([len(row) for row in x])[:, None] for x in (prompts, rows))
    new = (place >= begin) & (place < end)
    height = max(1, CELLS // (tokens.ids.shape[1] * model.config.vocab_size))
    nats: list[float] = []
    for at in range(0, len(rows), height):
        part, chosen = jax.tree.map(lambda x: x[at : at + height], (tokens, jnp.asarray(new)))  # noqa: B023 - used here
        nats += _mean_nats(run(model, part).logits, part.ids, chosen).tolist()
    return [math.exp(x) if new else None for x, new in zip(nats, after, strict=True)]


@jax.jit
def _mean_nats(logits: Float[Array, "b t v"], ids: Int[Array, "b t"], chosen: Bool[Array, "b t"]) -> Float[Array, " b"]:
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    count = jnp.maximum(jnp.sum(chosen, axis=1), 1).astype(nats.dtype)
    return jnp.sum(jnp.where(chosen[:, 1:], nats, 0.0), axis=1) / count
