"""Figures of records, each with the table of its numbers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from atlas_jax.experiments import Causality, Curve, Domains, Layers, Quality, QualityRow, Retrieval
from atlas_jax.metrics import Interval
from atlas_jax.report._svg import Point, bars, heatmap, lines
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.types import Site

SVD_WIDEST = 2048  # features of the narrower side up to which a spectrum takes no time
CURVE_POINTS = 60
SPECTRUM_POINTS = 40
MEASURES = {"AP": lambda r: r.average_precision, "AUROC": lambda r: r.auroc}


class Figure(NamedTuple):
    """A plot and its numbers.

    Attributes:
      title: what it shows.
      svg: the plot.
      table: its numbers.
      wide: whether it takes the whole width of the page.
    """

    title: str
    svg: Markup
    table: Table
    wide: bool = False


def quality_figures(quality: Quality) -> list[Figure]:
    """Draw Table 3, methods by sites, the best method of a site in bold."""
    cells = {(r.method, str(r.site)): r for r in quality.rows}
    return [_matrix(f"{name} by site and method", cells, of) for name, of in MEASURES.items()]


def retrieval_figures(retrieval: Retrieval) -> list[Figure]:
    """Draw Table 4 in the same way."""
    cells = {(r.method, str(r.site)): r for r in retrieval.rows}
    measures = {"MRR": lambda r: r.mrr, "MPP": lambda r: r.mpp}
    return [_matrix(f"{name} by site and method", cells, of) for name, of in measures.items()]


def domain_figures(domains: Domains) -> list[Figure]:
    """Draw AP across domains: a row a fit domain, a column a test domain."""
    heatmaps = []
    for site, method in dict.fromkeys(r.quality[:2] for r in domains.rows):
        cells = {(r.fit, r.test): r.quality for r in domains.rows if r.quality[:2] == (site, method)}
        heatmaps.append(_matrix(f"AP at {site} by {method}: fit domain by test domain", cells, MEASURES["AP"]))
    return heatmaps


def _matrix(title: str, cells: Mapping[tuple[str, str], Any], of: Callable[[Any], Interval]) -> Figure:
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    values = {(rows.index(r), columns.index(c)): Point(0.0, *of(x)[:3]) for (r, c), x in cells.items()}
    highest = {j: max((p.y for (_, k), p in values.items() if k == j and p.y == p.y), default=None) for _, j in values}
    best = frozenset(place for place, p in values.items() if p.y == highest[place[1]])
    numbers = [(rows[i], columns[j], tuple(p[1:])) for (i, j), p in values.items()]
    table = Table(title, (Column("row"), Column("column"), Column("value", ".4f")), numbers)
    return Figure(title, heatmap(rows, columns, values, title=title, best=best), table, wide=len(columns) > 4)


def learning_figures(curve: Curve) -> list[Figure]:
    """Draw AP against the number of fit sentences, a plot a site."""
    return [
        _lines(
            f"AP at {site} by number of fit sentences",
            _grouped((q.method, size, q) for size, q in curve.rows if q.site == site),
            x="fit sentences",
            log_x=True,
        )
        for site in dict.fromkeys(q.site for _, q in curve.rows)
    ]


def layer_figures(layers: Layers) -> list[Figure]:
    """Draw AP by layer, a plot a point of the model."""
    curves = []
    for point in dict.fromkeys(r.site.point for r in layers.rows):
        rows = [r for r in layers.rows if r.site.point == point]
        series = _grouped((r.method, r.site.layer, r) for r in sorted(rows, key=lambda r: r.site.layer))
        curves.append(_lines(f"AP at {point} by layer", series, x="layer"))
    return curves


def _grouped(rows: Iterable[tuple[str, float, QualityRow]]) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for name, x, row in rows:
        series.setdefault(name, []).append(Point(float(x), *row.average_precision[:3]))
    return series


def _lines(title: str, series: Mapping[str, Sequence[Point]], *, x: str, y: str = "AP", **options: Any) -> Figure:
    ranged = any(p.low is not None for line in series.values() for p in line)
    rows = [
        (name, p.x, tuple(p[1:]) if ranged and p.low is not None else p.y) for name, of in series.items() for p in of
    ]
    table = Table(title, (Column("line"), Column(x, ".6g"), Column(y, ".4g")), rows)
    return Figure(title, lines(series, x, y, title=title, **options), table)


def dose_figures(rows: Iterable[tuple[str, float, float, float | None]], unit: str, where: str = "") -> list[Figure]:
    """Draw the activation of a concept and the perplexity of the text by strength.

    Args:
      rows: name of the line, strength, activation, perplexity; None where there is none.
      unit: of the strengths.
      where: end of the titles.
    """
    active: dict[str, dict[float, list[float]]] = {}
    sense: dict[str, dict[float, list[float]]] = {}
    for name, strength, activation, perplexity in rows:
        active.setdefault(name, {}).setdefault(float(strength), []).append(activation)
        if perplexity is not None and 0 < perplexity < math.inf:
            sense.setdefault(name, {}).setdefault(float(strength), []).append(math.log(perplexity))
    x = f"strength, {unit}"
    mean = lambda of: {n: [Point(s, float(np.mean(v))) for s, v in sorted(at.items())] for n, at in of.items()}
    geometric = {name: [Point(p.x, math.exp(p.y)) for p in line] for name, line in mean(sense).items()}
    drawn = [_lines(f"Concept in the text by strength{where}", mean(active), x=x, y="activation")] if active else []
    title = f"Perplexity by strength{where}"
    return drawn + ([_lines(title, geometric, x=x, y="perplexity", log_y=True)] if geometric else [])


def causality_figures(causality: Causality) -> list[Figure]:
    """Draw the share of texts that express a concept, and their activation, by condition."""
    rows = causality.rows()
    plots = []
    for name in ("expression", "activation"):
        values = {r.condition: Point(0.0, *getattr(r, name)[:3]) for r in rows}
        title = f"{name.capitalize()} of the concept at {causality.site} by condition"
        table = Table(title, (Column("condition"), Column(name, ".3f")), [(c, p[1:]) for c, p in values.items()])
        plots.append(Figure(title, bars(values, title=title), table))
    return plots


def spectrum_figures(translations: Mapping[tuple[Site, str], Translation]) -> list[Figure]:
    """Draw the singular values of every translation, relative to the largest; those of very wide ones are left out."""
    plots = []
    for site in dict.fromkeys(site for site, _ in translations):
        series = {}
        for (at, method), t in translations.items():
            if at == site and min(t.matrix.shape) <= SVD_WIDEST:
                values = singular_values(np.asarray(t.matrix, np.float64))
                places = np.unique(np.geomspace(1, len(values), SPECTRUM_POINTS).astype(int))
                series[method] = [Point(float(i), float(values[i - 1])) for i in places if values[i - 1] > 1e-6]
        if series:
            title = f"Singular values of T at {site}"
            options = {"x": "number", "y": "share of the largest", "log_x": True, "log_y": True}
            plots.append(_lines(title, series, **options))
    return plots


def singular_values(matrix: Float[np.ndarray, "p q"]) -> Float[np.ndarray, " r"]:
    """Return the singular values over the largest, descending; by a Gram matrix, so to about 1e-7."""
    narrow = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(narrow @ narrow.T)[::-1], 0.0))
    return values / values[0] if values[0] > 0 else values


def detection_figures(
    site: Site, method: str, scores: Float[np.ndarray, "q n"], positive: Bool[np.ndarray, "q n"], names: Sequence[str]
) -> list[Figure]:
    """Draw precision against recall, and the ROC curve, a line a feature."""
    where = f"at {site} by {method}"
    precision, roc = {}, {}
    for name, row, fires in zip(names, scores, positive, strict=True):
        if 0 < fires.sum() < len(fires):
            precision[name], roc[name] = detection_curves(row, fires)
    if not precision:
        return []
    ends = {"ends": (0.0, 1.0)}
    return [
        _lines(f"Precision and recall {where}", precision, x="recall", y="precision", **ends),
        _lines(f"ROC {where}", roc, x="false positive rate", y="true positive rate", **ends),
    ]


def detection_curves(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> tuple[list[Point], list[Point]]:
    """Return precision by recall, and the true by the false positive rate, at every threshold, thinned out.

    Equal scores share a threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(positive[order])[ends]
    false = ends + 1 - true
    recall, share = true / true[-1], false / max(false[-1], 1)
    precision = true / (true + false)
    curve = lambda x, y, first: [first, *(Point(float(a), float(b)) for a, b in zip(x, y, strict=True))]
    return (
        _thinned(curve(recall, precision, Point(0.0, float(precision[0])))),
        _thinned(curve(share, recall, Point(0.0, 0.0))),
    )


def _thinned(points: list[Point]) -> list[Point]:
    """Keep the ends and points about evenly apart along both axes together."""
    steps = np.abs(np.diff([p[:2] for p in points], axis=0)).sum(axis=1)
    number = np.floor(np.cumsum([0.0, *steps]) / 2 * CURVE_POINTS)
    kept = np.append(np.diff(number) > 0, True)
    kept[0] = True
    return [p for p, keep in zip(points, kept, strict=True) if keep]
