"""What a user names as text: files, directories and datasets, each read in its own way."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from atlas_jax.corpus._datasets import is_saved_dataset, read_dataset
from atlas_jax.corpus._document import Document
from atlas_jax.corpus._read import SUFFIXES, read_documents
from atlas_jax.errors import AtlasError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def read_sources(
    sources: Iterable[str | Path] | str | Path,
    *,
    column: str = "text",
    domain_column: str = "domain",
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    encoding: str | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Documents of files, directories and datasets, one source after the other.

    What exists is read by :func:`read_documents`, except for a directory that ``datasets`` saved, and for any
    directory where a split or subset is given; these, and what does not exist but reads ``owner/name``, are read by
    :func:`read_dataset`.

    Args:
      sources: files, directories, names of the hub; or one of them.
      column: name of the text in jsonl, Parquet and datasets.
      domain_column: name of the domain there.
      split: split of a dataset.
      subset: configuration of a dataset.
      limit: most documents to read of each source.
      encoding: of text files without a byte order mark; UTF-8 by default.
      skipped: counts, by file or dataset, the records without text.

    Returns:
      An iterator of documents; every source is looked at before the first is asked for.

    Raises:
      AtlasError: as the two readers do; if a split or subset is given for a file, or ``limit`` is below 1.

    Example:
      >>> _ = Path(tmp, "poems.jsonl").write_text('{"body": "Roses are red."}')
      >>> [document.text for document in read_sources([tmp / "poems.jsonl"], column="body", limit=1)]
      ['Roses are red.']
    """
    if limit is not None and limit < 1:
        raise AtlasError(f"the limit must be at least 1 document, not {limit}")
    sources = [sources] if isinstance(sources, str | Path) else sources
    options = {"column": column, "domain_column": domain_column, "skipped": skipped}
    found = [_read(str(source), options, split, subset, encoding) for source in sources]
    if not found:
        raise AtlasError("no text was given; name at least one file, directory or dataset")
    return itertools.chain.from_iterable(itertools.islice(documents, limit) for documents in found)


def _read(
    source: str, options: dict[str, Any], split: str | None, subset: str | None, encoding: str | None
) -> Iterator[Document]:
    path = Path(source)
    wants_dataset = split is not None or subset is not None
    if path.is_file() and wants_dataset:
        raise AtlasError(f"'{source}' is a file, and a split or subset belongs to a dataset; leave them out")
    if path.is_dir() and (wants_dataset or is_saved_dataset(path)):
        return read_dataset(source, split=split, subset=subset, **options)
    if not path.exists() and _is_hub_name(source):
        return read_dataset(source, split=split, subset=subset, **options)
    return read_documents([source], encoding=encoding, **options)


def _is_hub_name(source: str) -> bool:
    """Whether this may be ``owner/name`` of the hub, and not a wrong path into a directory there is."""
    wrong_path = source.lower().endswith((*SUFFIXES, ".gz", ".zst")) or Path(source).parent.is_dir()
    return bool(_HUB_NAME.fullmatch(source)) and not wrong_path
