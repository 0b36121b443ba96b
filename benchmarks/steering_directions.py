"""Claim: directions by gradients express a concept at least three times as often as Procrustes at equal perplexity.

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
    features = single_features(alignment, 2 if quick else arguments.concepts)
    concepts = tuple(SteeringConcept(name, (int(np.argmax(q)),), (1.0,)) for name, q in features.items())
    settings = SteeringSettings(
        concepts, paper().prompts[: 2 if quick else 8], STRENGTHS[::3] if quick else STRENGTHS, ((arguments.site,),),
        (*TRANSLATORS, *HOWS[1:]), controls=("random", "diffmean"), random=1, max_new_tokens=8 if quick else 24,
        temperature=0.5,
    )  # fmt: skip
    along, cost = directions(alignment, dataclasses.replace(settings, methods=TRANSLATORS)), {}
    for how in HOWS[1:]:
        found = concept_directions(alignment, features, arguments.site, how)
        along.subject.update({(how, *key): direction.vector for key, direction in found.items()})
        cost[how] = dict(next(iter(found.values())).cost)
    with tempfile.TemporaryDirectory() as folder:
        rows = decode(Decoder(alignment, settings, lambda: along), Path(folder) / "texts.jsonl")
    report = machine() | {
        "site": arguments.site, "concepts": list(features), "prompts": len(settings.prompts),
        "strengths": settings.strengths, "tokens": settings.max_new_tokens, "temperature": settings.temperature,
        "fit sentences": len(alignment.corpus.fit), "cost": cost, "methods": table(alignment, settings, rows),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


def table(alignment: Alignment, settings: SteeringSettings, rows: Sequence[Row]) -> dict[str, dict]:
    """Rates at twice the perplexity by method and judge, means over concepts with 95% intervals."""
    size, names = len(settings.prompts), [c.name for c in settings.concepts]
    cells = {rows[i].cell: rows[i : i + size] for i in range(0, len(rows), size)}
    unsteered = next(part for cell, part in cells.items() if cell.concept is None)
    queries = concept_queries(alignment.atlas, settings.concepts)
    texts = alignment.corpus.eval
    neutral = [texts[i] for i in range(0, len(texts), max(1, len(texts) // 256))]
    judges = {"words": WordsJudge(), "embedding": AtlasJudge(alignment.atlas, queries, neutral, parts=("embedding",))}
    methods = list(dict.fromkeys(cell.method for cell in cells if cell.concept is not None))
    found = {}
    for method in methods:
        curves = [Curve(cells, unsteered, method, name, judges) for name in names]
        found[method] = {
            judge: bootstrap_mean(np.array([c.at_twice(judge) for c in curves]))._asdict() for judge in curves[0].rates
        }
        found[method]["strength"] = float(np.mean([c.crossing() for c in curves]))
    base = [Curve(cells, unsteered, None, name, judges) for name in names]
    found["unsteered"] = {j: bootstrap_mean(np.array([c.rates[j][0] for c in base]))._asdict() for j in base[0].rates}
    return found


class Curve:
    """Rates of a concept by strength, and the logarithm of the perplexity over that of unsteered text."""

    def __init__(self, cells: dict, unsteered: list[Row], method: str | None, name: str, judges: dict) -> None:
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
