"""The files in which people exchange labels, row by row."""

import contextlib
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from atlas_jax.errors import AtlasError

FORMATS = ("json", "jsonl", "csv", "parquet")


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
    """Lines as they stand: a line of JSON may hold a bare carriage return, a cell of CSV a newline."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="" if ".csv" in file.suffixes else "\n") as text:
        yield text
