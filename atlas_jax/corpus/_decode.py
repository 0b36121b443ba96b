"""Lines of text files: decompressed, and decoded by their byte order mark or the caller's choice, never by a guess."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from atlas_jax.corpus._prose import plain
from atlas_jax.errors import AtlasError

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_encoding(encoding: str | None) -> None:
    """Refuse a name that is no text encoding.

    Raises:
      AtlasError: with names of encodings.
    """
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except LookupError as error:
        raise AtlasError(
            f"unknown encoding '{encoding}'; use one that Python knows, such as latin-1, cp1252 or utf-16"
        ) from error


def lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file, each ended by ``\\n``, without byte order marks.

    Args:
      path: a file; ``.gz`` and ``.zst`` are decompressed as they are read.
      encoding: encoding of files without a byte order mark; UTF-8 by default.

    Raises:
      AtlasError: for a file that is binary, damaged, unreadable, or in another encoding. Nothing is replaced.
    """
    name = encoding or "utf-8"
    try:
        with _bytes(path) as file:
            name = _marked(file.read1(4)) or name
        with _bytes(path) as file:
            for line in io.TextIOWrapper(file, encoding=name):
                if "\0" in line:
                    raise AtlasError(_binary(path))
                yield plain(line)
    except UnicodeError as error:
        raise AtlasError(_not_in(path, name, error)) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AtlasError(f"'{path}' is not a whole gzip file; fetch or compress it again") from error
    except OSError as error:
        raise AtlasError(f"'{path}' cannot be read ({error.strerror or error}); check the file") from error


def _marked(head: bytes) -> str | None:
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def _bytes(path: Path) -> io.BufferedIOBase:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    return _Zstandard(path) if suffix == ".zst" else path.open("rb")


class _Zstandard(io.BufferedIOBase):
    """A zstd file, decompressed as it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = pa.input_stream(path, compression="zstd")

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size if size >= 0 else io.DEFAULT_BUFFER_SIZE)
        except OSError as error:
            raise AtlasError(f"'{self._path}' is not a whole zstd file; fetch or compress it again") from error

    def close(self) -> None:
        self._stream.close()
        super().close()


def _not_in(path: Path, name: str, error: UnicodeError) -> str:
    reason = str(error)
    if isinstance(error, UnicodeDecodeError):
        if b"\0" in error.object and "16" not in name and "32" not in name:
            return _binary(path)
        reason = f"byte 0x{error.object[error.start]:02x}: {error.reason}"
    fix = "name the encoding it has, such as latin-1 or cp1252 (corpus build --encoding)"
    return f"'{path}' is not {name.upper()} ({reason}); {fix}"


def _binary(path: Path) -> str:
    return (
        f"'{path}' is a binary file (it holds NUL), or UTF-16 without a byte order mark; give the text itself, or name"
        " its encoding, such as utf-16-le (corpus build --encoding)"
    )
