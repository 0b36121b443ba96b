"""Sentences in Arrow files: the halves of a corpus, memory-mapped, and a pool larger than memory."""

import mmap
import operator
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple, SupportsIndex, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt64

from atlas_jax.files import check_place

_BLOCK = 4096
SUMMARY = "corpus.json"
HALVES = ("fit.arrow", "eval.arrow")
ROWS = 16_384
_SCHEMA = pa.schema({"id": pa.int64(), "domain": pa.large_string(), "text": pa.large_string()})
BUCKET_BITS = 6
HELD_BYTES = 32_000_000
_SPILLED = pa.schema({"digest": pa.uint64(), "domain": pa.int32(), "text": pa.large_string()})


class Texts(Sequence[str]):
    """A sequence of strings that holds none of them: each is read from its Arrow column when it is used.

    Over a memory-mapped file it needs only memory that the system may reclaim. Slices and sums are views.

    Example:
      >>> import pyarrow as pa
      >>> from atlas_jax.corpus import Texts
      >>> texts = Texts(pa.chunked_array([["one", "two"], ["three"]]))
      >>> texts[-1], len(texts), list(texts[1:])
      ('three', 3, ['two', 'three'])
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "str | Texts":
        if isinstance(index, slice):
            return Texts(self._column[index])
        return self._column[operator.index(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            for start in range(0, len(chunk), _BLOCK):
                yield from chunk.slice(start, _BLOCK).to_pylist()

    def __add__(self, other: "Texts") -> "Texts":
        return Texts(pa.chunked_array([*self._column.chunks, *other._column.chunks], self._column.type))

    def __repr__(self) -> str:
        return f"<{len(self)} texts>"


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
    """Map the Arrow stream in a file, without reading it."""
    file.flush()
    return pa.ipc.open_stream(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).read_all()


def parent_of(target: Path) -> Path:
    """Return the parent directory of a corpus, made if it does not exist.

    Raises:
      AtlasError: if it cannot be written, or anything but a corpus or an empty directory is at ``target``.
    """
    check_place(target, "a corpus", overwrite=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


class Spill:
    """A pool of sentences larger than memory, read back a bucket at a time in the order of their hashes.

    Equal sentences meet in one bucket, so each bucket is deduplicated and ordered on its own. The files have no name
    and vanish with the process, however it ends.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._files: list[IO[bytes]] = []
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []
        self._stack = ExitStack()

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, digest: UInt64[np.ndarray, " n"], domain: Int[np.ndarray, " n"], texts: pa.Array) -> None:
        """Add sentences."""
        self._held.append(pa.record_batch([pa.array(digest), pa.array(domain), texts], schema=_SPILLED))
        self._bytes += texts.nbytes
        if self._bytes >= HELD_BYTES:
            self._flush()

    def buckets(self) -> Iterator[pa.Table]:
        """Yield all sentences in tables of ascending hash; within a table they are in the order of :meth:`add`."""
        if not self._files:
            yield pa.Table.from_batches(self._held, _SPILLED)
            return
        self._flush()
        for writer in self._writers:
            writer.close()
        self._writers = []
        for file in self._files:
            yield mapped_table(file)

    def _flush(self) -> None:
        if not self._held:
            return
        if not self._files:
            self._files = [self._stack.enter_context(self._file()) for _ in range(2**BUCKET_BITS)]
            self._writers = [pa.ipc.new_stream(file, _SPILLED) for file in self._files]
        table = pa.Table.from_batches(self._held, _SPILLED).combine_chunks()
        bucket = table["digest"].to_numpy() >> np.uint64(64 - BUCKET_BITS)
        order = np.argsort(bucket, kind="stable")
        table, ends = table.take(order), np.cumsum(np.bincount(bucket, minlength=len(self._files)))
        for writer, start, end in zip(self._writers, [0, *ends], ends, strict=False):
            writer.write_table(table.slice(start, end - start))
        self._held, self._bytes = [], 0

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix=".corpus-", dir=self._folder)
