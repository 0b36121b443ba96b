"""Claim: no translation is best for every use, and the one a run recommends is close to the best.

By pair of models and use, every method with a 95% bootstrap interval, what ``Alignment.recommended`` picks, and how far
that is from the best; then the aims: detection (AP) at least 1.15 times Procrustes, retrieval MRR at least 0.95,
steering (share of texts that express the concept at twice the perplexity) at least 3 times Procrustes and 1.5 times the
difference of means. On runs made with ``align --choose detect --choose retrieve --choose steer``, and ``--method
whitened_lens`` beside the methods of the paper:

    python benchmarks/what_works.py RUN [RUN ...] --out FILE [--page docs/what-works-when.md]

Pairs already in the JSON are kept; ``--page`` writes its tables into the page, also without a run.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments_of, machine, seconds_of, write
from readme_examples import replaced
from steering_directions import STRENGTHS, steered

from atlas_jax.experiments import choose_features, whitened_grid
from atlas_jax.experiments._choose import score_members
from atlas_jax.experiments._quality import BAND, one_hot, score_directions
from atlas_jax.experiments._retrieval import SENTENCES, averaged_queries, chance_mrr, ranked
from atlas_jax.metrics import bootstrap_mean, detection
from atlas_jax.pipeline import Alignment, fit_statistics
from atlas_jax.types import Site

GRID = whitened_grid()
LEFT_OUT = "random", "whitened_detect", "whitened_retrieve"  # of steering, to save time
AIMS = ("detect", "procrustes", 1.15), ("steer", "procrustes", 3.0), ("steer", "diffmean", 1.5)
USES = "detect", "retrieve", "steer", "steer by words"


def main() -> None:
    """Measure, write, and fill the page."""
    parser = arguments_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--tokens", type=int, default=24, help="of a continuation")
    parser.add_argument("--concepts", type=int, default=20, help="single features to steer along")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--retrieval", action="store_true", help="alone, of pairs whose other uses are in the JSON")
    arguments = parser.parse_args()
    known = arguments.out and arguments.out.exists()
    pairs = json.loads(arguments.out.read_text(encoding="utf-8"))["pairs"] if known else {}
    for path in arguments.runs:
        run = Alignment.load(path)
        if arguments.retrieval:
            pairs[path.name]["uses"]["retrieve"] = retrieved(run, run.subject.sites[0])
        else:
            seconds, pairs[path.name] = seconds_of(lambda run=run: pair(run, arguments))
            pairs[path.name] |= machine() | {"seconds": round(seconds)}
        write({"pairs": pairs}, arguments.out)
    if arguments.page:
        text = arguments.page.read_text(encoding="utf-8")
        for use in USES:
            text = replaced(text, use, lines(pairs, use))
        arguments.page.write_text(replaced(text, "aims", aims(pairs)), encoding="utf-8")


def pair(run: Alignment, arguments: Any) -> dict[str, Any]:
    """All three uses of a run; detection and retrieval at its first site, steering at its last."""
    first, last = run.subject.sites[0], run.subject.sites[-1]
    features = choose_features(run.rate, count=20 if arguments.quick else 100, band=BAND, seed=run.settings.seed)
    sizes = {"concepts": 2, "prompts": 2, "strengths": STRENGTHS[::3], "tokens": 8}
    if not arguments.quick:
        sizes = {"concepts": arguments.concepts, "prompts": 6, "strengths": STRENGTHS[1:], "tokens": arguments.tokens}
    found = {"detect": detected(run, first, features), "retrieve": retrieved(run, first)}
    translators = [m for m in run.methods if m not in LEFT_OUT]
    settings, curves, cost = steered(run, str(last), translators, **sizes)
    for judge, use in {"atlas": "steer", "words": "steer by words", "embedding": "steer by embedding"}.items():
        own = {m.removesuffix(" 0"): np.array([c.at_twice(judge) for c in of]) for m, of in curves.items()}
        found[use] = compared(own, picked(run, "steer"))
    distinct = {m.removesuffix(" 0"): float(np.mean([c.at_twice("distinct") for c in of])) for m, of in curves.items()}
    return {
        "sentences": len(run.corpus.fit), "held out": len(run.corpus.eval), "atlas features": run.atlas.width,
        "site": str(first), "site of steering": str(last), "sizes": sizes, "prompts": settings.prompts,
        "concepts": [f for c in settings.concepts for f in c.features], "uses": found, "distinct": distinct,
        "cost": cost, "members": members(run, first, features),
    }  # fmt: skip


def detected(run: Alignment, site: Site, features: np.ndarray) -> dict[str, Any]:
    """AP (and AUROC) of every translation of a site, as in Table 3."""
    queries = one_hot(features, run.atlas.width)
    along = {key: t.similarity(queries) for key, t in run.translations.items() if key[0] == site}
    scores, scored = score_directions(run.stream("eval"), along, features)
    measured = {method: detection(own, scored.positive) for (_, method), own in scores.items()}
    aurocs = {method: bootstrap_mean(own.auroc)._asdict() for method, own in measured.items()}
    found = compared({m: np.asarray(own.average_precision) for m, own in measured.items()}, picked(run, "detect"))
    return found | {"auroc": aurocs, "chance": float(scored.positive.mean())}


def retrieved(run: Alignment, site: Site) -> dict[str, Any]:
    """MRR of every translation of a site, as in Table 4, the mean atlas activations subtracted."""
    stream = run.stream("eval")
    statistics = fit_statistics(stream, ["top_k"], top_k=SENTENCES).statistics
    queries, valid = averaged_queries(stream, statistics, SENTENCES)[site]
    own = {m: t for (s, m), t in run.translations.items() if s == site}
    ranks = {m: ranked(t.similarity(queries - t.mean_atlas[None, :]), valid)[0] for m, t in own.items()}
    return compared(ranks, picked(run, "retrieve")) | {"chance": chance_mrr(len(valid))}


def members(run: Alignment, site: Site, features: np.ndarray) -> dict[str, dict[str, Any]]:
    """The best that any member of the whitened family reaches on the held-out half, where the chooser did not look."""
    needs = frozenset().union(*(member.needs for member in GRID))
    stream = run.stream("eval")
    fitted, held = fit_statistics(run.stream("fit"), needs), fit_statistics(stream, needs | {"top_k"}, top_k=SENTENCES)
    scores = score_members(("detect", "retrieve"), GRID, features, stream, fitted, held, seed=run.settings.seed)
    best = lambda own, name: max(({name: own[m][name]} | m._asdict() for m in GRID), key=lambda row: row[name])
    return {"detect": best(scores["detect"][site], "ap"), "retrieve": best(scores["retrieve"][site], "mrr")}


def picked(run: Alignment, use: str) -> str:
    """The name of what a run recommends."""
    method, pooling = run.recommended(use)
    return method if pooling == run.settings.pooling else f"{method}:{pooling}"


def compared(values: dict[str, np.ndarray], pick: str) -> dict[str, Any]:
    """Means with intervals, the pick beside the best, and ratios of pick and best to the baselines there are."""
    rows = {method: bootstrap_mean(own)._asdict() for method, own in values.items()}
    best = max(rows, key=lambda m: rows[m]["mean"])
    to = lambda method: {b: ratio(values[method], values[b]) for b in ("procrustes", "diffmean") if b in values}
    return {"methods": rows, "pick": pick, "best": best, "ratios": {"pick": to(pick), "best": to(best)}}


def ratio(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """The ratio of two means over the same features, with its 95% bootstrap interval; None where it is not finite."""
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    drawn = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.percentile(a[drawn].mean(1) / b[drawn].mean(1), (2.5, 97.5))
        found = {"ratio": a.mean() / b.mean(), "low": low, "high": high}
    return {name: float(x) if np.isfinite(x) else None for name, x in found.items()}


def lines(pairs: dict[str, Any], use: str) -> list[str]:
    """A table of a use: a row a method, a column a pair; what is recommended in bold, the best with a star."""
    of = {name: p["uses"][use] for name, p in pairs.items()}
    methods = dict.fromkeys(m for own in of.values() for m in own["methods"])
    found = ["| method | " + " | ".join(of) + " |", "|---|" + "---|" * len(of)]
    for m in methods:
        cells = [cell(own, m) if m in own["methods"] else "" for own in of.values()]
        found.append(f"| `{m}` | " + " | ".join(cells) + " |")
    if "chance" in next(iter(of.values())):
        found.append("| chance | " + " | ".join(f"{own['chance']:.3f}" for own in of.values()) + " |")
    return found


def cell(own: dict[str, Any], method: str) -> str:
    """A mean with its interval."""
    row = own["methods"][method]
    mean = f"**{row['mean']:.3f}**" if method == own["pick"] else f"{row['mean']:.3f}"
    return f"{mean}{'*' if method == own['best'] else ''} [{row['low']:.2f}, {row['high']:.2f}]"


def aims(pairs: dict[str, Any]) -> list[str]:
    """What is recommended beside the best there is and beside the aims, by pair."""
    found = ["| | aim | " + " | ".join(pairs) + " |", "|---|---|" + "---|" * len(pairs)]
    add = lambda name, aim, values: found.append(f"| {name} | {aim} | " + " | ".join(values) + " |")
    uses = [p["uses"] for p in pairs.values()]
    mean = lambda own, which: own["methods"][own[which]]["mean"]
    for use in USES[:3]:
        add(
            f"{use}: recommended / best method",
            "1",
            [f"{mean(u[use], 'pick') / mean(u[use], 'best'):.2f}" for u in uses],
        )
    for use, measure in (("detect", "ap"), ("retrieve", "mrr")):
        shares = [mean(p["uses"][use], "pick") / p["members"][use][measure] for p in pairs.values()]
        add(f"{use}: recommended / best of {len(GRID)} members", "1", [f"{share:.2f}" for share in shares])
    add("retrieve: MRR of the recommended", "0.95", [f"{mean(u['retrieve'], 'pick'):.2f}" for u in uses])
    for use, base, aim in AIMS:
        for which in ("pick", "best") if use == "steer" else ("pick",):
            ratios = [own[use]["ratios"][which][base] for own in uses]
            name = f"{use}: {'recommended' if which == 'pick' else 'best'} / {base}"
            number = lambda x: "–" if x is None else f"{x:.2f}"
            add(name, f"{aim:g}", ["{} [{}, {}]".format(*map(number, r.values())) for r in ratios])
    return found


if __name__ == "__main__":
    main()
