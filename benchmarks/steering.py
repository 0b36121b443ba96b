"""Claim: steering along a translated atlas feature makes the subject express it, more with strength, unlike random.

The share of sampled continuations in which the feature fires (the atlas is the judge), by strength in mean token norms,
for Procrustes, covariance and random translations of single features, with the mean logarithm of the continuations'
perplexity under the unsteered subject, on a run: ``python benchmarks/steering.py RUN --out FILE``.
"""

import json
from pathlib import Path

import numpy as np
from _common import arguments_of, machine, write

from atlas_jax.experiments import expression_rates, steer
from atlas_jax.metrics import faithfulness
from atlas_jax.pipeline import Alignment

PROMPTS = ("This function", "The", "Returns", "If", "We", "It is", "A", "When")
STRENGTHS = (-0.5, 0.0, 0.125, 0.25, 0.5, 1.0)  # mean token norms of the site


def main() -> None:
    """Measure and write."""
    parser = arguments_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--features", type=int, default=20)
    arguments = parser.parse_args()
    alignment = Alignment.load(arguments.run)
    usable = np.flatnonzero((alignment.rate > 0.01) & (alignment.rate < 0.1))
    count = 3 if arguments.quick else arguments.features
    chosen = np.sort(np.random.default_rng(0).choice(usable, count, replace=False))
    rows = []
    for method in ("procrustes", "covariance", "random"):
        translation = alignment.translation(arguments.site, method)
        steered = [
            steer(
                alignment.subject.model, alignment.atlas, {translation.site: translation},
                alignment.atlas.query([int(f)]), PROMPTS, STRENGTHS, max_new_tokens=30, unit="norm",
            )
            for f in chosen
        ]  # fmt: skip
        rates = [expression_rates(texts) for texts in steered]
        table = np.array([[r[s] for s in STRENGTHS] for r in rates])
        score = np.asarray(faithfulness(table, np.array(STRENGTHS)))
        rows.append({
            "method": method, "rates": table.mean(0).tolist(), "faithfulness": float(np.nanmean(score)),
            "perplexity": [perplexity(steered, s) for s in STRENGTHS],
        })  # fmt: skip
    found = {"site": arguments.site, "token_norm": translation.token_norm, "features": chosen.tolist()}
    found |= {"prompts": len(PROMPTS), "strengths": STRENGTHS}
    report = machine() | found | {"rows": rows}
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


def perplexity(steered: list, strength: float) -> float:
    """The geometric mean of the perplexities of the continuations at a strength."""
    of = [s.perplexity for texts in steered for s in texts if s.strength == strength and s.perplexity]
    return float(np.exp(np.mean(np.log(of))))


if __name__ == "__main__":
    main()
