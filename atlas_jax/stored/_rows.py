"""Rows of stored activations, found by the text of their sentence: what stands in the place of a tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.files import directory_hash, reading, sha256
from atlas_jax.stored._manifest import AGAIN, Manifest, text_hash
from atlas_jax.stored._shards import open_shard
from atlas_jax.types import Site, Tokens

NEEDS_MODEL = "are activations without their model; this needs the model itself: align with --subject or --atlas alone"
_SHOWN = 60


class StoredRows:
    """The rows of a directory of stored activations, by sentence. The number of a row takes the place of a token id.

    Sentences are found by their text, so neither the order of the rows nor the ids of another corpus matter.

    Attributes:
      directory: where they are.
      manifest: what they are.
      sentence: the id of each sentence, as stored.
      pad_id: the row that padding names.
      special_ids: none; a row that does not count when pooling is marked where it is stored.

    Example:
      >>> from atlas_jax.stored import StoredRows  # doctest: +SKIP
      >>> StoredRows("activations").encode(["a text"])  # doctest: +SKIP
      [[0]]
    """

    def __init__(self, directory: str | Path):
        self.directory, self.pad_id, self.special_ids = Path(directory), 0, frozenset[int]()
        self.manifest = Manifest.read(self.directory)
        opened = [self._open(shard) for shard in self.manifest.shards]
        if not opened:
            raise AtlasError(f"'{directory}' has no shard of activations; {AGAIN}")
        self._arrays = [arrays for arrays, *_ in opened]
        join = lambda part: np.concatenate([parts[part] for parts in opened])
        self.sentence, key, count, self._counts = (join(part) for part in (1, 2, 3, 4))
        self._ends = np.cumsum([len(parts[4]) for parts in opened])
        if self._ends[-1] >= 2**31:
            raise AtlasError(f"'{directory}' has {self._ends[-1]:,} rows, more than {2**31:,}; split it")
        for what, values in (("sentence id", self.sentence), ("text", key)):
            unique, times = np.unique(values, return_counts=True)
            if (doubled := unique[times > 1]).size:
                first, second = self.sentence[values == doubled[0]][:2].tolist()
                raise AtlasError(f"'{directory}' has the {what} of sentence {first} twice, again at {second}; {AGAIN}")
        order = np.argsort(key)
        self._key, self._order = key[order], order
        self._first, self._count = np.cumsum(count) - count, count

    def _open(self, shard: dict[str, Any]) -> tuple[Any, ...]:
        """Arrays, sentence ids, text hashes, rows of each sentence, and which rows count, checked."""
        path = self.directory / shard["file"]
        with reading(path, AGAIN):
            if not path.exists():
                raise FileNotFoundError(path)
            if (directory_hash if path.is_dir() else sha256)(path) != shard["sha256"]:
                raise ValueError("its SHA-256 is not the manifest's")
            arrays = open_shard(path)
            sentence, key = (np.asarray(arrays[name][:], np.int64) for name in ("sentence", "text"))
            if sentence.shape != key.shape or sentence.ndim != 1:
                raise ValueError(f"sentence and text are {list(sentence.shape)} and {list(key.shape)}")
            if self.manifest.rows == "token":
                count, counts = _token_rows(arrays, sentence)
            else:
                count, counts = np.ones(len(key), np.int64), np.ones(len(key), bool)
            for name, width in self.manifest.sites.items():
                self._check(name, arrays[name], (len(counts), width))
            if len(counts) != shard["rows"]:
                raise ValueError(f"it has {len(counts)} rows, and the manifest says {shard['rows']}")
        return arrays, sentence, key, count, counts

    def _check(self, name: str, array: Any, shape: tuple[int, int]) -> None:
        if array.shape != shape:
            raise ValueError(f"{name} is {list(array.shape)}, where its sentences and the manifest make {list(shape)}")
        if str(array.dtype) != self.manifest.dtype:
            raise ValueError(f"{name} is {array.dtype}, and the manifest says {self.manifest.dtype}")

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Return the numbers of the rows of each sentence, cut to ``max_length``.

        Raises:
          AtlasError: for a sentence without rows.
        """
        place = self.places(texts)
        if (missing := np.flatnonzero(place < 0)).size:
            text = texts[int(missing[0])]
            raise AtlasError(f"'{self.directory}' has no activations of the sentence '{text[:_SHOWN]}'; {AGAIN}")
        spans = zip(self._first[place].tolist(), self._count[place].tolist(), strict=True)
        return [list(range(first, first + count))[:max_length] for first, count in spans]

    def places(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return the position of each sentence among those stored, -1 where it is not."""
        key = text_hash(texts)
        place = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        return np.where(self._key[place] == key, self._order[place], -1)

    def span(self, text: str, position: int) -> tuple[int, int]:
        """Return an empty span: where a token lies in its text is not stored."""
        return 0, 0

    def spans(self, texts: Sequence[str], max_length: int | None = None) -> list[list[tuple[int, int]]]:
        """Refuse: where a token lies in its text is not stored.

        Raises:
          AtlasError: always.
        """
        raise AtlasError(f"'{self.directory}' {NEEDS_MODEL}")

    def batch(self, ids: Int[np.ndarray, "b t"], real: Bool[np.ndarray, "b t"], index: Int[np.ndarray, " b"]) -> Tokens:
        """Read the rows of a padded batch."""
        acts = {site: self._padded(name, ids, real) for site, name in self.manifest.names.items()}
        return Tokens(ids, real & self._counts[ids], index, real, acts)

    def _padded(self, name: str, ids: np.ndarray, real: np.ndarray) -> Float[np.ndarray, "b t d"]:
        out = np.zeros((*ids.shape, self.manifest.sites[name]), np.float32)
        out[real] = self.read(name, ids[real])
        return out

    def read(self, site: str | Site, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """Read some rows of a site, given by their numbers, as float32."""
        name = self.manifest.names[site] if isinstance(site, Site) else site
        out = np.zeros((len(rows), self.manifest.sites[name]), np.float32)
        shard = np.searchsorted(self._ends, rows, side="right")
        breaks = 1 + np.flatnonzero((np.diff(rows) != 1) | (np.diff(shard) != 0))
        for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
            if stop > start:
                k = int(shard[start])
                first = int(rows[start]) - (int(self._ends[k - 1]) if k else 0)
                out[start:stop] = self._arrays[k][name][first : first + int(stop - start)]
        return out


def _token_rows(arrays: dict[str, Any], sentence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each sentence and which of them count; every token that the model read must be there."""
    offsets, length = (np.asarray(arrays[name][:], np.int64) for name in ("offsets", "length"))
    counts, count = np.asarray(arrays["counts"][:]).astype(bool), np.diff(offsets)
    if offsets.shape != (len(sentence) + 1,) or length.shape != sentence.shape or offsets[0] or (count < 0).any():
        raise ValueError(f"offsets and length are not those of its {len(sentence)} sentences")
    if len(counts) != offsets[-1]:
        raise ValueError(f"counts has {len(counts)} rows, and offsets end at {offsets[-1]}")
    if (wrong := np.flatnonzero(count != length)).size:
        i = wrong[0]
        raise ValueError(
            f"sentence {sentence[i]} has rows for {count[i]} of the {length[i]} tokens that the model read: a prefix "
            "cache leaves tokens out, so extract without one"
        )
    return count, counts
