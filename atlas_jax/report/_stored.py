"""Records of experiments, read back from the tables that a run has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from atlas_jax.experiments import (
    CausalCell,
    Causality,
    Concept,
    Cost,
    Coverage,
    Curve,
    CurvePoint,
    DomainCell,
    Domains,
    Identified,
    Layers,
    Peak,
    Quality,
    QualityRow,
    Retrieval,
    RetrievalRow,
    Score,
    Steered,
    SteeringConcept,
    SteeringEvaluation,
    SteeringSettings,
)
from atlas_jax.experiments._concepts import Filtered
from atlas_jax.experiments._domains import ALL
from atlas_jax.files import read_json, reading
from atlas_jax.labels import Hit
from atlas_jax.metrics import Interval
from atlas_jax.pipeline import Choice
from atlas_jax.table import Column, Table
from atlas_jax.types import Site

AGAIN = "delete it, or make it again by the command that wrote it"
Record = TypeVar("Record")


def stored(path: Path, make: Callable[[Any], Record]) -> Record | None:
    """Make a record of a JSON file; None where there is no file.

    Raises:
      DamagedError: if the file is damaged, or of another version.
    """
    if not path.is_file():
        return None
    with reading(path, AGAIN):
        return make(read_json(path))


def quality(d: Mapping[str, Any]) -> Quality:
    """Make a quality table."""
    return Quality([_quality_row(r) for r in d["rows"]], *_measured(d))


def curve(d: Mapping[str, Any]) -> Curve:
    """Make a learning curve."""
    return Curve([CurvePoint(r["sentences"], _quality_row(r)) for r in d["rows"]], *_measured(d))


def layers(d: Mapping[str, Any]) -> Layers:
    """Make a table of layers."""
    return Layers([_quality_row(r) for r in d["rows"]], *_measured(d))


def domains(d: Mapping[str, Any]) -> Domains:
    """Make a table of domains, all of them together last."""
    rows = [DomainCell(r["fit"], r["test"], _quality_row(r)) for r in d["rows"]]
    sizes = {name: tuple(d["domains"][name]) for name in sorted(d["domains"], key=lambda name: name == ALL)}
    dropped = {name: tuple(size) for name, size in d["dropped"].items()}
    return Domains(rows, sizes, dropped, d["least"], d["chance"], d["features"], d["band"] and tuple(d["band"]))


def causality(d: Mapping[str, Any]) -> Causality:
    """Make a table of causality."""
    later = tuple(map(Site.parse, d["later"]))
    rest = later, d["method"], d["strength"], d["prompts"]
    return Causality([CausalCell(**c) for c in d["cells"]], d["excluded"], Site.parse(d["site"]), *rest)


def retrieval(d: Mapping[str, Any]) -> Retrieval:
    """Make a table of retrieval."""
    rows = []
    for r in d["rows"]:
        mrr, mpp = ({k: v for k, v in r[name].items() if k != "std"} for name in ("mrr", "mpp"))
        std = r["mrr"]["std"], r["mpp"]["std"]
        rows.append(RetrievalRow(Site.parse(r["site"]), r["method"], Interval(**mrr), Interval(**mpp), std))
    candidates = {Site.parse(site): value["candidates"] for site, value in d["candidates"].items()}
    filters = d["filters"] and {Site.parse(site): Filtered(**f) for site, f in d["filters"].items()}
    return Retrieval(rows, candidates, d["centred"], d["sentences"], d["held_out"], filters)


def coverage(d: Mapping[str, Any]) -> Coverage:
    """Make the coverage of an atlas."""
    return Coverage(**{k: v for k, v in d.items() if k != "share"})


def choice(d: Mapping[str, Any]) -> Table:
    """Tabulate the choice of members of the whitened family."""
    if "fault" in d:
        return Table("Chosen members of the whitened family", (Column(),), [(d["fault"],)])
    return Choice({}, d).table()


def concepts(rows: list[Mapping[str, Any]]) -> list[Concept]:
    """Make the concepts of a quickstart."""
    return [
        Concept(
            d["text"], [Hit(**h) for h in d["atlas_features"]], Site.parse(d["site"]), d["method"],
            [Identified(i["feature"], i["similarity"], [Peak(**p) for p in i["peaks"]]) for i in d["identified"]],
            [Steered(**s) for s in d["steered"]], d.get("unit", "raw"), d.get("steer_method"),
        )
        for d in rows
    ]  # fmt: skip


def evaluation(d: Mapping[str, Any]) -> SteeringEvaluation:
    """Make an evaluation of steering."""
    scores = [
        Score(**{k: Interval(**v) if isinstance(v, dict) else v for k, v in s.items() if k != "kept"})
        for s in d["scores"]
    ]
    costs = [Cost(**c) for c in d["costs"]]
    return SteeringEvaluation(
        steering_settings(d["settings"]), d["judge"], scores, Interval(**d["baseline"]), costs, d["counts"]
    )


def steering_settings(d: Mapping[str, Any]) -> SteeringSettings:
    """Make the settings of an evaluation of steering, without its labelled texts and its run."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items() if k not in ("labelled", "run")}
    named = [SteeringConcept(c["name"], tuple(c["features"]), tuple(c["weights"])) for c in d["concepts"]]
    return SteeringSettings(**plain | {"concepts": tuple(named), "sites": tuple(map(tuple, d["sites"]))})


def rows_of(title: str, d: Any) -> Table | None:
    """Tabulate a result of another kind, if it has ``rows`` of plain values and intervals; else None."""
    rows = d.get("rows") if isinstance(d, dict) else None
    if not rows or not all(isinstance(r, dict) for r in rows):
        return None
    rows = [_flat(r) for r in rows]
    names = list(dict.fromkeys(name for r in rows for name in r))
    cells = [tuple(_cell(r.get(name)) for name in names) for r in rows]
    number = lambda i: any(isinstance(row[i], float | int | tuple) and not isinstance(row[i], bool) for row in cells)
    columns = tuple(Column(name, ".3f" if number(i) else "") for i, name in enumerate(names))
    return Table(title, columns, cells, d.get("caption"))


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The values of a row, and those of a row in it by both names; an interval is a value."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and "mean" not in value:
            flat |= _flat(value, f"{before}{name} ")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return (value["mean"], value["low"], value["high"]) if {"mean", "low", "high"} <= value.keys() else str(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _quality_row(d: Mapping[str, Any]) -> QualityRow:
    return QualityRow(Site.parse(d["site"]), d["method"], Interval(**d["auroc"]), Interval(**d["ap"]))


def _measured(d: Mapping[str, Any]) -> tuple[list[int], tuple[float, float] | None, float, int]:
    return d["features"], d["band"] and tuple(d["band"]), d["chance"], d["sentences"]
