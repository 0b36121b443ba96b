"""Rows of labels from the files in which people exchange them."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atlas_jax.errors import AtlasError
from atlas_jax.labels._labels import Label

_COLUMNS = {
    "index": ("index", "feature", "feature_index", "neuron"),
    "description": ("description", "label", "explanation"),
    "explainer": ("explainer", "explanationModelName"),
    "source": ("source", "typeName"),
}
_POLARITY = {"": "positive", "1": "positive", "+1": "positive", "-1": "negative"} | {
    name: polarity
    for polarity, names in {"positive": ("positive", "pos", "max"), "negative": ("negative", "neg", "min")}.items()
    for name in names
}
_NEGATIVE_MARK = "(negative activations)"
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def read_labels(path: Path, layer: str | int | None = None) -> tuple[int | None, list[Label]]:
    """The width written in the file, if any, and its labels in order; empty and repeated rows are dropped."""
    width, rows, layers, seen = None, [], set(), set()
    for file in _files(path):
        for number, raw in enumerate(_raw_rows(file), 1):
            if set(raw) == {"n_features"}:
                width = raw["n_features"]
            elif layer is None or str(raw.get("layer")) == str(layer):
                identity = raw.get("id")
                if identity is None or identity not in seen:
                    rows.append(_label(raw, f"row {number} of {file}"))
                    layers.add(str(raw.get("layer")))
                    seen.add(identity)
    if len(layers) > 1:
        names = ", ".join(sorted(layers)[:5])
        raise AtlasError(f"{path} has labels of {len(layers)} layers ({names}, ...); name one with layer=")
    rows = [row for row in rows if row is not None]
    if not rows and width is None:
        where = "" if layer is None else f" of layer {layer}"
        raise AtlasError(f"{path} has no labels{where}: no row has both an index and a description")
    return width, rows


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


def _raw_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    suffix = file.name.removesuffix(".gz")
    suffix = suffix[suffix.rfind(".") :]
    if suffix not in _SUFFIXES:
        raise AtlasError(f"{file} is of no known label format; use {', '.join(_SUFFIXES)}, plain or as .gz")
    try:
        rows = _parse(file, suffix)
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise AtlasError(f"{file} cannot be read as labels: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise AtlasError(f"{file} is not a list of labels with an index and a description each")
    yield from rows


def _parse(file: Path, suffix: str) -> Any:
    if suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(file).to_pylist()
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    text = data.decode("utf-8-sig")
    if suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    parsed = json.loads(text)
    return parsed.get("explanations", parsed) if isinstance(parsed, dict) else parsed


def _label(raw: Mapping[str, Any], where: str) -> Label | None:
    """The label of one row, None where its text is empty."""
    field = {name: next((raw[c] for c in columns if raw.get(c) is not None), "") for name, columns in _COLUMNS.items()}
    text = str(field["description"]).strip()
    negative = text.endswith(_NEGATIVE_MARK)
    text = text.removesuffix(_NEGATIVE_MARK).strip()
    if not text:
        return None
    try:
        index = int(str(field["index"]))
        score = None if raw.get("score") in (None, "") else float(raw["score"])
        polarity = _POLARITY[str("" if raw.get("polarity") is None else raw["polarity"]).lower()]
    except (ValueError, TypeError, KeyError) as error:
        raise AtlasError(f"{where} has a malformed index, score or polarity: {error}") from error
    polarity = "negative" if negative else polarity
    return Label(index, text, str(field["explainer"]), str(field["source"]), score, polarity)
