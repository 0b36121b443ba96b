"""Claim: directions by gradients express a concept more than twice as often as Procrustes at equal perplexity.

The share of sampled continuations that express a single atlas feature, at twice the perplexity of unsteered text
(interpolated between strengths, concept by concept), for directions of translators, of ``concept_directions``, and for
controls, on a run: ``python benchmarks/steering_directions.py RUN [--quick] --out FILE``. Three judges: the feature
fires (the atlas, which gradients were led by), a word of its label is there, and static embeddings of text and label.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments_of, machine, write

from atlas_jax.experiments import (
    HOWS,
    AtlasJudge,
    SteeringConcept,
    SteeringSettings,
    WordsJudge,
    concept_directions,
    concept_queries,
    directions,
    distinct,
    paper,
    single_features,
)
from atlas_jax.experiments._steering_plan import UNSTEERED
from atlas_jax.experiments._steering_texts import Decoder, Row, decode
from atlas_jax.metrics import bootstrap_mean
from atlas_jax.pipeline import Alignment

STRENGTHS = (0.15, 0.3, 0.45, 0.65, 0.9, 1.3)  # mean token norms of the site
TRANSLATORS = "procrustes", "covariance"
TWICE = np.log(2)


def main() -> None:
    """Measure and write."""
    parser = arguments_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--concepts", type=int, default=20)
    arguments = parser.parse_args()
    alignment, quick = Alignment.load(arguments.run), arguments.quick
    sizes = {"concepts": 2, "prompts": 2, "strengths": STRENGTHS[::3], "tokens": 8} if quick else {}
    settings, found, cost = steered(alignment, arguments.site, TRANSLATORS, **{"concepts": arguments.concepts} | sizes)
    report = machine() | {
        "site": arguments.site, "concepts": [c.name for c in settings.concepts], "prompts": len(settings.prompts),
        "strengths": settings.strengths, "tokens": settings.max_new_tokens, "temperature": settings.temperature,
        "fit sentences": len(alignment.corpus.fit), "cost": cost, "methods": {m: row(own) for m, own in found.items()},
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


def steered(
    alignment: Alignment, site: str, translators: Sequence[str], *, concepts: int = 20, prompts: int = 8,
    strengths: Sequence[float] = STRENGTHS, tokens: int = 24,
) -> tuple[SteeringSettings, dict[str, list["Curve"]], dict[str, dict]]:  # fmt: skip
    """Steer along single features by translators, by ``concept_directions`` and by controls.

    Returns:
      What was asked for, the curves of the concepts by method, and the cost of directions by gradients.
    """
    features = single_features(alignment, concepts)
    settings = SteeringSettings(
        tuple(SteeringConcept(name, (int(np.argmax(q)),), (1.0,)) for name, q in features.items()),
        paper().prompts[:prompts], tuple(strengths), ((site,),), (*translators, *HOWS[1:]),
        controls=("random", "diffmean"), random=1, max_new_tokens=tokens, temperature=0.5,
    )  # fmt: skip
    along, cost = directions(alignment, dataclasses.replace(settings, methods=tuple(translators))), {}
    for how in HOWS[1:]:
        found = concept_directions(alignment, features, site, how)
        along.subject.update({(how, *key): direction.vector for key, direction in found.items()})
        cost[how] = dict(next(iter(found.values())).cost)
    with tempfile.TemporaryDirectory() as folder:
        rows = decode(Decoder(alignment, settings, lambda: along), Path(folder) / "texts.jsonl")
    return settings, curves(alignment, settings, rows), cost


def curves(alignment: Alignment, settings: SteeringSettings, rows: Sequence[Row]) -> dict[str, list["Curve"]]:
    """The curve of every concept by method, without steering last."""
    size = len(settings.prompts)
    cells = {rows[i].cell: rows[i : i + size] for i in range(0, len(rows), size)}
    unsteered = next(part for cell, part in cells.items() if cell.concept is None)
    queries = concept_queries(alignment.atlas, settings.concepts)
    texts = alignment.corpus.eval
    neutral = [texts[i] for i in range(0, len(texts), max(1, len(texts) // 256))]
    judges = {"words": WordsJudge(), "embedding": AtlasJudge(alignment.atlas, queries, neutral, parts=("embedding",))}
    methods = dict.fromkeys([*(c.method for c in cells if c.concept is not None), UNSTEERED])
    return {m: [Curve(cells, unsteered, m, c.name, judges) for c in settings.concepts] for m in methods}


def row(own: Sequence["Curve"]) -> dict[str, Any]:
    """Rates of a method at twice the perplexity by judge, means over concepts with 95% intervals, and the strength."""
    rates = {judge: bootstrap_mean(np.array([c.at_twice(judge) for c in own]))._asdict() for judge in own[0].rates}
    return rates | {"strength": float(np.mean([c.crossing() for c in own]))}


class Curve:
    """Rates of a concept by strength, and the logarithm of the perplexity over that of unsteered text."""

    def __init__(self, cells: dict, unsteered: list[Row], method: str, name: str, judges: dict) -> None:
        steered = {c.strength: part for c, part in cells.items() if (c.method, c.concept) == (method, name)}
        parts = {0.0: unsteered} | dict(sorted(steered.items()))
        nats = [np.mean([np.log(r.perplexity) for r in part if r.perplexity]) for part in parts.values()]
        self.strengths, self.nats = list(parts), np.array(nats) - nats[0]
        self.rates = {"atlas": [np.mean([r.activations[name] > 0 for r in part]) for part in parts.values()]}
        for judge, of in judges.items():
            self.rates[judge] = [np.mean([x == 2 for x in of.judge(name, [r.text for r in p])]) for p in parts.values()]
        self.rates["distinct"] = [
            np.mean([distinct(r.ids, 1) for r in part if r.ids] or [np.nan]) for part in parts.values()
        ]

    def at_twice(self, judge: str) -> float:
        """The rate where perplexity reaches twice the unsteered one, or at the largest strength if it never does."""
        return self._interpolated(self.rates[judge])

    def crossing(self) -> float:
        """The strength there."""
        return self._interpolated(self.strengths)

    def _interpolated(self, values: Sequence[float]) -> float:
        over = np.flatnonzero(self.nats > TWICE)
        if not len(over):
            return float(values[-1])
        i = int(over[0])
        share = (TWICE - self.nats[i - 1]) / (self.nats[i] - self.nats[i - 1])
        return float(values[i - 1] + share * (values[i] - values[i - 1]))


if __name__ == "__main__":
    main()
