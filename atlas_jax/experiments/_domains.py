"""Translation quality across the domains of a corpus: fitted to one, measured on the others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from atlas_jax.checks import as_count
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._curve import directions_of, methods_of, queries_of
from atlas_jax.experiments._quality import QualityRow, quality_row, score_directions
from atlas_jax.pipeline import Alignment, Fitted, fit_statistics, merge_fitted
from atlas_jax.progress import Progress
from atlas_jax.table import Column, Marked, Table
from atlas_jax.translators import needs_of
from atlas_jax.types import Site

ALL = "all domains"  # the row and the column of all domains
LEAST = 100  # sentences of a domain in each half, below which nothing is fitted to it or ranked in it
MOST = 6  # domains that are compared where none are named


class DomainCell(NamedTuple):
    """Quality on the held-out sentences of domain ``test`` of a translation fitted to those of domain ``fit``.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import DomainCell, QualityRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = QualityRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> DomainCell("books", "code", row).to_dict()["test"]
      'code'
    """

    fit: str
    test: str
    quality: QualityRow

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"fit": self.fit, "test": self.test} | self.quality.to_dict()


class Domains(NamedTuple):
    """Translation quality across domains.

    Attributes:
      rows: a cell a site, method, fit domain and test domain; "all domains" is the whole half.
      domains: sentences of each in the fit and the eval half, "all domains" last.
      dropped: those of the domains that were too small, or not among the largest.
      least: sentences that a domain needs in each half.
      chance: by test domain, the AP of chance over the features that fire there.
      features: the atlas features that were translated.
      band: the positive rates, on the whole fit half, between which they were drawn; None where they are the paper's.

    Example:
      >>> from atlas_jax.experiments import Domains
      >>> domains = Domains([], {"books": (900, 100)}, {"code": (9, 1)}, 50, {"books": 0.04}, [3, 5], None)
      >>> sorted(domains.dropped)
      ['code']
    """

    rows: list[DomainCell]
    domains: dict[str, tuple[int, int]]
    dropped: dict[str, tuple[int, int]]
    least: int
    chance: dict[str, float]
    features: list[int]
    band: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"rows": [r.to_dict() for r in self.rows]}

    def tables(self) -> list[Table]:
        """AP and AUROC of every site and method: a row a fit domain, a column a test domain."""
        keys = dict.fromkeys(r.quality[:2] for r in self.rows)
        return [self._matrix(*key, measure) for key in keys for measure in ("AP", "AUROC")]

    def _matrix(self, site: Site, method: str, measure: str) -> Table:
        value = lambda quality: (quality.average_precision if measure == "AP" else quality.auroc).mean
        cells = {(fit, test): value(q) for fit, test, q in self.rows if q[:2] == (site, method)}
        best = {t: max((f for f in self.domains if f != ALL), key=lambda f: cells[f, t]) for t in self.domains}
        show = lambda f, t: Marked(cells[f, t]) if best[t] == f else cells[f, t]
        columns = [Column("fit on"), Column("sentences", ",")] + [Column(t, ".3f") for t in self.domains]
        rows: list[tuple[Any, ...]] = [
            (f, sizes[0], *(show(f, t) for t in self.domains)) for f, sizes in self.domains.items()
        ]
        if measure == "AP":
            rows.append(("chance", None, *(self.chance[t] for t in self.domains)))
        return Table(f"{measure} across domains at {site} by {method}", tuple(columns), rows, self._said(measure))

    def _said(self, measure: str) -> str:
        caption = (
            f"mean {measure} over those of {len(self.features)} atlas features that fire in the test domain (columns), "
            "the best single fit domain marked; 'all domains' is the whole corpus"
        )
        if not self.dropped:
            return caption
        few = sum(min(sizes) < self.least for sizes in self.dropped.values())
        rest = len(self.dropped) - few
        told = [f"{few} with fewer than {self.least} sentences in a half"] * bool(few)
        told += [f"{rest} that were not asked for or are not among the largest"] * bool(rest)
        return f"{caption}; left out as domains, but in 'all domains': {' and '.join(told)}"


def quality_across_domains(
    alignment: Alignment,
    domains: Sequence[str] | None = None,
    *,
    methods: Sequence[str] | None = None,
    least: int = LEAST,
    most: int = MOST,
    features: int | None = None,
    progress: Progress | None = None,
) -> Domains:
    """Fit a translation to every domain of a run's corpus, and measure each on every other, reading each half once.

    The statistics of a domain are merged into those of the whole once it is solved, so memory does not grow with the
    number of domains but by similarity vectors. Domains differ in size, and a fit to more sentences is better.

    Args:
      alignment: the run; its sites, its features and its rules are used.
      domains: names; the largest by default. All others count in "all domains" alone.
      methods: the first of the run by default.
      least: sentences that a domain needs in each half.
      most: how many domains are compared where none are named.
      features: atlas features to translate, chosen as :func:`evaluate_quality` does.
      progress: called after every batch.

    Raises:
      AtlasError: for a domain that the corpus does not have, fewer than two that are large enough, an unknown method,
        or too little text.

    Example:
      >>> from atlas_jax.experiments import quality_across_domains
      >>> from atlas_jax.pipeline import Alignment
      >>> quality_across_domains(Alignment.load("runs/quickstart")).tables()  # doctest: +SKIP
    """
    methods = methods_of(alignment, alignment.settings.methods[:1] if methods is None else methods)
    counts = alignment.corpus.domain_counts()
    names = _kept(counts, domains, as_count(least, "least"), as_count(most, "most"))
    chosen, band, queries = queries_of(alignment, features)
    of, split = _domain_of(alignment.corpus.domains, names), len(alignment.corpus.fit)
    directions = _fit(alignment, of[:split], names, methods, queries, progress)
    scores, scored = score_directions(alignment.stream("eval"), directions, chosen, progress=progress)
    columns = {name: np.flatnonzero(of[split:] == i) for i, name in enumerate(names)} | {ALL: slice(None)}
    rows = [
        DomainCell(fit, test, quality_row(site, method, part[:, at], scored.positive[:, at]))
        for (site, (method, fit)), part in scores.items()
        for test, at in columns.items()
    ]
    chance = {}
    for test, at in columns.items():
        share = scored.positive[:, at].mean(axis=1)
        chance[test] = float(share[share > 0].mean()) if share.any() else float("nan")
    sizes = {name: counts[name] for name in names} | {ALL: (split, len(alignment.corpus.eval))}
    dropped = {name: size for name, size in counts.items() if name not in names}
    return Domains(rows, sizes, dropped, least, chance, chosen.tolist(), band)


def _fit(
    alignment: Alignment,
    of: Int[np.ndarray, " n"],
    names: Sequence[str],
    methods: Sequence[str],
    queries: Float[np.ndarray, "q d_c"],
    progress: Progress | None,
) -> dict[tuple[Site, tuple[str, str]], Float[np.ndarray, "q d_s"]]:
    """Similarity vectors by site, method and domain; the sentences of no domain of the names are in the whole alone."""
    directions: dict[tuple[Site, tuple[str, str]], np.ndarray] = {}
    stream, top_k = alignment.stream("fit"), alignment.settings.top_k

    def solve(fitted: Fitted, domain: str) -> None:
        on_domain = directions_of(stream, fitted, methods, queries, progress=progress)
        directions.update({(site, (method, domain)): x for (site, method), x in on_domain.items()})

    rest, whole = stream.only(np.flatnonzero(of < 0)), None
    if rest.size:
        whole = fit_statistics(rest, needs_of(methods), top_k=top_k, stage="other domains", progress=progress)
    for number, name in enumerate(names):
        part = stream.only(np.flatnonzero(of == number))
        fitted = fit_statistics(part, needs_of(methods), top_k=top_k, stage=name, progress=progress)
        solve(fitted, name)
        whole = fitted if whole is None else merge_fitted(whole, fitted)
    solve(whole, ALL)
    return directions


def _kept(counts: dict[str, tuple[int, int]], asked: Sequence[str] | None, least: int, most: int) -> list[str]:
    """The domains to compare."""
    if unknown := [name for name in asked or () if name not in counts]:
        known = ", ".join(list(counts)[:8]) + (", ..." if len(counts) > 8 else "")
        raise AtlasError(f"this corpus has no domain '{unknown[0]}'; it has {known}")
    among = list(dict.fromkeys(asked or counts))
    names = [name for name in among if min(counts[name]) >= least]
    if len(names) < 2:
        raise AtlasError(
            f"only {len(names)} of {len(among)} domains hold {least} sentences in each half, and at least two are "
            "needed; ask for fewer sentences, name other domains, or give more text"
        )
    return names if asked else names[:most]


def _domain_of(domains: Sequence[str], names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """The number of each sentence's domain among names, -1 for all others."""
    number = {name: i for i, name in enumerate(names)}
    return np.fromiter((number.get(name, -1) for name in domains), np.int32, len(domains))
