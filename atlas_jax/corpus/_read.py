"""A user's own text: txt, Markdown, jsonl and Parquet files, plain or gzipped, and directories of them."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from atlas_jax.corpus._document import Document
from atlas_jax.corpus._prose import prose
from atlas_jax.errors import AtlasError

_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
_CHUNK_CHARACTERS = 1_000_000


def read_documents(paths: Iterable[str | Path]) -> Iterator[Document]:
    """Documents of text files, streamed; a large file is never held whole.

    ``.txt`` is taken as it is, ``.md`` without code, tables and markup, in documents of about a million characters;
    ``.jsonl`` holds ``{"text": ..., "domain": ...}`` a line, ``.parquet`` these columns; ``domain`` is optional. All
    but Parquet may be gzipped (``.gz``). A directory stands for all such files below it, in sorted order. The domain
    defaults to the first directory below the one given, or to the file's name. Text is UTF-8; nothing is replaced.

    Args:
      paths: files and directories.

    Returns:
      An iterator of documents; the paths are checked before the first is asked for.

    Raises:
      AtlasError: for a missing path, an unknown extension, an empty or damaged file, one that is not UTF-8, or one
        without usable text. Damage is found when reading reaches it.

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
    return (document for path, name in files for document in _documents(path, name))


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    kind = next((suffix for suffix in _SUFFIXES if name.removesuffix(".gz").endswith(suffix)), None)
    return None if kind == ".parquet" and name.endswith(".gz") else kind


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, name relative to what was given) of one path a user gave."""
    if path.is_dir():
        found = [(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*"))]
        found = [(file, name) for file, name in found if file.is_file() and _kind(file) and "/." not in f"/{name}"]
        if not found:
            raise AtlasError(f"'{path}' holds no {', '.join(_SUFFIXES)} file; name a directory that does")
        return found
    if not path.exists():
        raise AtlasError(f"'{path}' does not exist; check the path")
    if _kind(path) is None:
        raise AtlasError(
            f"'{path}' is of an unknown kind; convert it to {', '.join(_SUFFIXES)} (.gz where not Parquet)"
        )
    if path.stat().st_size == 0:
        raise AtlasError(f"'{path}' is empty; give a file with text in it")
    return [(path, path.name)]


def _documents(path: Path, name: str) -> Iterator[Document]:
    parents = name.split("/")[:-1]
    domain = parents[0] if parents else path.name.split(".")[0]
    usable = False
    try:
        for text, own_domain in _RECORDS[_kind(path)](path):
            if text.strip():
                usable = True
                yield Document(text, own_domain or domain, name)
    except UnicodeDecodeError as error:
        raise AtlasError(
            f"'{path}' is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it, for example with"
            " 'iconv -f latin-1 -t utf-8'"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AtlasError(f"'{path}' is not a whole gzip file; fetch or compress it again") from error
    if not usable:
        raise AtlasError(f"'{path}' has no usable text; give a file with sentences in it")


def _open(path: Path) -> io.TextIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _text_records(path: Path) -> Iterator[tuple[str, str | None]]:
    """Pieces of about a million characters that end where a paragraph does, if one ends within four million."""
    lines: list[str] = []
    size = 0
    with _open(path) as file:
        for line in file:
            lines.append(line)
            size += len(line)
            if size >= _CHUNK_CHARACTERS and (not line.strip() or size >= 4 * _CHUNK_CHARACTERS):
                yield "".join(lines), None
                lines, size = [], 0
    yield "".join(lines), None


def _markdown_records(path: Path) -> Iterator[tuple[str, str | None]]:
    return ((prose(text), domain) for text, domain in _text_records(path))


def _jsonl_records(path: Path) -> Iterator[tuple[str, str | None]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise AtlasError(f"line {number} of '{path}' is not JSON ({error.msg}); mend or delete it") from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise AtlasError(f'line {number} of \'{path}\' has no "text" string; write {{"text": ...}} a line')
            domain = row.get("domain")
            yield row["text"].encode("utf-8", "replace").decode(), None if domain is None else str(domain)


def _parquet_records(path: Path) -> Iterator[tuple[str, str | None]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in ("text", "domain") if name in file.schema_arrow.names]
        if "text" not in columns:
            raise AtlasError(f"'{path}' has no column 'text'; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                domain = row.get("domain")
                yield row["text"] or "", None if domain is None else str(domain)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise AtlasError(f"'{path}' is not a readable Parquet file ({error}); write it again") from error


_RECORDS = {
    ".txt": _text_records,
    ".md": _markdown_records,
    ".jsonl": _jsonl_records,
    ".parquet": _parquet_records,
}
