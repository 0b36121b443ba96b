"""Causality: is it the translated direction through which steering makes a concept appear?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.checks import as_count, as_number
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._curve import queries_of
from atlas_jax.experiments._identify import check_query
from atlas_jax.experiments._steering import concept_activation, perplexities
from atlas_jax.metrics import Interval, bootstrap_mean
from atlas_jax.models import generate
from atlas_jax.pipeline import Alignment, fit_statistics, solve
from atlas_jax.progress import Progress, unreported
from atlas_jax.steering import ProjectOut, Steer
from atlas_jax.subject import Subject
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.translators import needs_of
from atlas_jax.types import POINTS, Site, sites_of

ROWS = 256  # texts that decode at once
UNSTEERED, STEERED = "unsteered", "steered"


class Condition(NamedTuple):
    """An edit of the subject: strength 1 or 0, along the concept or not, and where the direction is projected out."""

    steered: float
    orthogonal: bool = False
    here: bool = False
    later: bool = False


CONDITIONS = {
    UNSTEERED: Condition(0.0),
    STEERED: Condition(1.0),
    "projected out": Condition(0.0, here=True),
    "projected out later": Condition(0.0, later=True),
    "steered, projected out": Condition(1.0, here=True),
    "steered, projected out later": Condition(1.0, later=True),
    "steered orthogonally": Condition(1.0, orthogonal=True),
}


class CausalCell(NamedTuple):
    """The texts of one concept under one condition.

    Attributes:
      condition: a key of :data:`CONDITIONS`.
      concept: its name.
      expression: share of the texts in which the query's atlas features fire.
      activation: their mean activation on a text, see :class:`Steered`.
      perplexity: geometric mean over the texts, under the unsteered subject; nan where none has a token.
      texts: the continuations.

    Example:
      >>> from atlas_jax.experiments import CausalCell
      >>> CausalCell("steered", "dogs", 0.5, 1.2, 9.0, ["a dog", "a list"]).expression
      0.5
    """

    condition: str
    concept: str
    expression: float
    activation: float
    perplexity: float
    texts: list[str]


class CausalRow(NamedTuple):
    """One condition: means over concepts with 95% bootstrap intervals, of the perplexity the geometric mean.

    ``change`` is the activation less that of the unsteered texts, concept by concept.

    Example:
      >>> from atlas_jax.experiments import CausalRow
      >>> from atlas_jax.metrics import Interval
      >>> CausalRow("steered", *[Interval(0.5, 0.4, 0.6, 9, 0)] * 4).expression[0]
      0.5
    """

    condition: str
    expression: Interval
    activation: Interval
    change: Interval
    perplexity: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {k: v._asdict() if isinstance(v, Interval) else v for k, v in self._asdict().items()}


class Causality(NamedTuple):
    """The effect on concepts of steering along their direction, projecting it out, or avoiding it.

    Attributes:
      cells: one a condition and concept.
      excluded: concepts without a direction at the site.
      site: where the subject is steered.
      later: the sites behind it at which the concept is projected out.
      method: the translation.
      strength: of steering, in mean token norms of the site.
      prompts: what was continued, with repeats.

    Example:
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Causality
      >>> Causality([], ["dogs"], Site("mlp_act", 1), (), "procrustes", 1.0, ["The"]).excluded
      ['dogs']
    """

    cells: list[CausalCell]
    excluded: list[str]
    site: Site
    later: tuple[Site, ...]
    method: str
    strength: float
    prompts: list[str]

    def rows(self) -> list[CausalRow]:
        """Return a row a condition."""
        of = {c: [cell for cell in self.cells if cell.condition == c] for c in CONDITIONS}
        column = lambda c, name: np.array([getattr(cell, name) for cell in of[c]])
        before = column(UNSTEERED, "activation")
        rows = []
        for name in (c for c in CONDITIONS if of[c]):
            expression, activation = column(name, "expression"), column(name, "activation")
            measured = bootstrap_mean(expression), bootstrap_mean(activation), bootstrap_mean(activation - before)
            nats = bootstrap_mean(np.log(column(name, "perplexity")))
            perplexity = Interval(*map(math.exp, nats[:3]), *nats[3:])
            rows.append(CausalRow(name, *measured, perplexity))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        places = {"site": str(self.site), "later": list(map(str, self.later))}
        cells, rows = [c._asdict() for c in self.cells], [r.to_dict() for r in self.rows()]
        return self._asdict() | places | {"rows": rows, "cells": cells}

    def table(self) -> Table:
        """Return the conditions, one a row."""
        columns = (
            Column("condition"), Column("expression", ".2f"), Column("activation", ".3f"),
            Column("change", ".3f"), Column("perplexity", ".3g"),
        )  # fmt: skip
        rows = [(r[0], *(interval[:3] for interval in r[1:])) for r in self.rows()]
        concepts = len({c.concept for c in self.cells})
        later = f"later: at {', '.join(map(str, self.later))}; " if self.later else ""
        without = f"; {len(self.excluded)} more have no direction at the site" if self.excluded else ""
        caption = (
            f"expression: share of texts in which the query's atlas features fire; activation: their mean on a text; "
            f"change: from unsteered; perplexity: geometric mean under the unsteered subject. Strength "
            f"{self.strength:g} mean token norms of the site; projected out: the translated direction is removed "
            f"from every token; {later}orthogonally: along random directions of the same length at right angles to "
            f"it. Means over {concepts} concepts with 95% bootstrap intervals over them; {len(self.prompts)} texts "
            f"a concept and condition{without}"
        )
        return Table(f"Causality of steering at {self.site} by {self.method}", columns, rows, caption)


def single_features(alignment: Alignment, count: int) -> dict[str, Float[np.ndarray, " d_c"]]:
    """Return queries of single atlas features, chosen as :func:`evaluate_quality` does, by id and label.

    Raises:
      AtlasError: if no feature fires often enough and not too often.

    Example:
      >>> from atlas_jax.experiments import single_features
      >>> list(single_features(alignment, 2))                                               # doctest: +SKIP
      ['978 datetime, line, true', '1309 jacobian, hermitian, gaussian']
    """
    features, _, queries = queries_of(alignment, count)
    labels = alignment.atlas.labels
    return {f"{f} {labels[f] or ''}".strip(): q for f, q in zip(features.tolist(), queries, strict=True)}


def causality(
    alignment: Alignment,
    concepts: Mapping[str, Float[Array | np.ndarray, " d_c"]],
    prompts: Sequence[str],
    *,
    site: str | Site,
    later: Sequence[str | Site] | None = None,
    method: str = "procrustes",
    strength: float = 0.5,
    samples: int = 1,
    max_new_tokens: int = 40,
    temperature: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Causality:
    """Steer along concepts, with and without their translated direction projected out, and at right angles to it.

    If steering works through that direction, its effect is gone where the direction is projected out, and steering at
    right angles to it has none. A prompt has the same random numbers under every condition.

    Args:
      alignment: the run.
      concepts: concept queries by name.
      prompts: what to continue.
      site: where the subject is steered.
      later: sites behind it at which the concept is projected out; those that the run has by default, and others are
        fitted in a pass over the fit half. Without any the conditions that need them are left out.
      method: the translation.
      strength: of steering, in mean token norms of the site.
      samples: texts a prompt.
      max_new_tokens: tokens to add to each prompt.
      temperature: of sampling, 0 is greedy.
      seed: of sampling and of the random directions.
      progress: called after every batch.

    Raises:
      AtlasError: for no concept, a query that is zero or not finite, concepts that all have no direction at the site,
        a translation that the run lacks, or a later site that is not behind the steered one.

    Example:
      >>> from atlas_jax.experiments import causality, single_features
      >>> from atlas_jax.pipeline import Alignment
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> causality(run, single_features(run, 5), ["The"], site="resid_post.2").table()  # doctest: +SKIP
    """
    if not concepts or not prompts:
        raise AtlasError("causality needs concepts and prompts; give at least one of each")
    for query in concepts.values():
        check_query(query)
    strength = as_number(strength, "the strength")
    translations = _translations(alignment, Site.parse(site), later, method, progress)
    here, *behind = translations
    known = {n: q for n, q in concepts.items() if np.any(np.asarray(translations[here].similarity(q)))}
    if not known:
        raise AtlasError(f"no concept has a direction at {here}: no feature there is similar to any of them")
    repeated = list(prompts) * as_count(samples, "samples")
    along = {at: _along(t, known, scaled=at == here) for at, t in translations.items()}
    decoder = _Decoder(alignment, along, repeated, strength, max_new_tokens, temperature, seed)
    texts = decoder.texts(progress or unreported)
    conditions = [name for name, c in CONDITIONS.items() if behind or not c.later]
    cells = []
    for number, (name, query) in enumerate(known.items()):
        parts = [texts[c, 0 if c == UNSTEERED else number] for c in conditions]
        activations = concept_activation(alignment.atlas, query, [text for part in parts for text, _ in part])
        for c, part, acts in zip(conditions, parts, np.split(np.array(activations), len(parts)), strict=True):
            nats = [math.log(p) for _, p in part if p is not None]
            perplexity = math.exp(np.mean(nats)) if nats else math.nan
            spoken = [text for text, _ in part]
            cells.append(CausalCell(c, name, float(np.mean(acts > 0)), float(acts.mean()), perplexity, spoken))
    excluded = [name for name in concepts if name not in known]
    return Causality(cells, excluded, here, tuple(behind), method, strength, repeated)


def _translations(
    alignment: Alignment, site: Site, later: Sequence[str | Site] | None, method: str, progress: Progress | None
) -> dict[Site, Translation]:
    """The translation of the steered site, and of those behind it in the order in which they are reached."""
    place = lambda s: (s.layer, list(POINTS).index(s.point))
    here = alignment.translation(site, method)
    if later is None:
        later = [s for s in alignment.subject.sites if place(s) > place(site)]
    sites = sorted(sites_of(later), key=place)
    if before := [s for s in sites if place(s) <= place(site)]:
        raise AtlasError(f"{before[0]} is not behind {site}, which is steered; name later sites, such as a later layer")
    known = {s: t for (s, m), t in alignment.translations.items() if m == method}
    if missing := [s for s in sites if s not in known]:
        settings = alignment.settings
        subject = Subject.from_model(alignment.subject.model, missing, settings.pooling)
        stream = replace(alignment, subject=subject).stream("fit")
        fitted = fit_statistics(stream, needs_of([method]), top_k=settings.top_k, progress=progress)
        known |= {s: t for (s, _), t in solve(stream, fitted, [method], progress=progress).items()}
    return {site: here} | {s: known[s] for s in sites}


def _along(translation: Translation, concepts: Mapping[str, Any], *, scaled: bool) -> Float[np.ndarray, "c d"]:
    """The directions of concepts; of one mean token norm where they are steered along."""
    queries = np.stack([np.asarray(q, np.float32) for q in concepts.values()])
    return np.asarray(translation.direction(queries) if scaled else translation.similarity(queries))


class _Text(NamedTuple):
    """A text to be decoded; that of the unsteered subject serves every concept."""

    condition: str
    concept: int
    prompt: int


class _Decoder(NamedTuple):
    """Decodes every condition, concept and prompt, :data:`ROWS` at a time; the first of ``along`` is steered."""

    alignment: Alignment
    along: Mapping[Site, Float[np.ndarray, "c d"]]
    prompts: Sequence[str]
    strength: float
    max_new_tokens: int
    temperature: float
    seed: int

    def texts(self, report: Progress) -> dict[tuple[str, int], list[tuple[str, float | None]]]:
        """Texts with their perplexities, by condition and concept, in the order of the prompts."""
        model, wanted = self.alignment.subject.model, self._wanted()
        ids = [model.tokenizer.encode([prompt])[0] for prompt in self.prompts]
        continuations: dict[tuple[str, int], list[tuple[str, float | None]]] = {}
        tokens = 0
        for start in range(0, len(wanted), ROWS):
            part = wanted[start : start + ROWS]
            full = part + part[:1] * (min(ROWS, len(wanted)) - len(part))  # one shape, compiled once
            rows = [ids[text.prompt] for text in full]
            options = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
            seeds = [self.seed + text.prompt for text in full]
            made = generate(model, rows, edits=self._edits(full), seed=seeds, **options)
            measured = perplexities(model, rows, made)
            for text, words, perplexity in zip(part, made.texts, measured, strict=False):
                continuations.setdefault(text[:2], []).append((words, perplexity))
            tokens += int(made.lengths[: len(part)].sum())
            report("steer", start + len(part), len(wanted), tokens)
        return continuations

    def _wanted(self) -> list[_Text]:
        here, *behind = self.along
        names = [name for name, c in CONDITIONS.items() if name != UNSTEERED and (behind or not c.later)]
        places = range(len(self.prompts))
        unsteered = [_Text(UNSTEERED, 0, p) for p in places]
        return unsteered + [_Text(c, i, p) for i in range(len(self.along[here])) for c in names for p in places]

    def _edits(self, texts: Sequence[_Text]) -> dict[Site, Any]:
        """Edits by site with a row a text; a strength of 0 and a direction of zeros change nothing."""
        here, *behind = self.along
        conditions = [CONDITIONS[text.condition] for text in texts]
        steered = np.stack([self._steered(text) for text in texts])
        out = lambda site, which: ProjectOut(
            jnp.asarray(
                np.stack(
                    [self.along[site][t.concept] * getattr(c, which) for t, c in zip(texts, conditions, strict=True)]
                )
            )
        )
        strengths = jnp.asarray([self.strength * c.steered for c in conditions], jnp.float32)
        edits = {here: [Steer(jnp.asarray(steered), strengths), out(here, "here")]}
        return edits | {site: out(site, "later") for site in behind}

    def _steered(self, text: _Text) -> Float[np.ndarray, " d"]:
        """The concept's direction, or a random one at right angles to it of the same length."""
        s = next(iter(self.along.values()))[text.concept]
        if not CONDITIONS[text.condition].orthogonal:
            return s
        r = np.random.default_rng([self.seed, text.concept, text.prompt]).standard_normal(s.size)
        r -= s * (r @ s) / (s @ s)
        return (r * (np.linalg.norm(s) / np.linalg.norm(r))).astype(np.float32)
