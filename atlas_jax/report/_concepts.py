"""What the search of a page knows: atlas features, the subject features similar to them, sentences, steered texts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from atlas_jax.experiments import Concept, Steered, SteeringSettings, Unit
from atlas_jax.experiments._steering_texts import Row
from atlas_jax.models import is_small
from atlas_jax.pipeline import Alignment
from atlas_jax.report._tokens import Traced, levels, trace_atlas, trace_subject
from atlas_jax.types import Site

ATLAS_FEATURES = 2000  # the most frequent ones
SITES = 6
SUBJECT_FEATURES = 3000  # of all sites together
SIMILAR = 3  # subject features of an atlas feature at a site
NAMES = 5  # atlas features of a subject feature
SENTENCES = 3
STEERED_TEXTS = 600
STEERED_PROMPTS = 3
ROWS = 512  # queries at once

Pairs = list[list[float | int]]  # features, and how similar each is or how much it weighs


class SteeredTexts(NamedTuple):
    """Continuations along one concept.

    Attributes:
      name: of the concept.
      features: its atlas features and their weights.
      where: method and sites.
      unit: of the strengths.
      rows: by prompt and strength.
    """

    name: str
    features: Mapping[int, float]
    where: str
    unit: Unit
    rows: list[Steered]


def of_concepts(concepts: Sequence[Concept], sites: Sequence[Site]) -> list[SteeredTexts]:
    """Take the continuations of a quickstart, which steers at the sites of the residual stream, or at all."""
    where = ", ".join(map(str, [s for s in sites if s.point.startswith("resid")] or sites))
    by = lambda c: f"{c.steer_method or c.method} at {where}"
    return [SteeredTexts(c.text, {h.index: h.weight for h in c.hits}, by(c), c.unit, c.steered) for c in concepts]


def of_evaluation(settings: SteeringSettings, rows: Sequence[Row]) -> list[SteeredTexts]:
    """Take those of an evaluation of steering, by its translations at the first prompts."""
    prompts = settings.prompts[:STEERED_PROMPTS]
    shown = [r for r in rows if r.prompt in prompts]
    steered = []
    for concept in settings.concepts:
        features = dict(zip(concept.features, concept.weights, strict=True))
        own = [r for r in shown if r.cell.concept == concept.name and r.cell.method in settings.methods]
        base = [_steered(r, concept.name) for r in shown if r.cell.method == "unsteered"]
        for method, sites in dict.fromkeys((r.cell.method, r.cell.sites) for r in own):
            texts = base + [_steered(r, concept.name) for r in own if r.cell[1:3] == (method, sites)]
            steered.append(SteeredTexts(concept.name, features, f"{method} at {sites}", settings.unit, texts))
    kept = STEERED_TEXTS // max(1, len(steered[0].rows)) if steered else 0
    return steered[:kept]


def _steered(row: Row, concept: str) -> Steered:
    return Steered(row.prompt, row.cell.strength, row.text, row.activations[concept], row.perplexity)


def concept_data(
    alignment: Alignment, method: str, steered: Sequence[SteeredTexts], ap: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    """Return, as plain values, all that the search of a page shows.

    Atlas features come in the order of how often they fire; with more of them, or of sites, than fit on a page, the
    most frequent features and the sites of highest AP are kept.
    """
    sites = sorted(alignment.subject.sites, key=lambda s: -ap.get((str(s), method), 0.0))[:SITES]
    sites = [s for s in alignment.subject.sites if s in sites]
    atlas = np.argsort(-alignment.rate, kind="stable")[:ATLAS_FEATURES]
    similar = {site: _similar(alignment, site, method, atlas) for site in sites}
    labels = alignment.atlas.labels
    rows = [
        [int(f), labels[int(f)] or "", round(float(alignment.rate[f]), 5), [similar[s][i] for s in sites]]
        for i, f in enumerate(atlas)
    ]
    kept = {site: _kept(similar[site], SUBJECT_FEATURES // len(sites)) for site in sites}
    names = {site: _names(alignment, site, method, kept[site]) for site in sites}
    sentences, peaks = _peaks(alignment, kept)
    subject = {str(s): {f: {"names": names[s][f], "peaks": peaks[s, f]} for f in kept[s]} for s in sites}
    facts = {"method": method, "sites": list(map(str, sites)), "width": alignment.atlas.width}
    known = {int(f) for x in steered for f in x.features} - set(atlas.tolist())
    others = {f: labels[f] or "" for f in sorted(known)}
    return facts | {
        "atlas": rows, "others": others, "subject": subject, "sentences": sentences,
        "steered": _shown(alignment, steered),
    }  # fmt: skip


def _similar(alignment: Alignment, site: Site, method: str, atlas: Int[np.ndarray, " a"]) -> list[Pairs]:
    """The subject features of each atlas feature, with their similarities."""
    t, rows = alignment.translation(site, method), []
    for start in range(0, len(atlas), ROWS):
        part = atlas[start : start + ROWS]
        queries = np.zeros((len(part), t.d_c), np.float32)
        queries[np.arange(len(part)), part] = 1.0
        ranked = t.top_features(queries, min(SIMILAR, t.d_s))
        for features, scores in zip(np.asarray(ranked.features), np.asarray(ranked.scores), strict=True):
            pairs = zip(features.tolist(), scores.tolist(), strict=True)
            rows.append([[f, round(s, 3)] for f, s in pairs if s > 0])
    return rows


def _kept(similar: list[Pairs], most: int) -> list[int]:
    """The subject features of a site to show: those of the most frequent atlas features first, best first."""
    ranked = (row[i][0] for i in range(SIMILAR) for row in similar if i < len(row))
    return sorted(list(dict.fromkeys(map(int, ranked)))[:most])


def _names(alignment: Alignment, site: Site, method: str, kept: Sequence[int]) -> dict[int, Pairs]:
    """The atlas features of positive weight in the rows of T of some subject features."""
    wanted, named_features = set(kept), {}
    t = alignment.translation(site, method)
    for feature, named in enumerate(t.name_features(min(NAMES, t.d_c))):
        if feature in wanted:
            pairs = zip(named.features.tolist(), named.scores.tolist(), strict=True)
            named_features[feature] = [[f, round(s, 3)] for f, s in pairs if s > 0]
    return named_features


def _peaks(
    alignment: Alignment, kept: Mapping[Site, Sequence[int]]
) -> tuple[list[list[str]], dict[tuple[Site, int], list[list[Any]]]]:
    """Sentences in pieces, and for each feature its strongest: sentence, activation, levels, piece of the peak."""
    strongest = {
        (site, f): _strongest(alignment, site, f) if alignment.top and site in alignment.top else []
        for site, features in kept.items()
        for f in features
    }
    if not any(strongest.values()):
        return [], strongest
    if is_small(alignment.subject.model):
        return _by_token(alignment, strongest)
    return _by_peak(alignment, strongest)


def _strongest(alignment: Alignment, site: Site, feature: int) -> list[tuple[int, float, int]]:
    """Sentence, activation and position of the peak."""
    top = alignment.strongest(site)
    rows = zip(
        *(np.asarray(x[feature])[:SENTENCES].tolist() for x in (top.index, top.values, top.position)), strict=True
    )
    return [row for row in rows if row[0] >= 0]


def _by_token(alignment: Alignment, strongest: Mapping[tuple[Site, int], list[tuple[int, float, int]]]) -> Any:
    """Every token coloured: one pass over the sentences."""
    wanted: dict[int, list[tuple[Site, int]]] = {}
    for key, rows in strongest.items():
        for sentence, _, _ in rows:
            wanted.setdefault(sentence, []).append(key)
    texts = [alignment.corpus.sentence(i) for i in wanted]
    traced = trace_subject(alignment.subject, texts, list(wanted.values()), alignment.settings.max_length)
    number = {sentence: i for i, sentence in enumerate(wanted)}
    peaks = {
        key: [_peak(number[i], value, traced[number[i]], key) for i, value, _ in rows]
        for key, rows in strongest.items()
    }
    for rows in peaks.values():
        largest = max((float(row[2].max(initial=0.0)) for row in rows), default=0.0)
        for row in rows:
            row[2:] = levels(row[2].tolist(), largest), int(row[2].argmax()) if len(row[2]) else 0
    return [t.pieces for t in traced], peaks


def _peak(number: int, value: float, traced: Traced, key: tuple[Site, int]) -> list[Any]:
    values: Float[np.ndarray, " t"] = traced.values[key]
    return [number, round(value, 3), values]


def _by_peak(alignment: Alignment, strongest: Mapping[tuple[Site, int], list[tuple[int, float, int]]]) -> Any:
    """The token of the peak alone, without a pass."""
    sentences, peaks, tokenizer = [], {}, alignment.subject.model.tokenizer
    for key, rows in strongest.items():
        largest, peaks[key] = max((value for _, value, _ in rows), default=0.0), []
        for sentence, value, position in rows:
            text = alignment.corpus.sentence(sentence)
            start, end = tokenizer.span(text, position)
            peaks[key].append([len(sentences), round(value, 3), f"0{levels([value], largest)}0", 1])
            sentences.append([text[:start], text[start:end], text[end:]])
    return sentences, peaks


def _shown(alignment: Alignment, steered: Sequence[SteeredTexts]) -> list[dict[str, Any]]:
    """Continuations, coloured by how active the concept is at their tokens."""
    places = [(i, j) for i, x in enumerate(steered) for j, row in enumerate(x.rows) if row.text.strip()]
    texts = [steered[i].rows[j].text for i, j in places]
    queries = [steered[i].features for i, _ in places]
    traced = dict(zip(places, trace_atlas(alignment.atlas, texts, queries) if texts else [], strict=True))
    continuations = []
    for i, x in enumerate(steered):
        own = [traced[place] for place in places if place[0] == i]
        largest = max((float(t.values[()].max(initial=0.0)) for t in own), default=0.0)
        rows = [_text(row, traced.get((i, j)), largest) for j, row in enumerate(x.rows)]
        features = [[f, round(float(w), 3)] for f, w in x.features.items()]
        continuations.append({"name": x.name, "features": features, "where": x.where, "unit": x.unit, "rows": rows})
    return continuations


def _text(row: Steered, traced: Traced | None, largest: float) -> list[Any]:
    pieces, shown = [row.text], "0"
    if traced is not None:
        pieces, shown = traced.pieces, levels(traced.values[()].tolist(), largest)
    measured = round(row.concept, 3), row.perplexity and round(row.perplexity, 2)
    return [row.prompt, row.strength, pieces, shown, *measured, row.along]
