"""Sentences by the highest bits of their hash: in memory while they are few, then in unnamed temporary files."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt64

from atlas_jax.corpus._files import mapped_table

BUCKET_BITS = 6
HELD_BYTES = 32_000_000
_SCHEMA = pa.schema({"digest": pa.uint64(), "domain": pa.int32(), "text": pa.large_string()})


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
        """Put sentences in."""
        self._held.append(pa.record_batch([pa.array(digest), pa.array(domain), texts], schema=_SCHEMA))
        self._bytes += texts.nbytes
        if self._bytes >= HELD_BYTES:
            self._flush()

    def buckets(self) -> Iterator[pa.Table]:
        """All sentences, in tables of ascending hash; in a table they are in the order they were put in."""
        if not self._files:
            yield pa.Table.from_batches(self._held, _SCHEMA)
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
            self._writers = [pa.ipc.new_stream(file, _SCHEMA) for file in self._files]
        table = pa.Table.from_batches(self._held, _SCHEMA).combine_chunks()
        bucket = table["digest"].to_numpy() >> np.uint64(64 - BUCKET_BITS)
        order = np.argsort(bucket, kind="stable")
        table, ends = table.take(order), np.cumsum(np.bincount(bucket, minlength=len(self._files)))
        for writer, start, end in zip(self._writers, [0, *ends], ends, strict=False):
            writer.write_table(table.slice(start, end - start))
        self._held, self._bytes = [], 0

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix=".corpus-", dir=self._folder)
