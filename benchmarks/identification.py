"""Claim: the correlation finds a concept's features, and names a feature, best; no measure of the paper asks that.

Table 3 measures directions, and Table 4 averaged queries; ``identify`` and ``name`` take single features. So, on the
held-out half of runs, by translation and site:

- identify: the subject feature most similar to a single atlas feature, and the AP with which its activation tells the
  sentences that the atlas feature fires in; beside the best that any subject feature of the site has;
- name: the atlas feature first in the row of a subject feature, and the AUROC with which its activation tells the
  subject feature's 20 strongest sentences from the others.

    python benchmarks/identification.py RUN [RUN ...] --out FILE [--page docs/what-works-when.md]
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments_of, machine, seconds_of, write
from readme_examples import replaced

from atlas_jax.experiments import choose_features
from atlas_jax.experiments._quality import BAND, one_hot
from atlas_jax.metrics import auroc, bootstrap_mean, detection
from atlas_jax.pipeline import Alignment, SentenceStream, pooled_activations
from atlas_jax.types import Site

FEATURES, STRONGEST = 200, 20


def main() -> None:
    """Measure, write, and fill the page."""
    parser = arguments_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    known = arguments.out and arguments.out.exists()
    runs = json.loads(arguments.out.read_text(encoding="utf-8"))["runs"] if known else {}
    for path in arguments.runs:
        seconds, runs[path.name] = seconds_of(lambda path=path: measured(Alignment.load(path), quick=arguments.quick))
        runs[path.name] |= machine() | {"seconds": round(seconds)}
        write({"runs": runs}, arguments.out)
    if arguments.page:
        text = arguments.page.read_text(encoding="utf-8")
        for use in ("identify", "name"):
            text = replaced(text, use, lines(runs, use))
        arguments.page.write_text(text, encoding="utf-8")


def measured(run: Alignment, *, quick: bool) -> dict[str, Any]:
    """Both measures at every site of a run."""
    count = 400 if quick else len(run.corpus.eval)
    texts = [run.corpus.eval[i] for i in range(count)]
    a_s, a_c = (pooled_activations(SentenceStream.from_texts([space], texts)) for space in (run.subject, run.atlas))
    features = choose_features(run.rate, count=20 if quick else FEATURES, band=BAND, seed=run.settings.seed)
    sites = {str(site): measured_at(run, site, a_s[site], a_c[run.atlas.site], features) for site in run.subject.sites}
    return {
        "sentences": len(run.corpus.fit),
        "held out": count,
        "recommended": run.recommended("identify"),
        "sites": sites,
    }


def measured_at(
    run: Alignment, site: Site, a_s: np.ndarray, a_c: np.ndarray, features: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Means with intervals by method, and the best there is."""
    fires = a_c[:, features].T > 0
    tells = np.stack([ap(np.broadcast_to(feature, fires.shape), fires) for feature in a_s.T], axis=1)
    living = np.flatnonzero(a_s.std(axis=0) > 0)
    strongest = np.zeros((len(living), len(a_s)), bool)
    np.put_along_axis(strongest, np.argsort(-a_s[:, living], axis=0, kind="stable")[:STRONGEST].T, True, axis=1)
    queries = one_hot(features, run.atlas.width)
    translations = {m: t for (s, m), t in run.translations.items() if s == site}
    found: dict[str, dict[str, Any]] = {"identify": {}, "name": {}}
    for method, t in translations.items():
        first = np.asarray(t.similarity(queries)).argmax(axis=1)
        found["identify"][method] = bootstrap_mean(tells[np.arange(len(features)), first])._asdict()
        names = np.array([named.features[0] for named in t.name_features(k=1)])[living]
        found["name"][method] = bootstrap_mean(np.asarray(auroc(a_c[:, names].T, strongest)))._asdict()
    found["identify"]["the best feature"] = bootstrap_mean(tells.max(axis=1))._asdict()
    return found


def ap(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Average precision of every row."""
    return np.asarray(detection(np.ascontiguousarray(scores), positive).average_precision)


def lines(runs: dict[str, Any], use: str) -> list[str]:
    """A table of a measure: a row a method, a column a site of a run; the recommended in bold, the best with a star."""
    columns = {f"{name}, `{site}`": (run, own[use]) for name, run in runs.items() for site, own in run["sites"].items()}
    methods = dict.fromkeys(m for _, own in columns.values() for m in own)
    rows = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    best = {
        c: max((m for m in own if m != "the best feature"), key=lambda m: own[m]["mean"])
        for c, (_, own) in columns.items()
    }
    for m in methods:
        cells = []
        for c, (run, own) in columns.items():
            cell = "" if m not in own else f"{own[m]['mean']:.3f}"
            cell = f"**{cell}**" if m == run["recommended"][0] and cell else cell
            cells.append(cell + ("*" if m == best[c] else ""))
        rows.append(f"| {m if ' ' in m else f'`{m}`'} | " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    main()
