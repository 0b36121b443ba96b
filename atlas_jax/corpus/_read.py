"""A user's own text: txt, Markdown, jsonl and Parquet files, plain or compressed, and directories of them."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from atlas_jax.corpus._document import Document, columns_read, domain_of
from atlas_jax.corpus._prose import prose
from atlas_jax.errors import AtlasError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
_COMPRESSED = (".gz", ".zst")
_CHUNK_CHARACTERS = 1_000_000
_PARQUET_ROWS = 256


class Columns(NamedTuple):
    """Where records keep their text and, if they have one, their domain."""

    text: str = "text"
    domain: str = "domain"


def read_documents(
    paths: Iterable[str | Path], *, column: str = "text", domain_column: str = "domain"
) -> Iterator[Document]:
    """Documents of text files, streamed; a large file is never held whole.

    ``.txt`` is taken as it is, ``.md`` without code, tables and markup, in documents of about a million characters;
    ``.jsonl`` holds ``{"text": ..., "domain": ...}`` a line, ``.parquet`` these columns; ``domain`` is optional. All
    but Parquet may be compressed (``.gz``, ``.zst``). A directory stands for all such files below it, in sorted order.
    The domain defaults to the first directory below the one given, or to the file's name. Text is UTF-8; nothing is
    replaced.

    Args:
      paths: files and directories.
      column: name of the text in jsonl and Parquet files.
      domain_column: name of the domain there; ``meta.pile_set_name`` is a field of the column ``meta``.

    Returns:
      An iterator of documents; the paths are checked before the first is asked for.

    Raises:
      AtlasError: for a missing path, an unknown extension, an empty, binary or damaged file, one that is not UTF-8,
        one without the column, or one without usable text. Damage is found when reading reaches it.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = Path(directory, "poems.txt").write_text("Roses are red.")
      ...     [document.domain for document in read_documents([directory])]
      ['poems']
    """
    files = [file for path in paths for file in _files(Path(path))]
    if not files:
        raise AtlasError("no text was given; name at least one file or directory")
    columns = Columns(column, domain_column)
    return (document for path, name in files for document in _documents(path, name, columns))


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    plain = next((name.removesuffix(suffix) for suffix in _COMPRESSED if name.endswith(suffix)), name)
    kind = next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), None)
    return None if kind == ".parquet" and plain != name else kind


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, name relative to what was given) of one path a user gave."""
    if path.is_dir():
        found = [(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*"))]
        found = [(file, name) for file, name in found if file.is_file() and _kind(file) and "/." not in f"/{name}"]
        if not found:
            raise AtlasError(f"'{path}' holds no {', '.join(SUFFIXES)} file; name a directory that does")
        return found
    if not path.exists():
        raise AtlasError(f"'{path}' does not exist; check the path (a dataset of the hub reads owner/name)")
    if _kind(path) is None:
        raise AtlasError(
            f"'{path}' is of an unknown kind; convert it to {', '.join(SUFFIXES)} (.gz or .zst where not Parquet)"
        )
    if path.stat().st_size == 0:
        raise AtlasError(f"'{path}' is empty; give a file with text in it")
    return [(path, path.name)]


def _documents(path: Path, name: str, columns: Columns) -> Iterator[Document]:
    parents = name.split("/")[:-1]
    domain = parents[0] if parents else path.name.split(".")[0]
    usable = False
    try:
        for text, own_domain in _RECORDS[_kind(path)](path, columns):
            if text.strip():
                usable = True
                yield Document(text, own_domain or domain, name)
    except UnicodeDecodeError as error:
        raise AtlasError(_not_utf8(path, error)) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AtlasError(f"'{path}' is not a whole gzip file; fetch or compress it again") from error
    if not usable:
        raise AtlasError(f"'{path}' has no usable text; give a file with sentences in it")


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    if b"\0" in error.object:
        return _binary(path)
    byte = error.object[error.start]
    return f"'{path}' is not UTF-8 (byte 0x{byte:02x}); convert it, for example with 'iconv -f latin-1 -t utf-8'"


def _binary(path: Path) -> str:
    return f"'{path}' is a binary file, not text; give the text itself"


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


def _open(path: Path) -> io.TextIOBase:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    if suffix == ".zst":
        return io.TextIOWrapper(_Zstandard(path), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _text_records(path: Path, columns: Columns) -> Iterator[tuple[str, str | None]]:
    """Pieces of about a million characters that end where a paragraph does, if one ends within four million."""
    lines: list[str] = []
    size = 0
    with _open(path) as file:
        for line in file:
            if "\0" in line:
                raise AtlasError(_binary(path))
            lines.append(line)
            size += len(line)
            if size >= _CHUNK_CHARACTERS and (not line.strip() or size >= 4 * _CHUNK_CHARACTERS):
                yield "".join(lines), None
                lines, size = [], 0
    yield "".join(lines), None


def _markdown_records(path: Path, columns: Columns) -> Iterator[tuple[str, str | None]]:
    return ((prose(text), domain) for text, domain in _text_records(path, columns))


def _jsonl_records(path: Path, columns: Columns) -> Iterator[tuple[str, str | None]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise AtlasError(f"line {number} of '{path}' is not JSON ({error.msg}); mend or delete it") from error
            if not isinstance(row, dict) or not isinstance(row.get(columns.text), str):
                names = f"; it has {', '.join(row)}" if isinstance(row, dict) else ""
                raise AtlasError(f"line {number} of '{path}' has no \"{columns.text}\" string{names}")
            yield row[columns.text].encode("utf-8", "replace").decode(), domain_of(row, columns.domain)


def _parquet_records(path: Path, columns: Columns) -> Iterator[tuple[str, str | None]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            check_text_column(file.schema_arrow, columns.text, f"'{path}'")
            names = columns_read(file.schema_arrow.names, *columns)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=names):
                for row in batch.to_pylist():
                    yield row[columns.text] or "", domain_of(row, columns.domain)
    except (pa.ArrowInvalid, OSError) as error:
        raise AtlasError(f"'{path}' is not a readable Parquet file ({first_line(error)}); write it again") from error


def check_text_column(schema: pa.Schema, column: str, where: str) -> None:
    """Refuse a table whose text column is missing or not text.

    Raises:
      AtlasError: naming the columns there are.
    """
    if column not in schema.names:
        raise AtlasError(f"{where} has no column '{column}'; it has {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise AtlasError(f"column '{column}' of {where} holds {kind}, not text; it has {', '.join(schema.names)}")


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return str(error).strip().partition("\n")[0].rstrip(".")


_RECORDS = {
    ".txt": _text_records,
    ".md": _markdown_records,
    ".jsonl": _jsonl_records,
    ".parquet": _parquet_records,
}
