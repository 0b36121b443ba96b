"""Strings that may lie in a file: a sequence over an Arrow column."""

import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex, overload

import pyarrow as pa

_BLOCK = 4096


class Texts(Sequence[str]):
    """A sequence of strings that holds none of them: each is read from its Arrow column when asked for.

    Over a memory-mapped file it costs no memory but what the system may take back. Slices and sums are views.

    Example:
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
