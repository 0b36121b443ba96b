"""Reading of the sources that a user names: files, directories and datasets, each in its own way."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from atlas_jax.corpus._prose import Document, columns_read, domain_of, text_of
from atlas_jax.corpus._read import SUFFIXES, check_text_column, first_line, read_documents
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_SAVED = ("state.json", "dataset_dict.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_saved_dataset(directory: Path) -> bool:
    """True if a directory was written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``."""
    return any((directory / name).is_file() for name in _SAVED)


def read_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    column: str = "text",
    domain_column: str = "domain",
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Yield the documents of a dataset, one a row, streamed and in its order.

    Only a hub name touches the network; nothing is downloaded before it is read. The domain of a row without one
    is the name of the dataset.

    Args:
      name: a name on the hub, a directory laid out like a dataset there, or one that ``save_to_disk`` wrote.
      split: the split; None means ``train`` where there are several.
      subset: the configuration, where a dataset has several.
      column: name of the text.
      domain_column: name of the domain; optional in the data. ``meta.pile_set_name`` is a field of the column ``meta``.
      skipped: gets the number of rows without text.

    Returns:
      An iterator of documents; the dataset is opened before the first is asked for.

    Raises:
      AtlasError: if the dataset is missing, gated or out of reach, has no such split, subset or column, is damaged, or
        has no usable text.

    Example:
      >>> import tempfile
      >>> from atlas_jax.corpus import read_dataset
      >>> import datasets
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     datasets.Dataset.from_dict({"body": ["Roses are red."]}).save_to_disk(f"{directory}/poems")
      ...     next(read_dataset(f"{directory}/poems", column="body"))
      Document(text='Roses are red.', domain='poems', source='poems')
    """
    directory = Path(name)
    label = directory.name if directory.is_dir() else str(name)
    saved = directory.is_dir() and is_saved_dataset(directory)
    dataset = _saved(directory, split, subset) if saved else _streamed(str(name), split or "train", subset)
    return _documents(dataset, str(name), label, (column, domain_column), Counter() if skipped is None else skipped)


def _saved(directory: Path, split: str | None, subset: str | None) -> "Dataset":
    import datasets

    if subset is not None:
        raise AtlasError(f"'{directory}' was saved without subsets; leave the subset out")
    try:
        dataset = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError) as error:
        raise AtlasError(f"the dataset in '{directory}' is damaged ({first_line(error)}); save it again") from error
    if isinstance(dataset, datasets.Dataset):
        if split is not None and split != str(dataset.split):
            raise AtlasError(f"'{directory}' is one dataset without split '{split}'; leave the split out")
        return dataset
    if (split or "train") not in dataset:
        raise AtlasError(f"'{directory}' has no split '{split or 'train'}'; it has {', '.join(dataset)}")
    return dataset[split or "train"]


def _streamed(name: str, split: str, subset: str | None) -> "IterableDataset":
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split, streaming=True)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise AtlasError(
            f"the dataset '{name}' cannot be read ({first_line(error)}); check the name, and log in with"
            " 'hf auth login' if it is gated"
        ) from error
    except ConnectionError as error:
        raise AtlasError(
            f"'{name}' is no file or directory here, and the hub, which may have such a dataset, is out of reach;"
            " check the path, or give a local copy"
        ) from error
    except pa.ArrowInvalid as error:
        raise AtlasError(f"the data of '{name}' is damaged ({first_line(error)}); fetch it again") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise AtlasError(
            f"the dataset '{name}' cannot be read ({first_line(error)}); name one that is there"
        ) from error


def _documents(
    dataset: "Dataset | IterableDataset", name: str, label: str, columns: tuple[str, str], skipped: Counter[str]
) -> Iterator[Document]:
    """Return the rows as documents; columns are checked now, rows are read later."""
    if dataset.features is not None:
        check_text_column(dataset.features.arrow_schema, columns[0], f"'{name}'")
        dataset = dataset.select_columns(columns_read(dataset.features, *columns))
    return _rows(dataset, name, label, columns, skipped)


def _rows(
    dataset: "Dataset | IterableDataset", name: str, label: str, columns: tuple[str, str], skipped: Counter[str]
) -> Iterator[Document]:
    usable = False
    column, domain_column = columns
    for number, row in enumerate(_guarded(dataset, name), 1):
        if column not in row:
            raise AtlasError(f"'{name}' has no column '{column}'; it has {', '.join(row)}")
        text = text_of(row, column, f"row {number} of '{name}'")
        if text is None:
            skipped[label] += 1
        else:
            usable = True
            yield Document(text, domain_of(row, domain_column) or label, label)
    if not usable:
        raise AtlasError(f"'{name}' has no usable text; give a dataset with sentences in it")


def _guarded(dataset: "Dataset | IterableDataset", name: str) -> Iterator[dict]:
    """Yield the rows; the error is one sentence where the data is damaged or the network fails."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    done = 0
    try:
        for row in dataset:
            yield row
            done += 1
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise AtlasError(
            f"reading '{name}' failed after {done} documents ({first_line(error)}); run it again"
        ) from error


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
    """Yield the documents of files, directories and datasets, one source after the other.

    A path that exists is read by :func:`read_documents`, except for a directory that ``datasets`` saved, and for any
    directory where a split or subset is given; these, and other names of the form ``owner/name``, are read by
    :func:`read_dataset`.

    Args:
      sources: files, directories, names of the hub; or one of them.
      column: name of the text in jsonl, Parquet and datasets.
      domain_column: name of the domain there.
      split: split of a dataset.
      subset: configuration of a dataset.
      limit: most documents to read of each source.
      encoding: encoding of text files without a byte order mark; UTF-8 by default.
      skipped: gets the number of records without text of each file or dataset.

    Returns:
      An iterator of documents; every source is looked at before the first is asked for.

    Raises:
      AtlasError: as the two readers do; if a split or subset is given for a file, or ``limit`` is below 1.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.corpus import read_sources
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = Path(directory, "poems.jsonl").write_text('{"body": "Roses are red."}')
      ...     [document.text for document in read_sources([directory], column="body", limit=1)]
      ['Roses are red.']
    """
    if limit is not None and limit < 1:
        raise AtlasError(f"the limit must be at least 1 document, not {limit}")
    sources = [sources] if isinstance(sources, str | Path) else sources
    options = {"column": column, "domain_column": domain_column, "skipped": skipped}
    streams = [_read(str(source), options, split, subset, encoding) for source in sources]
    if not streams:
        raise AtlasError("no text was given; name at least one file, directory or dataset")
    return itertools.chain.from_iterable(itertools.islice(documents, limit) for documents in streams)


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
    """True if this may be ``owner/name`` of the hub, and not a wrong path into an existing directory."""
    wrong_path = source.lower().endswith((*SUFFIXES, ".gz", ".zst")) or Path(source).parent.is_dir()
    return bool(_HUB_NAME.fullmatch(source)) and not wrong_path
