"""Rows of labels from the files in which people exchange them."""

import contextlib
import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.labels._labels import Label, Origin

_COLUMNS = {
    "index": ("index", "feature", "feature_index", "neuron"),
    "description": ("description", "label", "explanation"),
    "explainer": ("explainer", "explanationModelName"),
    "source": ("source", "typeName"),
    "score": ("score",),
    "polarity": ("polarity",),
    "layer": ("layer",),
    "model": ("modelId", "model"),
}
_POLARITY = {"": "positive", "1": "positive", "+1": "positive", "1.0": "positive", "-1": "negative", "-1.0": "negative"}
_POLARITY |= dict.fromkeys(("positive", "pos", "max"), "positive") | dict.fromkeys(
    ("negative", "neg", "min"), "negative"
)
_NEGATIVE_MARK = "(negative activations)"
FORMATS = ("json", "jsonl", "csv", "parquet")


class ReadLabels(NamedTuple):
    """What a file or folder holds: the width it states, if any, its labels in order, and what it says they are of."""

    width: int | None
    rows: list[Label]
    origin: Origin


def read_labels(
    path: Path,
    layer: str | int | None = None,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
) -> ReadLabels:
    """Labels of one layer from a file or folder; empty rows and rows of an id that came before are dropped."""
    names = _names(columns or {})
    width, rows, origins, seen = None, [], {}, set()
    for file in _files(path):
        for number, raw in enumerate(_raw_rows(file, format), 1):
            if "n_features" in raw and "description" not in raw:
                width = int(raw["n_features"])
                origins[raw.get("model") or "", raw.get("layer") or ""] = None
                continue
            if width is not None:
                rows.append(_own(raw, f"row {number} of {file}"))
                continue
            fields = _fields(raw, names)
            if layer is not None and str(fields["layer"]) != str(layer):
                continue
            if (identity := raw.get("id")) is None or identity not in seen:
                seen.add(identity)
                rows.append(_label(fields, f"row {number} of {file}"))
                origins[str(fields["model"]), str(fields["layer"])] = None
    rows = [row for row in rows if row is not None]
    if not rows and width is None:
        where = "" if layer is None else f" of layer {layer}"
        raise AtlasError(f"{path} has no labels{where}: no row has both an index and a description")
    return ReadLabels(width, rows, _origin(path, list(origins), width))


def _names(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    if unknown := columns.keys() - _COLUMNS.keys():
        raise AtlasError(f"labels have no field '{min(unknown)}'; fields are {', '.join(_COLUMNS)}")
    return _COLUMNS | {field: (name,) for field, name in columns.items()}


def _origin(path: Path, found: list[tuple[str, str]], width: int | None) -> Origin:
    found = [origin for origin in found if any(origin)] if width is not None else found
    layers, models = (sorted({origin[i] for origin in found}) for i in (1, 0))
    if len(layers) > 1:
        names = ", ".join(layers[:5])
        raise AtlasError(f"{path} has labels of {len(layers)} layers ({names}, ...); name one with layer=")
    if len(models) > 1:
        raise AtlasError(f"{path} has labels of {len(models)} models: {', '.join(models[:5])}")
    return Origin(*found[0]) if found else Origin()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AtlasError(f"there is no file or folder of labels at {path}")
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    files = sorted(f for f in folder.iterdir() if f.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise AtlasError(f"{folder} has no .jsonl or .jsonl.gz file; a Neuronpedia export holds batch-0.jsonl.gz, ...")
    return files


def _raw_rows(file: Path, format: str | None) -> Iterator[Mapping[str, Any]]:
    kind = format or file.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in FORMATS:
        raise AtlasError(f"{file} is of no known label format; use {', '.join(FORMATS)}, plain or as .gz")
    try:
        for row in _parse(file, kind):
            if not isinstance(row, Mapping):
                raise AtlasError(f"{file} is not a list of labels with an index and a description each")
            yield row
    except AtlasError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise AtlasError(f"{file} cannot be read as labels: {error}") from error


def _parse(file: Path, kind: str) -> Iterator[Any]:
    if kind == "parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
        return
    with _text(file) as text:
        if kind == "csv":
            yield from csv.DictReader(text)
        elif kind == "jsonl":
            yield from (json.loads(line) for line in text if not line.isspace())
        else:
            parsed = json.load(text)
            yield from parsed.get("explanations", [None]) if isinstance(parsed, dict) else parsed


@contextlib.contextmanager
def _text(file: Path) -> Iterator[IO[str]]:
    """Lines as they stand: a line of JSON may hold a bare carriage return, a cell of CSV a newline."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="" if ".csv" in file.suffixes else "\n") as text:
        yield text


def _fields(raw: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The fields of a row by our names, "" where it has none; Transluce writes layer and neuron into one id."""
    fields = {
        field: next((raw[name] for name in columns if raw.get(name) is not None), "")
        for field, columns in names.items()
    }
    if fields["index"] == "" and str(raw.get("neuron_id")).count("_") >= 3:
        model, layer, neuron, _ = str(raw["neuron_id"]).rsplit("_", 3)
        fields |= {"index": neuron, "layer": layer, "model": model}
    return fields


def _own(raw: Mapping[str, Any], where: str) -> Label:
    """A row of a file that :meth:`Labels.save` wrote."""
    try:
        label = Label(**raw)
        if type(label.index) is not int or not isinstance(label.description, str):
            raise TypeError("an index is a whole number and a description is text")
        return label._replace(explainer=sys.intern(label.explainer), source=sys.intern(label.source))
    except TypeError as error:
        raise AtlasError(f"{where} is malformed: {error}") from error


def _label(fields: Mapping[str, Any], where: str) -> Label | None:
    """The label of one row, None where its text is empty."""
    text = str(fields["description"]).strip()
    negative = text.endswith(_NEGATIVE_MARK)
    text = text.removesuffix(_NEGATIVE_MARK).strip()
    if not text:
        return None
    try:
        index = int(str(fields["index"]).removesuffix(".0"))
        score = None if fields["score"] == "" else float(fields["score"])
        polarity = "negative" if negative else _POLARITY[str(fields["polarity"]).lower()]
    except (ValueError, TypeError, KeyError) as error:
        raise AtlasError(f"{where} has a malformed index, score or polarity: {error}") from error
    explainer, source = (sys.intern(str(fields[name])) for name in ("explainer", "source"))
    return Label(index, text, explainer, source, score, polarity)
