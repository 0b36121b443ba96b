"""Documents of the ``datasets`` library: hub names, streamed, and datasets in local directories."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from atlas_jax.corpus._document import Document, columns_read, domain_of, text_of
from atlas_jax.corpus._read import check_text_column, first_line
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_SAVED = ("state.json", "dataset_dict.json")


def is_saved_dataset(directory: Path) -> bool:
    """Whether a directory was written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``."""
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
    """Documents of a dataset, one a row, streamed and in its order.

    Only a hub name touches the network; nothing is downloaded ahead of what is read. The domain of a row without one
    is the name of the dataset.

    Args:
      name: a name on the hub, a directory laid out like a dataset there, or one that ``save_to_disk`` wrote.
      split: the split; None means ``train`` where there are several.
      subset: the configuration, where a dataset has several.
      column: name of the text.
      domain_column: name of the domain; optional in the data. ``meta.pile_set_name`` is a field of the column ``meta``.
      skipped: counts the rows without text.

    Returns:
      An iterator of documents; the dataset is opened before the first is asked for.

    Raises:
      AtlasError: if the dataset is missing, gated or out of reach, has no such split, subset or column, is damaged, or
        has no usable text.

    Example:
      >>> import datasets
      >>> datasets.Dataset.from_dict({"body": ["Roses are red."]}).save_to_disk(tmp / "poems")
      >>> next(read_dataset(tmp / "poems", column="body"))
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
        found = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError) as error:
        raise AtlasError(f"the dataset in '{directory}' is damaged ({first_line(error)}); save it again") from error
    if isinstance(found, datasets.Dataset):
        if split is not None and split != str(found.split):
            raise AtlasError(f"'{directory}' is one dataset without split '{split}'; leave the split out")
        return found
    if (split or "train") not in found:
        raise AtlasError(f"'{directory}' has no split '{split or 'train'}'; it has {', '.join(found)}")
    return found[split or "train"]


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
    """Rows as documents; columns are checked now, rows are read later."""
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
    """The rows, with one sentence where the data is damaged or the network fails."""
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
