"""Stored activations in the place of a model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.stored._rows import NEEDS_MODEL, StoredRows
from atlas_jax.types import Site, Tokens

BLOCK = 32768  # sentences looked up at once


def _missing(directory: Path, name: str) -> Any:
    """Refuse what only a model has; names of protocols are simply not there."""
    if name.startswith("_"):
        raise AttributeError(name)
    raise AtlasError(f"'{directory}' {NEEDS_MODEL}")


@dataclasses.dataclass(frozen=True)
class _Config:
    """What streams ask of a model's config."""

    widths: dict[Site, int]
    directory: Path
    max_positions: int = 2**31 - 1

    def __getattr__(self, name: str) -> Any:
        return _missing(self.directory, name)

    def width(self, site: Site) -> int:
        return self.widths[site]

    def check_site(self, site: Site) -> Site:
        if site not in self.widths:
            raise AtlasError(
                f"'{self.directory}' has no activations of {site}; it has {', '.join(map(str, self.widths))}"
            )
        return site


@jax.tree_util.register_static
class _NoDecoder:
    """In the place of the parameters: whatever asks for them learns that there is no model."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __getattr__(self, name: str) -> Any:
        return _missing(self._directory, name)


@jax.tree_util.register_static
class StoredModel:
    """Stored activations in the place of a :class:`atlas_jax.LanguageModel`, for :class:`atlas_jax.Subject`.

    A pass reads its rows, pooled or token by token, from disk; whatever needs the model itself (steering, generation,
    logits) raises an error that says so.

    Attributes:
      tokenizer: the rows, by sentence.
      config: widths of the sites.
      decoder: what says that there is no model.
      pooling: of sentence rows, None for token rows.

    Example:
      >>> from atlas_jax import StoredModel, Subject  # doctest: +SKIP
      >>> subject = Subject.from_model(StoredModel.open("activations"), ["resid_post.3"])  # doctest: +SKIP
    """

    def __init__(self, rows: StoredRows):
        self.tokenizer, self.decoder = rows, _NoDecoder(rows.directory)
        self.config = _Config(rows.manifest.widths, rows.directory)
        self.pooling = rows.manifest.pooling

    @classmethod
    def open(cls, directory: str | Path) -> "StoredModel":
        """Open a directory of stored activations, and check all of its files.

        Raises:
          AtlasError: for a missing or damaged file, or rows that are not as the manifest says.
        """
        return cls(StoredRows(directory))

    def check_poolings(self, poolings: Sequence[str | None]) -> None:
        """Refuse a pooling that cannot be had of pooled rows.

        Raises:
          AtlasError: naming the one that was stored.
        """
        for pooling in poolings:
            if self.pooling and pooling not in (None, self.pooling):
                raise AtlasError(
                    f"'{self.tokenizer.directory}' holds {self.pooling}-pooled rows, of which no {pooling} pooling can "
                    f"be made; use {self.pooling} with no other pooling for steering, or store token rows"
                )

    def check_length(self, max_length: int) -> None:
        """Refuse sentences that were cut at another length than those of a run.

        Raises:
          AtlasError: naming both lengths.
        """
        stored = self.tokenizer.manifest.max_length
        if stored is not None and (stored < max_length or (self.pooling and stored != max_length)):
            raise AtlasError(
                f"'{self.tokenizer.directory}' holds sentences cut at {stored} tokens, not at {max_length}; give "
                f"--max-length {stored}, or extract them again"
            )

    def check_corpus(self, halves: Sequence[Sequence[str]], corpus: str) -> None:
        """Check that every sentence of a corpus is stored, and under its id where the ids are the corpus's.

        Args:
          halves: its sentences, in the order of their ids.
          corpus: its hash.

        Raises:
          AtlasError: naming the first that is not.
        """
        rows, size = self.tokenizer, sum(map(len, halves))
        texts = [(half, start) for half in halves for start in range(0, len(half), BLOCK)]
        place = np.concatenate([rows.places(half[start : start + BLOCK]) for half, start in texts])
        if (missing := np.flatnonzero(place < 0)).size == size:
            raise AtlasError(f"'{rows.directory}' holds activations of another corpus, and of no sentence of this one")
        if missing.size:
            raise AtlasError(
                f"'{rows.directory}' has no activations of {missing.size} of the {size} sentences, the first is "
                f"sentence {missing[0]}; extract them too"
            )
        if rows.manifest.corpus == corpus and (wrong := np.flatnonzero(rows.sentence[place] != np.arange(size))).size:
            i = wrong[0]
            raise AtlasError(
                f"'{rows.directory}' is in another order than its ids say: it calls sentence {i} of this corpus "
                f"sentence {rows.sentence[place[i]]}; extract the activations again"
            )

    def tokenize(self, texts: Any = None, **options: Any) -> Tokens:
        """Refuse: new text needs the model.

        Raises:
          AtlasError: always.
        """
        raise AtlasError(f"'{self.tokenizer.directory}' {NEEDS_MODEL}")


def pooled_rows(model: Any) -> bool:
    """Whether what takes the place of a model is rows that were pooled when they were stored.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel
      >>> from atlas_jax.stored import pooled_rows
      >>> pooled_rows(LanguageModel.from_pretrained(SUBJECT))
      False
    """
    return isinstance(model, StoredModel) and model.pooling is not None
