"""Rows of labels from the files in which people exchange them."""

import contextlib
import csv
import gzip
import json
import math
import re
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.labels._label import Label, Origin, Row, narrowed
from atlas_jax.types import Site

FORMATS = ("json", "jsonl", "csv", "parquet")
_COLUMNS = {
    "index": ("index", "feature", "feature_index", "neuron"),
    "description": ("description", "label", "explanation"),
    "explainer": ("explainer", "explanationModelName"),
    "source": ("source", "typeName"),
    "score": ("score",),
    "polarity": ("polarity",),
    "model": ("modelId", "model"),
    "layer": ("layer",),
    "hook": ("hook_point", "hook_name", "hookpoint", "hook"),
    "release": ("release", "sae_release", "sae_id", "sae"),
}
_POLARITY = {"": "positive", "1": "positive", "+1": "positive", "1.0": "positive", "-1": "negative", "-1.0": "negative"}
_POLARITY |= dict.fromkeys(("positive", "pos", "max"), "positive") | dict.fromkeys(
    ("negative", "neg", "min"), "negative"
)
_NEGATIVE_MARK = "(negative activations)"
_OTHER_THINGS = ("concept_id", "cluster_id", "topic_id")
_AMBIGUOUS = 0.01


class ReadLabels(NamedTuple):
    """Content of a file or folder: the width it states, if any, its labels in order, and their origin."""

    width: int | None
    rows: list[Label]
    origin: Origin


def read_labels(
    path: Path,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    *,
    only: Mapping[str, str] | None = None,
    site: Site | None = None,
) -> ReadLabels:
    """Read the labels of one SAE from a file or folder; empty rows and rows of an id that came before are dropped."""
    names, rows, own, seen = _names(columns or {}), [], [], set()
    head: Mapping[str, Any] | None = None
    for file in label_files(path):
        for number, raw in enumerate(raw_rows(file, format), 1):
            where = f"row {number} of {file}"
            if "n_features" in raw and "description" not in raw:
                head = raw
            elif head is not None:
                own.append(_own(raw, where))
            elif (identity := raw.get("id")) is None or identity not in seen:
                seen.add(identity)
                rows.append(_row(raw, names, where, guess="index" not in (columns or {})))
    if head is not None:
        return _saved(head, own, path)
    kept, origin = narrowed([row for row in rows if row is not None], path, only or {}, site)
    if not kept:
        raise AtlasError(f"{path} has no labels: no row has both an index and a description{_help(rows, path, format)}")
    _check_repeated(kept, path)
    return ReadLabels(None, [row.label for row in kept], origin)


def _names(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    if unknown := columns.keys() - _COLUMNS.keys():
        raise AtlasError(f"labels have no field '{min(unknown)}'; fields are {', '.join(_COLUMNS)}")
    return _COLUMNS | {field: (name,) for field, name in columns.items()}


def _saved(head: Mapping[str, Any], rows: list[Label], path: Path) -> ReadLabels:
    """Return the content of a file that :meth:`Labels.save` wrote."""
    if type(head["n_features"]) is not int or head["n_features"] < 1:
        raise AtlasError(f"{path} is damaged: n_features is {head['n_features']!r}")
    return ReadLabels(head["n_features"], rows, Origin(*(str(head.get(name) or "") for name in Origin._fields)))


def _own(raw: Mapping[str, Any], where: str) -> Label:
    """Return a row of a file that :meth:`Labels.save` wrote."""
    try:
        label = Label(**raw)
        if type(label.index) is not int or not isinstance(label.description, str):
            raise TypeError("an index is a whole number and a description is text")
        if label.polarity not in _POLARITY.values():
            raise TypeError(f"its polarity is {label.polarity!r}")
        explainer, source = sys.intern(label.explainer), sys.intern(label.source)
        return label._replace(explainer=explainer, source=source, score=_score(label.score))
    except (TypeError, ValueError) as error:
        raise AtlasError(f"{where} is malformed: {error}") from error


def _row(raw: Mapping[str, Any], names: Mapping[str, Iterable[str]], where: str, guess: bool) -> Row | None:
    """Return the label of one row with its origin and id, None where its text is empty."""
    fields = _fields(raw, names)
    text = fields["description"]
    if isinstance(text, bool | list | Mapping):
        raise AtlasError(f"{where} is malformed: its description is {text!r}, not text")
    text = str(text).strip()
    negative = text.endswith(_NEGATIVE_MARK)
    text = text.removesuffix(_NEGATIVE_MARK).strip()
    if not text:
        return None
    if guess:
        _check_index_column(raw, where)
    try:
        polarity = "negative" if negative else _POLARITY[str(fields["polarity"]).lower()]
        score = _score(fields["score"])
    except (ValueError, TypeError, KeyError) as error:
        raise AtlasError(f"{where} has a malformed score or polarity: {error}") from error
    explainer, source, *of = (sys.intern(str(fields[name])) for name in ("explainer", "source", *Origin._fields))
    label = Label(_index(fields["index"], raw, where), text, explainer, source, score, polarity)
    return Row(label, Origin(*of), str(raw.get("id") or ""))


def _fields(raw: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Return the fields of a row by our names, "" where it has none; Transluce writes layer and neuron into one id."""
    fields = {
        field: next((raw[name] for name in columns if raw.get(name) is not None), "")
        for field, columns in names.items()
    }
    if fields["index"] == "" and str(raw.get("neuron_id")).count("_") >= 3:
        model, layer, neuron, _ = str(raw["neuron_id"]).rsplit("_", 3)
        fields |= {"index": neuron, "layer": layer, "model": model}
    return fields


def _check_index_column(raw: Mapping[str, Any], where: str) -> None:
    """Refuse rows where the column that numbers the features could be more than one."""
    candidates = {name: raw[name] for name in _COLUMNS["index"] if raw.get(name) is not None}
    if len({str(value).removesuffix(".0") for value in candidates.values()}) > 1:
        numbers = ", ".join(f"{name} = {value}" for name, value in candidates.items())
        raise AtlasError(f"{where} has several numbers ({numbers}); say which is the feature's: --column index=NAME")
    if other := [name for name in _OTHER_THINGS if name in raw]:
        raise AtlasError(
            f"{where} has a column '{other[0]}': are these labels of features? "
            "If so, say which column numbers them: --column index=NAME"
        )


def _index(value: Any, raw: Mapping[str, Any], where: str) -> int:
    if (match := re.fullmatch(r"\s*(-?\d+)(?:\.0)?\s*", str(value))) and not isinstance(value, bool):
        return int(match[1])
    names = [str(name) for name in raw if name]
    likely = [n for n in names if re.search(r"feature|latent|neuron|index|idx|_?id$", n.lower()) and _whole(raw[n])]
    best = min(likely, key=lambda n: not re.search("feature|latent|neuron", n.lower()), default="NAME")
    reason = (
        f"its index is {value!r}" if value != "" else f"there is none of the columns {', '.join(_COLUMNS['index'])}"
    )
    raise AtlasError(
        f"{where} is malformed, it does not say which feature it is of: {reason}; it has {', '.join(names)}. "
        f"Name the column of the feature's number: --column index={best}"
    )


def _whole(value: Any) -> bool:
    return re.fullmatch(r"\d+(?:\.0)?", str(value)) is not None


def _score(value: Any) -> float | None:
    """Return a finite score; None for any other, which cannot be compared."""
    number = math.nan if value in ("", None) else float(value)
    return number if math.isfinite(number) else None


def _help(rows: list[Row | None], path: Path, format: str | None) -> str:
    """Return the end of the error where no row has a description: the columns there are."""
    first = next((raw for file in label_files(path) for raw in raw_rows(file, format)), None) if rows else None
    if first is None or any(first.get(name) for name in _COLUMNS["description"]):
        return ""
    return f"; it has {', '.join(map(str, first))}. Name the column of the text: --column description=NAME"


def _check_repeated(rows: list[Row], path: Path) -> None:
    """Refuse a table in which more than one feature of a hundred has several texts that differ in nothing else."""
    texts: dict[tuple, set[str]] = defaultdict(set)
    for label, _, identity in rows:
        texts[label.index, label.explainer, label.source, label.score, label.polarity, identity].add(label.description)
    repeated = sorted({key[0] for key, group in texts.items() if len(group) > 1})
    described = len({row.label.index for row in rows})
    if len(repeated) > _AMBIGUOUS * described:
        pair = " and ".join(f"'{text}'" for text in sorted(next(g for g in texts.values() if len(g) > 1))[:2])
        raise AtlasError(
            f"{path} describes {len(repeated)} of {described} features several times, such as {repeated[0]} by {pair}, "
            "and neither explainer, source, score, polarity nor id tells why: is that the features' number? Name the "
            "right column with --column index=NAME"
        )


def label_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AtlasError(f"there is no file or folder of labels at {path}")
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    files = sorted(f for f in folder.iterdir() if f.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise AtlasError(f"{folder} has no .jsonl or .jsonl.gz file; a Neuronpedia export holds batch-0.jsonl.gz, ...")
    return files


def raw_rows(file: Path, format: str | None) -> Iterator[Mapping[str, Any]]:
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
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, NotImplementedError, csv.Error) as error:
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
            parsed = parsed.get("explanations") if isinstance(parsed, dict) else parsed
            yield from parsed if isinstance(parsed, list) else [None]


@contextlib.contextmanager
def _text(file: Path) -> Iterator[IO[str]]:
    """Open a file without translating line ends: JSON may hold a bare carriage return, a cell of CSV a newline."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="" if ".csv" in file.suffixes else "\n") as text:
        yield text
