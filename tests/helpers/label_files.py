"""Rows of labels in the formats in which people exchange them."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq


def write(path, rows):
    """The same rows in the format that the suffix names."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == "csv":
        with path.open("w", newline="") as f:
            writer = csv.DictWriter(f, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
        return path
    text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
