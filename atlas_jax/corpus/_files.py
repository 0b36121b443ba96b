"""The files of a corpus: halves as memory-mapped Arrow streams, in directories that are complete or not there."""

import mmap
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from atlas_jax.artifacts import check_place
from atlas_jax.corpus._texts import Texts

SUMMARY = "corpus.json"
HALVES = ("fit.arrow", "eval.arrow")
ROWS = 16_384
_SCHEMA = pa.schema({"id": pa.int64(), "domain": pa.large_string(), "text": pa.large_string()})


class HalfWriter:
    """An Arrow stream of sentences numbered from ``first``, with their domains."""

    def __init__(self, file: IO[bytes], first: int) -> None:
        self._stream = pa.ipc.new_stream(file, _SCHEMA)
        self._next = first

    def __enter__(self) -> "HalfWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def write(self, texts: pa.Array, domains: pa.Array) -> None:
        """Append sentences, at most :data:`ROWS` a batch."""
        ids = pa.array(np.arange(self._next, self._next + len(texts)))
        self._next += len(texts)
        self._stream.write_table(pa.table([ids, domains, texts], schema=_SCHEMA), max_chunksize=ROWS)


class Half(NamedTuple):
    """One half of a corpus and the domains of its sentences."""

    texts: Texts
    domains: Texts


def read_half(file: IO[bytes]) -> Half:
    """Map a written half; ``file`` may be closed afterwards."""
    table = mapped_table(file)
    table.validate(full=True)
    if not table.schema.equals(_SCHEMA):
        raise ValueError(f"columns {', '.join(table.column_names)} are not those of a corpus")
    return Half(Texts(table["text"]), Texts(table["domain"]))


def mapped_table(file: IO[bytes]) -> pa.Table:
    """The Arrow stream in a file, without reading it."""
    file.flush()
    return pa.ipc.open_stream(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).read_all()


def parent_of(target: Path) -> Path:
    """The directory that a corpus goes into, made if need be.

    Raises:
      AtlasError: if it cannot be written, or anything but a corpus or an empty directory is at ``target``.
    """
    check_place(target, "a corpus", overwrite=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent
