"""Bridges between the residual streams of two models: fitted, and measured on held-out text."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.bridge import SOURCE, Bridge
from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._bridge_rows import BridgeRow, HeldOutRows, bridge_cost, held_out_rows, shared_tokens
from atlas_jax.experiments._bridge_solve import HELD_OUT_NEEDS, NEEDS, OUTLIER, Halves, Solved, check_enough
from atlas_jax.files import write_json
from atlas_jax.pipeline import Fitted, SentenceStream, fit_statistics, fit_token_statistics
from atlas_jax.progress import Progress, unreported
from atlas_jax.statistics import Statistics, update
from atlas_jax.subject import Subject
from atlas_jax.table import Column, Table, facts_table
from atlas_jax.translators import PENALTIES, Path as RidgePath, linear_cka
from atlas_jax.types import Site

LEVELS = "sentence", "token"
RECORD = "bridge.json"
MORE_TEXT = "give more text (--sentences, --text), or fit tokens (--level token)"
BLOCK = 8192  # rows of given activations that are added at once


class BridgeFit(NamedTuple):
    """Bridges from one site to another, and how good they are.

    Attributes:
      bridges: by method, "ridge" and "procrustes".
      rows: what they explain of held-out text.
      path: the ridge's penalties, and what each explains.
      facts: of the pair and the text, as plain values: rows, mutual neighbours, CKA, shared tokens, outliers.
      cost: seconds, floating-point operations and bytes.

    Example:
      >>> from atlas_jax.experiments import BridgeFit, BridgeRow
      >>> from atlas_jax.translators import Path
      >>> fit = BridgeFit({}, [BridgeRow("ridge", 0.5, 0.95, 0.7, 0.6)], Path((0.1,), (0.5,), 0), {"rows": 900}, {})
      >>> fit.to_dict()["rows"][0]["method"], fit.to_dict()["penalty"]
      ('ridge', 0.1)
    """

    bridges: dict[str, Bridge]
    rows: list[BridgeRow]
    path: RidgePath
    facts: dict[str, Any]
    cost: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the bridges."""
        path = {"penalties": list(self.path.penalties), "r2": list(self.path.r2)}
        rows = [row._asdict() for row in self.rows]
        return {"rows": rows, "penalty": self.path.penalty, "path": path, "facts": self.facts, "cost": self.cost}

    def tables(self) -> list[Table]:
        """Tabulate quality, facts and cost."""
        measures = ("R²", "cosine", "centred cosine", "length")
        caption = (
            "R²: of the variance about the held-out mean, all dimensions together; centred: less the mean of the fit "
            "half; length: of the predicted deviation from that mean over the true one"
        )
        columns = Column("bridge"), *(Column(name, ".3f") for name in measures)
        quality = Table("Bridges on held-out text", columns, self.rows, caption)
        known = {name.replace("_", " "): value for name, value in self.facts.items() if value is not None}
        shown = {k: _counted(v) if isinstance(v, list) else v for k, v in known.items()}
        shares = "matched, shared and outlying tokens: shares of all; outlying dimensions: how many, and which"
        cost = {f"{what}, {part}": value for what, own in self.cost.items() for part, value in own.items()}
        return [quality, facts_table("The two sides", shown, shares), facts_table("Cost", cost)]

    def save(self, directory: Path) -> None:
        """Write the ridge, Procrustes in a directory of its name, and all measures as ``bridge.json``."""
        self.bridges["ridge"].save_pretrained(directory)
        self.bridges["procrustes"].save_pretrained(directory / "procrustes")
        write_json(directory / RECORD, self.to_dict())


def _counted(dimensions: list[int]) -> str:
    """How many dimensions, and which."""
    return f"{len(dimensions)} ({', '.join(map(str, dimensions))})" if dimensions else "0"


class _Half(NamedTuple):
    fitted: Fitted
    rows: int
    matched: float | None


def fit_bridge(
    source: Subject,
    target: Subject,
    texts: Sequence[str],
    held_out: Sequence[str],
    *,
    level: str = "sentence",
    outlier: float | None = OUTLIER,
    penalties: Sequence[float] = PENALTIES,
    max_length: int = 128,
    token_budget: int = 4096,
    sample: int = 2000,
    models: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BridgeFit:
    """Fit affine maps from the activations of one model to those of another over the same text.

    The pass is that of an alignment, with the source in the place of the atlas. The ridge's intercept is not
    penalised, and its penalty is the one that explains most of the held-out half. The bridge by Procrustes is a
    rotation about the means, times the one factor that fits best.

    Args:
      source: a model at one site.
      target: another at one site.
      texts: sentences to fit on.
      held_out: other sentences.
      level: rows of the regression: "sentence", pooled as either side says, or "token", matched by characters
        (:func:`atlas_jax.models.match_tokens`), each weighing one over the pairs of its sentence.
      outlier: tokens whose norm exceeds this many times the median of their sentence are left out, and so are
        dimensions whose root mean square exceeds this many times that of the median dimension; None keeps all.
      penalties: of the ridge, in units of the mean scatter of the source's dimensions.
      max_length: tokens at which sentences are cut.
      token_budget: tokens of a batch, for each model.
      sample: held-out rows that cosines and neighbours are measured on.
      models: what the bridges note about the models "source" and "target", as plain values.
      progress: called after every batch.

    Raises:
      AtlasError: for an unknown level, more than one site, or no more rows than the source is wide; or as
        :func:`atlas_jax.pipeline.fit_statistics`.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.experiments import fit_bridge
      >>> load = lambda path: Subject.from_model(LanguageModel.from_pretrained(path), "resid_post.2", "mean")
      >>> fit_bridge(load(SUBJECT), load(ATLAS / "model"), ["a text"], ["another"])  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: a bridge from 128 dimensions needs at least 129 rows to fit on, and there is 1; ...
    """
    if level not in LEVELS:
        raise AtlasError(f"unknown level '{level}' of a bridge; known are {', '.join(LEVELS)}")
    if level == "sentence":
        check_enough(len(texts), source.width, MORE_TEXT)
    sides = [dataclasses.replace(side, outlier=outlier) for side in (target, source)]
    clock, read = _Clock(), _Tokens(progress)
    stream = lambda own: SentenceStream.from_texts(sides, own, max_length=max_length, token_budget=token_budget)
    fit = _half(stream(texts), level, NEEDS, "fit", read)
    check_enough(fit.rows, source.width, MORE_TEXT)
    other = _half(stream(held_out), level, HELD_OUT_NEEDS, "held out", read)
    stats, held = (half.fitted.statistics.statistics(target.site) for half in (fit, other))
    clock.stop("text")
    solved = Solved.from_halves(Halves.from_statistics(stats, held, outlier), penalties)
    clock.stop("solution")
    metadata = {SOURCE: str(source.site), "level": level, "outlier": outlier} | dict(models or {})
    known = {"token_norm": fit.fitted.token_norm(target.site), "pooling": None if level == "token" else target.pooling}
    bridges = solved.bridges(stats, site=target.site, metadata=metadata, **known)
    rows = held_out_rows(stream(held_out), level, sample, progress)
    facts = {"rows": fit.rows, "held_out_rows": other.rows, "matched_tokens": fit.matched}
    facts["shared_tokens"] = shared_tokens(source.model.tokenizer, target.model.tokenizer)
    shapes = rows, read.count, (fit.rows, other.rows), [half.fitted.statistics for half in (fit, other)]
    cost = {"seconds": clock.seconds} | bridge_cost(source, target, *shapes, len(penalties))
    return _measured(solved, bridges, rows, facts, cost)


def _half(stream: SentenceStream, level: str, needs: Sequence[str], stage: str, progress: Progress) -> _Half:
    """Read one half of the text into statistics; count their rows, and the source's tokens that have a counterpart."""
    if level == "token":
        half = fit_token_statistics(stream, needs, stage=stage, progress=progress)
        return _Half(half.fitted, int(half.matched), half.share)
    fitted = fit_statistics(stream, needs, stage=stage, progress=progress)
    return _Half(fitted, stream.size - len(fitted.faulty), None)


def _measured(
    solved: Solved, bridges: dict[str, Bridge], rows: HeldOutRows, facts: dict[str, Any], cost: dict[str, Any]
) -> BridgeFit:
    kept = ~solved.halves.target
    table = [rows.row(method, solved.r2[method], bridge, kept) for method, bridge in bridges.items()]
    widths = {"source_width": rows.source.shape[1], "target_width": rows.target.shape[1]}
    facts |= widths | {"cka": linear_cka(solved.halves.held_out)} | rows.facts(~solved.halves.source, kept)
    return BridgeFit(bridges, table, solved.path, facts | solved.outliers, cost)


def fit_bridge_to_activations(
    source: Float[np.ndarray, "n d"],
    target: Float[np.ndarray, "n e"],
    *,
    ids: tuple[Sequence[Any], Sequence[Any]] | None = None,
    held_out: float = 0.2,
    outlier: float | None = OUTLIER,
    penalties: Sequence[float] = PENALTIES,
    sites: tuple[str, str] = ("resid_post.0", "resid_post.0"),
    seed: int = 0,
) -> BridgeFit:
    """Fit the same maps to two arrays of activations of the same sentences or tokens.

    Args:
      source: activations, any float dtype.
      target: activations in the same order.
      ids: names of the rows of either, which must be the same in the same order.
      held_out: share of the rows that is held out.
      outlier: as in :func:`fit_bridge`, for dimensions.
      penalties: as there.
      sites: where source and target were read.
      seed: of the draw of the rows that are held out.

    Raises:
      AtlasError: if the sides differ in the number or the order of their rows, or as :func:`fit_bridge`.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments import fit_bridge_to_activations
      >>> x = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
      >>> fit = fit_bridge_to_activations(x, 2 * x + 1)
      >>> round(fit.rows[0].r2, 4), fit.bridges["ridge"](np.ones(3)).round(2).tolist()
      (1.0, [3.0, 3.0, 3.0])
      >>> fit_bridge_to_activations(x, x, ids=(range(100), [1, 0, *range(2, 100)]))
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: row 0 is '0' in the source and '1' in the target; give both sides in one order
    """
    x, y = (np.asarray(finite_numbers(a, f"the {side}")) for a, side in ((source, "source"), (target, "target")))
    _check_same_rows(x, y, ids)
    clock, order = _Clock(), np.random.default_rng(seed).permutation(len(x))
    few, many = np.split(order, [int(len(x) * held_out)])
    check_enough(len(many), x.shape[1], "give more of them")
    stats, held = _statistics(x, y, many, NEEDS), _statistics(x, y, few, HELD_OUT_NEEDS)
    solved = Solved.from_halves(Halves.from_statistics(stats, held, outlier), penalties)
    clock.stop("fit")
    metadata = {SOURCE: sites[0], "outlier": outlier}
    bridges = solved.bridges(stats, site=Site.parse(sites[1]), metadata=metadata)
    rows = HeldOutRows(x[few[:2000]], y[few[:2000]])
    facts = {"rows": len(many), "held_out_rows": len(few)}
    return _measured(solved, bridges, rows, facts, {"seconds": clock.seconds})


def _check_same_rows(x: Any, y: Any, ids: tuple[Sequence[Any], Sequence[Any]] | None) -> None:
    if x.ndim != 2 or y.ndim != 2:
        raise AtlasError(f"activations are matrices [n, d], not arrays of shape {x.shape} and {y.shape}")
    counts = [len(x), len(y), *map(len, ids or ())]
    if len(set(counts)) > 1:
        sides = " and ".join(map(str, counts[-2:] if counts[0] == counts[1] else counts[:2]))
        raise AtlasError(f"the two sides have {sides} rows; give the same sentences on both, in the same order")
    for i, (a, b) in enumerate(zip(*(ids or ((), ())), strict=True)):
        if a != b:
            raise AtlasError(f"row {i} is '{a}' in the source and '{b}' in the target; give both sides in one order")


def _statistics(x: np.ndarray, y: np.ndarray, rows: np.ndarray, needs: Sequence[str]) -> Statistics:
    stats = Statistics.init(needs, y.shape[1], x.shape[1])
    for start in range(0, len(rows), BLOCK):
        part = np.sort(rows)[start : start + BLOCK]
        stats = update(stats, y[part], x[part])
    return stats


class _Clock:
    """Seconds of the steps of a computation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop(self, step: str) -> None:
        """Note the seconds since the last step."""
        self.seconds[step], self._start = time.perf_counter() - self._start, time.perf_counter()


class _Tokens:
    """A progress callback that counts the tokens of all passes."""

    def __init__(self, progress: Progress | None) -> None:
        self._report, self._seen = progress or unreported, {}

    def __call__(self, stage: str, done: int, total: int, tokens: int) -> None:
        """Report, and note the tokens."""
        self._seen[stage] = tokens
        self._report(stage, done, total, tokens)

    @property
    def count(self) -> int:
        """Tokens of both models so far."""
        return sum(self._seen.values())
