"""Table 5 from texts and ratings: faithfulness, its controls, fluency, and how they are shown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.experiments._diagnosis import LOST, beyond_sense
from atlas_jax.experiments._steering import MEANING
from atlas_jax.experiments._steering_cost import Cost
from atlas_jax.experiments._steering_plan import NATIVE, PROMPTED, UNSTEERED, SteeringSettings
from atlas_jax.experiments._steering_texts import Row
from atlas_jax.metrics import Interval, bootstrap_mean
from atlas_jax.table import Column, Table

ASPECTS = ("concept", "instruction", "fluency")


class Score(NamedTuple):
    """One row of Table 5: a method at a group of sites, means over concepts with 95% bootstrap intervals.

    Attributes:
      method: a translator or a control.
      sites: steered at once.
      faithfulness: Eq. 5, in percent: the largest gain over all strengths.
      held_out: the gain at the strength that is best on half of the prompts, on the other half; both ways round.
      reversed: Eq. 5 over negative strengths alone.
      activation_change: of the query's atlas features at the best strength, concepts without any effect left out.
      without_effect: concepts whose faithfulness is 0, which ``activation_change`` leaves out.
      perplexity: at the best strength, over that of the unsteered texts (their medians).
      distinct: share of different pairs of tokens among those of a text, at the best strength.
      repetition: share of runs of four tokens that a text has had before, at the best strength.
      harmonic: harmonic mean of the ratings for concept, instruction and fluency (0 to 2) at the best strength; None
        where the judge does not give them.
      missing: ratings that could not be had.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments import Score
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> score = Score("ridge", "mlp_act.1", interval, interval, None, None, 0, None, None, None, None, 0)
      >>> round(score.faithfulness.mean, 2)
      0.85
    """

    method: str
    sites: str
    faithfulness: Interval
    held_out: Interval
    reversed: Interval | None
    activation_change: Interval | None
    without_effect: int
    perplexity: float | None
    distinct: float | None
    repetition: float | None
    harmonic: Interval | None
    missing: int


class SteeringEvaluation(NamedTuple):
    """Table 5 and what belongs to it.

    Attributes:
      settings: what was decoded.
      judge: name of the judge.
      scores: of every method, control and group of sites.
      baseline: share of unsteered texts that express a concept, a mean over concepts.
      costs: what steering costs on neutral text; empty where it was not asked for.
      counts: by concept, ratings of each class among unsteered and steered texts together.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments import SteeringConcept, SteeringEvaluation, SteeringSettings
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> dogs = SteeringConcept("dogs", (7,), (1.0,))
      >>> settings = SteeringSettings((dogs,), ("I saw",), (0.5,), (("mlp_act.1",),), ("procrustes",), controls=())
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> SteeringEvaluation(settings, "proxy", [], interval, [], {}).judge
      'proxy'
    """

    settings: SteeringSettings
    judge: str
    scores: list[Score]
    baseline: Interval
    costs: list[Cost]
    counts: dict[str, dict[str, int]]

    def kept(self, score: Score) -> float | None:
        """Return the share of the native effect that a score keeps; None where there is none to keep."""
        native = next((s.faithfulness.mean for s in self.scores if s.method == NATIVE), 0.0)
        return score.faithfulness.mean / native if native > 0 and score.method != NATIVE else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain = lambda x: x._asdict() if isinstance(x, Interval) else x
        scores = [{k: plain(v) for k, v in s._asdict().items()} | {"kept": self.kept(s)} for s in self.scores]
        return {
            "settings": self.settings.to_dict(), "judge": self.judge, "baseline": plain(self.baseline),
            "scores": scores, "costs": [c._asdict() for c in self.costs], "counts": self.counts,
            "warnings": self.warnings(),
        }  # fmt: skip

    def warnings(self) -> list[str]:
        """Say in a sentence each where the table is not to be trusted."""
        sentences = []
        chance = {s.sites: s.faithfulness.mean for s in self.scores if s.method.startswith("random")}
        own = [s for s in self.scores if s.method in self.settings.methods]
        if weak := [f"{s.method} at {s.sites}" for s in own if s.faithfulness.mean <= chance.get(s.sites, -1.0)]:
            sentences.append(f"no better than a random direction: {', '.join(weak)}")
        if lost := [f"{s.method} at {s.sites}" for s in own if (s.perplexity or 0.0) > LOST]:
            sentences.append(f"best at a strength that more than doubles perplexity: {', '.join(lost)}")
        for s in own:
            neutral = {c.strength: c.perplexity for c in self.costs if (c.method, c.sites) == (s.method, s.sites)}
            if said := beyond_sense({0.0: 1.0} | neutral):
                sentences.append(f"{s.method} at {s.sites}, on held-out text: {said}")
        return sentences

    def tables(self) -> list[Table]:
        """Return Table 5, and what steering costs."""
        meaning = MEANING[self.settings.unit]
        columns = (
            Column("sites", group=True), Column("method"), Column("f", ".1f"), Column("f, λ held out", ".1f"),
            Column("f, λ < 0", ".1f", optional=True), Column("Δa", ".2f"), Column("no effect", "d", optional=True),
            Column("perplexity", ".3g", "×"), Column("distinct-2", ".2f", optional=True),
            Column("repeated", ".2f", optional=True), Column("kept", ".0%"),
        )  # fmt: skip
        rated = any(s.harmonic for s in self.scores)
        columns += (Column("C·I·F", ".2f"),) if rated else ()
        order = {sites: i for i, sites in enumerate(dict.fromkeys(s.sites for s in self.scores))}
        rows = []
        for s in sorted(self.scores, key=lambda s: order[s.sites]):
            cells = (
                s.sites or "-", s.method, _cell(s.faithfulness), _point(s.held_out), _point(s.reversed),
                _point(s.activation_change), s.without_effect, s.perplexity, s.distinct, s.repetition, self.kept(s),
            )  # fmt: skip
            rows.append(cells + ((_point(s.harmonic),) if rated else ()))
        missing = sum(s.missing for s in self.scores)
        caption = (
            f"{len(self.settings.concepts)} concepts, {len(self.settings.prompts)} prompts, strengths "
            f"{', '.join(f'{s:g}' for s in self.settings.strengths)} {meaning}; judge {self.judge}, {missing} ratings "
            f"missing; f: faithfulness (Eq. 5) in %, 95% interval over concepts, from {_text(self.baseline)} of the "
            "unsteered texts; λ held out: chosen on half of the prompts, measured on the other; Δa: change of the "
            "concept's atlas features where there is an effect; perplexity, distinct-2, repeated: at the best λ, "
            "perplexity under the unsteered model over that of unsteered texts; kept: share of the native effect"
        )
        tables = [Table("Steering (Table 5)", columns, rows, caption)]
        return [*tables, _cost_table(self.costs, meaning)] if self.costs else tables


class Rated(NamedTuple):
    """Ratings of the texts of a cell for a concept.

    Attributes:
      concept: what was asked for.
      aspect: of the rating.
      method: of the cell.
      sites: of the cell.
      strength: of the cell.
      ratings: 0, 1, 2 or None for missing, one a prompt.
    """

    concept: str
    aspect: str
    method: str
    sites: str
    strength: float
    ratings: list[int | None]


def evaluate_ratings(
    settings: SteeringSettings, judge: str, rows: Sequence[Row], rated: Sequence[Rated], costs: list[Cost]
) -> SteeringEvaluation:
    """Compute Table 5 from texts and ratings."""
    size = len(settings.prompts)
    texts = {(r[0].cell.concept, *r[0].cell[1:]): r for r in (rows[i : i + size] for i in range(0, len(rows), size))}
    ratings = {(r.aspect, r.concept, r.method, r.sites, r.strength): r.ratings for r in rated}
    columns = dict.fromkeys((r.method, r.sites) for r in rated if r.method != UNSTEERED and r.sites)
    columns |= dict.fromkeys((r.method, r.sites) for r in rated if r.method == PROMPTED)
    scores = [_score(settings, texts, ratings, *column) for column in columns]
    names = [c.name for c in settings.concepts]
    base = [_share(ratings["concept", n, UNSTEERED, "", 0.0]) for n in names]
    counts = {
        n: {str(k): sum(r.ratings.count(k) for r in rated if r.concept == n and r.aspect == "concept") for k in
            (0, 1, 2, None)} for n in names
    }  # fmt: skip
    return SteeringEvaluation(settings, judge, scores, bootstrap_mean(np.array(base)), costs, counts)


def _share(ratings: Sequence[int | None]) -> float:
    """Share of class 2 among classes 0 and 2; nan where there are none."""
    clear = [r for r in ratings if r in (0, 2)]
    return clear.count(2) / len(clear) if clear else float("nan")


def _gain(rate: float, baseline: float) -> float:
    """Eq. 5 at one strength, in percent; nan where nothing can be gained."""
    return 100 * (rate - baseline) / (1 - baseline) if baseline < 1 else float("nan")


class _Effect(NamedTuple):
    """The effect of steering on one concept."""

    faithfulness: float
    held_out: float
    reversed: float
    change: float
    best: float


def _score(settings: SteeringSettings, texts: Any, ratings: Any, method: str, sites: str) -> Score:
    names = [c.name for c in settings.concepts]
    effects = [_effect(settings, texts, ratings, method, sites, name) for name in names]
    chosen = [texts[name, method, sites, e.best] for name, e in zip(names, effects, strict=True)]
    base = texts[(None, NATIVE if method == NATIVE else UNSTEERED, "", 0.0)]
    changes = [e.change for e in effects if e.faithfulness > 0]
    rated = [ratings.get((a, n, method, sites, e.best)) for n, e in zip(names, effects, strict=True) for a in ASPECTS]
    harmonic = [_harmonic(rated[i : i + 3]) for i in range(0, len(rated), 3)] if None not in rated else None
    own = [r for (_, _, m, s, _), values in ratings.items() if (m, s) == (method, sites) for r in values]
    several = any(s < 0 for s in settings.strengths) and method != PROMPTED
    return Score(
        method, sites, bootstrap_mean(np.array([e.faithfulness for e in effects])),
        bootstrap_mean(np.array([e.held_out for e in effects])),
        bootstrap_mean(np.array([e.reversed for e in effects])) if several else None,
        bootstrap_mean(np.array(changes)) if changes else None,
        sum(e.faithfulness == 0 for e in effects),
        _ratio([r.perplexity for rows in chosen for r in rows], [r.perplexity for r in base]),
        _mean(distinct(r.ids, 2) for rows in chosen for r in rows),
        _mean(repetition(r.ids) for rows in chosen for r in rows),
        None if harmonic is None else bootstrap_mean(np.array(harmonic)), own.count(None),
    )  # fmt: skip


def _effect(settings: SteeringSettings, texts: Any, ratings: Any, method: str, sites: str, name: str) -> _Effect:
    unsteered = NATIVE if method == NATIVE else UNSTEERED
    strengths = settings.strengths if method != PROMPTED else (0.0,)
    baseline = ratings["concept", name, unsteered, "", 0.0]
    at = {s: ratings["concept", name, method, sites, s] for s in strengths}
    gains = {s: _gain(_share(r), _share(baseline)) for s, r in at.items()}
    known = {s: g for s, g in gains.items() if not np.isnan(g)}
    best = max(known, key=lambda s: (known[s], -abs(s)), default=strengths[0])
    over = lambda chosen: max([0.0, *(known[s] for s in known if chosen(s))]) if known else float("nan")
    means = lambda rows: float(np.mean([r.activations[name] for r in rows]))
    change = means(texts[name, method, sites, best]) - means(texts[None, unsteered, "", 0.0])
    return _Effect(over(lambda s: True), _held_out(at, baseline), over(lambda s: s < 0), change, best)


def _held_out(at: Mapping[float, Sequence[int | None]], baseline: Sequence[int | None]) -> float:
    """The gain at the strength that is best on every other prompt, on the rest; the mean of both ways round."""
    gains = []
    for own, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        seen = {s: _gain(_share(r[own]), _share(baseline[own])) for s, r in at.items()}
        seen = {s: g for s, g in seen.items() if not np.isnan(g)}
        if seen:
            best = max(seen, key=lambda s: (seen[s], -abs(s)))
            gains.append(_gain(_share(at[best][other]), _share(baseline[other])))
    return _mean(gains) if _mean(gains) is not None else float("nan")


def _harmonic(aspects: Sequence[Sequence[int | None]]) -> float:
    """AxBench: the harmonic mean of the three ratings of each text, 0 where one is 0; their mean over texts."""
    rows = [r for r in zip(*aspects, strict=True) if None not in r]
    return _mean(0.0 if 0 in r else 3 / sum(1 / x for x in r) for r in rows) if rows else float("nan")


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Return the share of different runs of ``n`` tokens among all of a text (distinct-n); None where it has none.

    Example:
      >>> from atlas_jax.experiments import distinct
      >>> distinct([1, 2, 1, 2, 1], 2)
      0.5
    """
    runs = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(runs)) / len(runs) if runs else None


def repetition(ids: Sequence[int], n: int = 4) -> float | None:
    """Return the share of runs of ``n`` tokens that a text has had before; None where it has none.

    Example:
      >>> from atlas_jax.experiments import repetition
      >>> repetition([1, 2, 3, 4, 1, 2, 3, 4], 4)
      0.2
    """
    share = distinct(ids, n)
    return None if share is None else round(1 - share, 12)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(known)) if known else None


def _ratio(steered: Sequence[float | None], base: Sequence[float | None]) -> float | None:
    known: list[Float[np.ndarray, " n"]] = [np.array([x for x in part if x is not None]) for part in (steered, base)]
    return float(np.median(known[0]) / np.median(known[1])) if all(map(len, known)) else None


def _cell(x: Interval | None) -> tuple[float, float, float] | None:
    return None if x is None or np.isnan(x.mean) else (x.mean, x.low, x.high)


def _point(x: Interval | None) -> float | None:
    return None if x is None or np.isnan(x.mean) else x.mean


def _text(x: Interval) -> str:
    return f"{x.mean:.1%}"


def _cost_table(costs: Sequence[Cost], meaning: str) -> Table:
    columns = (
        Column("sites", group=True), Column("method", group=True), Column("strength", "g"),
        Column("perplexity", ".3g", "×"), Column("KL", ".3f"),
    )  # fmt: skip
    caption = (
        f"strength: {meaning}; perplexity of held-out text under the steered model over that under the unsteered one; "
        "KL: from the unsteered to the steered next-token distribution, in nats; means over concepts"
    )
    rows = [(c.sites, c.method, c.strength, c.perplexity, c.kl) for c in costs]
    return Table("What steering costs on neutral text", columns, rows, caption)
