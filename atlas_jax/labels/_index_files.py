"""A text index on disk, beside the labels it was made of, so that opening an atlas does not make it again."""

import hashlib
import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from atlas_jax.errors import AtlasError
from atlas_jax.labels._dense import LSA, Averaged, Dense
from atlas_jax.labels._labels import Labels
from atlas_jax.labels._lexical import BM25
from atlas_jax.labels._search import TextIndex, chosen_texts
from atlas_jax.labels._static import StaticEmbedding

_VERSION = 2
_HEAD = "index.json"
_CSC = ("data", "indices", "indptr")
_ARRAYS = {"lsa": ("documents", "basis", "rarity"), "static": ("documents", "rarity", "common")}


def open_index(labels: Labels, directory: str | Path | None = None) -> TextIndex:
    """The index of some labels by the package's own retrievers: read from a directory, or made where none fits.

    What is there is used only if it was made of these very descriptions and word vectors. Arrays are mapped into
    memory, not read.

    Args:
      labels: the labels of an atlas.
      directory: where :func:`write_index` left it; None makes it anew.

    Raises:
      AtlasError: where no feature has a label, or the files are damaged.

    Example:
      >>> from atlas_jax.labels import Label
      >>> labels = Labels.from_rows([Label(3, "dogs and cats"), Label(7, "stock prices")])
      >>> write_index(labels, tmp / "index")
      >>> open_index(labels, tmp / "index").search("dogs", method="bm25")[0].index
      3
    """
    found = None if directory is None else _read(Path(directory), labels)
    return TextIndex.of(labels) if found is None else found


def write_index(labels: Labels, directory: str | Path) -> None:
    """Make the index of some labels and write it into a directory, for :func:`open_index`.

    Raises:
      AtlasError: where no feature has a label.
    """
    index, directory = TextIndex.of(labels), Path(directory)
    lexical = index.lexical.contributions
    arrays = {"features": index.features} | {f"bm25_{name}": getattr(lexical, name) for name in _CSC}
    for part, dense in index.dense.items():
        arrays |= {f"{part}_{name}": getattr(dense, name) for name in _ARRAYS[part]}
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", np.ascontiguousarray(array))
    head = {"version": _VERSION, "fingerprint": _fingerprint(labels), "parts": list(index.dense)}
    head["vocabulary"] = list(index.lexical.vocabulary)
    (directory / _HEAD).write_text(json.dumps(head, ensure_ascii=False), encoding="utf-8")


def _read(directory: Path, labels: Labels) -> TextIndex | None:
    """The index in a directory, None where there is none of these labels."""
    if not (directory / _HEAD).is_file():
        return None
    array = lambda name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    try:
        head = json.loads((directory / _HEAD).read_text(encoding="utf-8"))
        if (head["version"], head["fingerprint"]) != (_VERSION, _fingerprint(labels)):
            return None
        vocabulary = {word: i for i, word in enumerate(head["vocabulary"])}
        features = np.array(array("features"))
        csc = tuple(array(f"bm25_{name}") for name in _CSC)
        lexical = BM25(sp.csc_matrix(csc, (len(features), len(vocabulary)), copy=False), vocabulary)
        arrays = {part: {name: array(f"{part}_{name}") for name in _ARRAYS[part]} for part in head["parts"]}
        if any(len(part["documents"]) != len(features) for part in arrays.values()):
            raise ValueError("its arrays are of different lengths")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AtlasError(f"the search index in {directory} is damaged ({error}); delete the folder") from error
    dense: dict[str, Dense] = {}
    if "lsa" in arrays:
        dense["lsa"] = LSA(**arrays["lsa"], vocabulary=vocabulary)
    if "static" in arrays:
        dense["static"] = Averaged(**arrays["static"], embedding=StaticEmbedding.default())
    return TextIndex(features, chosen_texts(labels, features.tolist()), lexical, dense)


def _fingerprint(labels: Labels) -> str:
    """Of everything the index is made of."""
    features = labels.described()
    digest = hashlib.sha256(np.ascontiguousarray(StaticEmbedding.default().table))
    digest.update("\0".join(chosen_texts(labels, features)).encode())
    digest.update(np.array(features, np.int64))
    return digest.hexdigest()
