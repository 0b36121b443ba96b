"""Translation quality by the number of fit sentences, and by layer."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from atlas_jax.checks import as_count
from atlas_jax.experiments._quality import (
    QualityRow,
    best_rows,
    evaluated_features,
    one_hot,
    quality_caption,
    quality_row,
    score_directions,
)
from atlas_jax.pipeline import Alignment, Fitted, SentenceStream, fit_statistics, solve
from atlas_jax.progress import Progress
from atlas_jax.subject import Subject
from atlas_jax.table import Column, Table
from atlas_jax.translators import needs_of
from atlas_jax.types import Site, sites_of


class CurvePoint(NamedTuple):
    """Quality of one method at one site, fitted to the first ``sentences`` of the fit half.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import CurvePoint, QualityRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = QualityRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> CurvePoint(1000, row).to_dict()["sentences"]
      1000
    """

    sentences: int
    quality: QualityRow

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"sentences": self.sentences} | self.quality.to_dict()


class Curve(NamedTuple):
    """Translation quality against the number of sentences it was fitted to.

    Attributes:
      rows: by site and method, sizes ascending; the last size is the whole fit half.
      features: the atlas features that were translated.
      band: the positive rates, on the fit half, between which they were drawn; None where they are the paper's.
      chance: the AP of chance, the mean positive rate on the evaluation half.
      sentences: how many held-out sentences were ranked.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Curve, CurvePoint, QualityRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = QualityRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> Curve([CurvePoint(1000, row)], [3, 5], (0.005, 0.2), 0.04, 100).to_dict()["chance"]
      0.04
    """

    rows: list[CurvePoint]
    features: list[int]
    band: tuple[float, float] | None
    chance: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"rows": [r.to_dict() for r in self.rows]}

    def table(self) -> Table:
        """AUROC and AP of every method at every site, a row a size."""
        columns = (
            Column("site", group=True), Column("method", group=True),
            Column("fit sentences", ","), Column("AUROC", ".3f"), Column("AP", ".3f"),
        )  # fmt: skip
        rows = [(str(r.site), r.method, size, r.auroc[:3], r.average_precision[:3]) for size, r in self.rows]
        return Table("Translation quality by number of fit sentences", columns, rows, quality_caption(*self[1:]))


class Layers(NamedTuple):
    """Translation quality by layer; fields as of :class:`Curve`, ``rows`` by method and then by site.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Layers, QualityRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = QualityRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> len(Layers([row], [3, 5], (0.005, 0.2), 0.04, 100).to_dict()["rows"])
      1
    """

    rows: list[QualityRow]
    features: list[int]
    band: tuple[float, float] | None
    chance: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"rows": [r.to_dict() for r in self.rows]}

    def table(self) -> Table:
        """AUROC and AP at every site, a method at a time, its best site by AP standing out."""
        columns = Column("method", group=True), Column("site"), Column("AUROC", ".3f"), Column("AP", ".3f")
        rows = [(r.method, str(r.site), r.auroc[:3], r.average_precision[:3]) for r in self.rows]
        best = best_rows(self.rows, [r.method for r in self.rows])
        return Table("Translation quality by layer", columns, rows, quality_caption(*self[1:]), best)


def quality_curve(
    alignment: Alignment,
    sizes: Sequence[int] | None = None,
    *,
    methods: Sequence[str] | None = None,
    features: int | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Measure translation quality against the number of fit sentences, in one pass over each half.

    The fit half is in the order of a hash, so its first sentences are a random sample. What is kept of a snapshot are
    the similarity vectors of the features.

    Args:
      alignment: the run; its sites, its features and its rules are used.
      sizes: numbers of sentences; those from the whole fit half up are dropped, and the whole is always the last. By
        default 1,000, 3,000, 10,000 and so on.
      methods: the run's own by default, without members chosen from the whitened family.
      features: atlas features to translate, chosen as :func:`evaluate_quality` does.
      progress: called after every batch.

    Raises:
      AtlasError: for sizes that are no whole numbers from 1 up, an unknown method, or too little text.

    Example:
      >>> from atlas_jax.experiments import quality_curve
      >>> from atlas_jax.pipeline import Alignment
      >>> quality_curve(Alignment.load("runs/quickstart"), [1000]).table()  # doctest: +SKIP
    """
    methods, stream = methods_of(alignment, methods), alignment.stream("fit")
    at = _sizes(sizes, stream.size)
    chosen, band, queries = queries_of(alignment, features)
    directions: dict[tuple[Site, Any], np.ndarray] = {}
    fitted = None
    for start, end in zip([0, *at], at, strict=False):
        piece = stream.only(np.arange(start, end) + stream.first)
        fitted = fit_statistics(
            piece, needs_of(methods), top_k=alignment.settings.top_k, progress=progress, state=fitted
        )
        solved = directions_of(stream, fitted, methods, queries, progress=progress)
        directions |= {(site, (method, end)): x for (site, method), x in solved.items()}
    scores, scored = score_directions(alignment.stream("eval"), directions, chosen, progress=progress)
    rows = [
        CurvePoint(size, quality_row(site, method, scores[site, (method, size)], scored.positive))
        for site in alignment.subject.sites
        for method in methods
        for size in at
    ]
    return Curve(rows, chosen.tolist(), band, float(scored.positive.mean()), scored.positive.shape[1])


def quality_by_layer(
    alignment: Alignment,
    sites: Sequence[str | Site] | str = "resid_post",
    *,
    methods: Sequence[str] | None = None,
    features: int | None = None,
    progress: Progress | None = None,
) -> Layers:
    """Measure translation quality at other sites than a run's, on its corpus, in one pass over each half.

    Args:
      alignment: the run; its features and its rules are used.
      sites: sites, or the name of a point that is read in every layer, such as "mlp_act".
      methods: the run's own by default, without members chosen from the whitened family.
      features: atlas features to translate, chosen as :func:`evaluate_quality` does.
      progress: called after every batch.

    Raises:
      AtlasError: for a site that the subject does not have, an unknown method, or too little text.

    Example:
      >>> from atlas_jax.experiments import quality_by_layer
      >>> from atlas_jax.pipeline import Alignment
      >>> quality_by_layer(Alignment.load("runs/quickstart"), "mlp_act").table()  # doctest: +SKIP
    """
    methods = methods_of(alignment, methods)
    model, settings = alignment.subject.model, alignment.settings
    if isinstance(sites, str) and "." not in sites:
        sites = [Site(sites, layer) for layer in range(model.config.num_layers)]
    subject = Subject.from_model(model, sites_of(sites), settings.pooling)
    chosen, band, queries = queries_of(alignment, features)
    there = dataclasses.replace(alignment, subject=subject)
    stream = there.stream("fit")
    fitted = fit_statistics(stream, needs_of(methods), top_k=settings.top_k, progress=progress)
    directions = directions_of(stream, fitted, methods, queries, progress=progress)
    scores, scored = score_directions(there.stream("eval"), directions, chosen, progress=progress)
    rows = [quality_row(s, m, scores[s, m], scored.positive) for m in methods for s in subject.sites]
    return Layers(rows, chosen.tolist(), band, float(scored.positive.mean()), scored.positive.shape[1])


def _sizes(sizes: Iterable[int] | None, whole: int) -> list[int]:
    """The sizes of a curve, ascending, the whole last."""
    if sizes is None:
        sizes = (first * 10**power for power in range(3, 10) for first in (1, 3))
    counts = {as_count(size, "a size of the curve") for size in sizes}
    return [*sorted(size for size in counts if size < whole), whole]


def methods_of(alignment: Alignment, methods: Sequence[str] | None) -> tuple[str, ...]:
    """Methods that are asked for, those of the run by default.

    Raises:
      AtlasError: for one that there is not.
    """
    methods = tuple(dict.fromkeys(alignment.settings.methods if methods is None else methods))
    needs_of(methods)
    return methods


def queries_of(
    alignment: Alignment, count: int | None
) -> tuple[Int[np.ndarray, " q"], tuple[float, float] | None, Float[np.ndarray, "q d_c"]]:
    """The atlas features that :func:`evaluate_quality` translates, the band they were drawn from, and their queries."""
    sae, seed = alignment.atlas.sae.config, alignment.settings.seed
    features, band = evaluated_features(sae, alignment.rate, count=count, seed=seed)
    return features, band, one_hot(features, alignment.atlas.width)


def directions_of(
    stream: SentenceStream,
    fitted: Fitted,
    methods: Sequence[str],
    queries: Float[np.ndarray, "q d_c"],
    *,
    progress: Progress | None = None,
) -> dict[tuple[Site, str], Float[np.ndarray, "q d_s"]]:
    """The similarity vectors of queries at every site by every method, on the host; a method's matrices at a time."""
    return {
        key: np.asarray(translation.similarity(queries))
        for method in methods
        for key, translation in solve(stream, fitted, [method], progress=progress).items()
    }
