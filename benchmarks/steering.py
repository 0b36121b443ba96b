"""Claim: steering along a translated atlas feature makes the subject express it, more with strength, unlike random.

The share of sampled continuations in which the feature fires (the atlas is the judge), by strength, for Procrustes,
covariance and random translations of single features, on a run: ``python benchmarks/steering.py RUN --out FILE``.
"""

import json
from pathlib import Path

import numpy as np
from _common import arguments_of, machine, write

from atlas_jax.experiments import expression_rates, steer
from atlas_jax.metrics import faithfulness
from atlas_jax.pipeline import Alignment

PROMPTS = ("This function", "The", "Returns", "If", "We", "It is", "A", "When")
STRENGTHS = (-40.0, 0.0, 10.0, 20.0, 40.0, 80.0)


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
        rates = [
            expression_rates(
                steer(
                    alignment.subject.model, alignment.atlas, {translation.site: translation},
                    alignment.atlas.query([int(f)]), PROMPTS, STRENGTHS, max_new_tokens=30,
                )
            )
            for f in chosen
        ]  # fmt: skip
        table = np.array([[r[s] for s in STRENGTHS] for r in rates])
        score = np.asarray(faithfulness(table, np.array(STRENGTHS)))
        rows.append({"method": method, "rates": table.mean(0).tolist(), "faithfulness": float(np.nanmean(score))})
    found = {"site": arguments.site, "features": chosen.tolist(), "prompts": len(PROMPTS), "strengths": STRENGTHS}
    report = machine() | found | {"rows": rows}
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


if __name__ == "__main__":
    main()
