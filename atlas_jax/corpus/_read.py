"""Reading of a user's own text: txt, Markdown, jsonl and Parquet files, plain or compressed, and directories."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from atlas_jax.corpus._decode import check_encoding, lines
from atlas_jax.corpus._prose import Document, columns_read, domain_of, prose, text_of
from atlas_jax.errors import AtlasError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
_COMPRESSED = (".gz", ".zst")
_CHUNK_CHARACTERS = 1_000_000
_PARQUET_ROWS = 256
_HEAD = 1000  # records without the column, after which the rest of a file is not searched for it
_Record = tuple[str | None, str | None]


class Format(NamedTuple):
    """Names of the fields with the text and the domain of a record, and the encoding of files without a mark."""

    text: str = "text"
    domain: str = "domain"
    encoding: str | None = None


def read_documents(
    paths: Iterable[str | Path] | str | Path,
    *,
    column: str = "text",
    domain_column: str = "domain",
    encoding: str | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Yield the documents of text files, streamed; a large file is never held whole.

    ``.txt`` is taken as it is, ``.md`` without code, tables and markup, in documents of about a million characters;
    ``.jsonl`` holds ``{"text": ..., "domain": ...}`` a line, ``.parquet`` these columns; ``domain`` is optional. All
    but Parquet may be compressed (``.gz``, ``.zst``). A directory stands for all such files below it, in sorted order.
    The domain defaults to the first directory below the one given, or to the file's name. Text is in the encoding that
    its byte order mark (UTF-8, UTF-16, UTF-32) or else ``encoding`` says; nothing is guessed or replaced. Records whose
    text is missing, null or blank are skipped, as are files of a directory that have no text.

    Args:
      paths: files and directories, or one.
      column: name of the text in jsonl and Parquet files.
      domain_column: name of the domain there; ``meta.pile_set_name`` is a field of the column ``meta``.
      encoding: encoding of files without a byte order mark, such as ``latin-1``; UTF-8 by default.
      skipped: gets the number of skipped records of each file.

    Returns:
      An iterator of documents; the paths are checked before the first is asked for.

    Raises:
      AtlasError: for a missing path, an unknown extension, an empty, binary or damaged file, one in another encoding,
        one without the column or with something else than text in it, a path without usable text, or an unknown
        encoding. Damage is reported when reading reaches it.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.corpus import read_documents
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = Path(directory, "poems.txt").write_text("Roses are red.")
      ...     [document.domain for document in read_documents([directory])]
      ['poems']
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise AtlasError("no text was given; name at least one file or directory")
    check_encoding(encoding)
    form, skipped = Format(column, domain_column, encoding), Counter() if skipped is None else skipped
    files = [(path, _files(path)) for path in given]
    return (document for path, inside in files for document in _documents(path, inside, form, skipped))


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    plain = next((name.removesuffix(suffix) for suffix in _COMPRESSED if name.endswith(suffix)), name)
    kind = next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), None)
    return None if kind == ".parquet" and plain != name else kind


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return (file, name relative to the path) of all files of one path a user gave."""
    if path.is_dir():
        inside = [(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*"))]
        inside = [(file, name) for file, name in inside if file.is_file() and _kind(file) and "/." not in f"/{name}"]
        if not inside:
            raise AtlasError(f"'{path}' holds no {', '.join(SUFFIXES)} file; name a directory that does")
        return inside
    if not path.exists():
        raise AtlasError(f"'{path}' does not exist; check the path (a dataset of the hub reads owner/name)")
    if _kind(path) is None:
        raise AtlasError(
            f"'{path}' is of an unknown kind; convert it to {', '.join(SUFFIXES)} (.gz or .zst where not Parquet)"
        )
    if path.stat().st_size == 0:
        raise AtlasError(f"'{path}' is empty; give a file with text in it")
    return [(path, path.name)]


def _documents(path: Path, files: list[tuple[Path, str]], form: Format, skipped: Counter[str]) -> Iterator[Document]:
    """Yield the documents in the files of one path a user gave."""
    usable = False
    for file, name in files:
        parents = name.split("/")[:-1]
        domain = parents[0] if parents else file.name.split(".")[0]
        before = skipped[name]
        has_text = False
        for text, own_domain in _RECORDS[_kind(file)](file, form):
            if text is None:
                skipped[name] += 1
            elif text.strip():
                has_text = True
                yield Document(text, own_domain or domain, name)
        if not has_text and skipped[name] == before:
            skipped[name] += 1
        usable |= has_text
    if not usable:
        raise AtlasError(f"'{path}' has no usable text; give a file with sentences in it")


def _text_records(path: Path, form: Format) -> Iterator[_Record]:
    """Yield pieces of about a million characters that end with a paragraph, if one ends within four million."""
    held: list[str] = []
    size = 0
    for line in lines(path, form.encoding):
        held.append(line)
        size += len(line)
        if size >= _CHUNK_CHARACTERS and (not line.strip() or size >= 4 * _CHUNK_CHARACTERS):
            yield "".join(held), None
            held, size = [], 0
    yield "".join(held), None


def _markdown_records(path: Path, form: Format) -> Iterator[_Record]:
    return ((prose(text), domain) for text, domain in _text_records(path, form))


def _jsonl_records(path: Path, form: Format) -> Iterator[_Record]:
    names: dict[str, None] = {}
    rows = 0
    for number, line in enumerate(lines(path, form.encoding), 1):
        if not line.strip():
            continue
        where = f"line {number} of '{path}'"
        row = _object(line, where)
        rows += 1
        if form.text not in names:
            names |= dict.fromkeys(row)
            if form.text not in names and rows == _HEAD:
                break
        yield text_of(row, form.text, where), domain_of(row, form.domain)
    if names and form.text not in names:
        raise AtlasError(f"no line of '{path}' has \"{form.text}\"; name the column of the text: {', '.join(names)}")


def _object(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise AtlasError(f"{where} is not JSON ({reason}); mend or delete it") from error
    if not isinstance(row, dict):
        raise AtlasError(f'{where} is not an object such as {{"text": "A sentence."}}; mend or delete it')
    return row


def _parquet_records(path: Path, form: Format) -> Iterator[_Record]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            check_text_column(file.schema_arrow, form.text, f"'{path}'")
            names = columns_read(file.schema_arrow.names, form.text, form.domain)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=names):
                for row in batch.to_pylist():
                    yield text_of(row, form.text, f"'{path}'"), domain_of(row, form.domain)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise AtlasError(f"'{path}' is not a readable Parquet file ({first_line(error)}); write it again") from error


def check_text_column(schema: pa.Schema, column: str, where: str) -> None:
    """Refuse a table whose text column is missing or not text.

    Raises:
      AtlasError: with the columns of the table.
    """
    if column not in schema.names:
        raise AtlasError(f"{where} has no column '{column}'; it has {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise AtlasError(f"column '{column}' of {where} holds {kind}, not text; it has {', '.join(schema.names)}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0].rstrip(".")


_RECORDS = {
    ".txt": _text_records,
    ".md": _markdown_records,
    ".jsonl": _jsonl_records,
    ".parquet": _parquet_records,
}
