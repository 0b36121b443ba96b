"""Embedders of the user's own: a sentence-transformers model or an endpoint, behind one cache of vectors on disk."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError
from atlas_jax.labels._endpoint import BATCH, EndpointEmbedder

KINDS = ("sentence-transformers", "endpoint")


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors.

    Attributes:
      name: tells its vectors from those of any other embedder.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """One float32 row a text."""


def open_embedder(
    spec: str, *, base_url: str | None = None, api_key: str | None = None, cache: str | Path | None = None
) -> Embedder:
    """The embedder a user names.

    Args:
      spec: ``sentence-transformers:NAME`` (a hub name or a directory) or ``endpoint:MODEL``.
      base_url: of an OpenAI-compatible API, such as ``http://localhost:8000/v1``; OPENAI_BASE_URL by default.
      api_key: sent as a bearer token; OPENAI_API_KEY by default, none where that is unset.
      cache: a directory that keeps the vectors, so that a text is embedded once.

    Raises:
      AtlasError: for another kind of embedder, no name, a missing package or model, or an endpoint without a base URL.

    Example:
      >>> open_embedder("endpoint:my-model", base_url="http://localhost:8000/v1").name
      'endpoint:my-model at http://localhost:8000/v1'
    """
    kind, _, name = spec.partition(":")
    if kind not in KINDS or not name:
        raise AtlasError(f"unknown embedder '{spec}'; choose static, bm25, {KINDS[0]}:NAME or {KINDS[1]}:MODEL")
    if kind == "sentence-transformers":
        embedder: Embedder = SentenceTransformerEmbedder.load(name)
    else:
        embedder = EndpointEmbedder.connect(name, base_url=base_url, api_key=api_key)
    return embedder if cache is None else CachedEmbedder(embedder, Path(cache))


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceTransformerEmbedder:
    """A model of the sentence-transformers package, which is imported only here.

    Attributes:
      name: of the embedder.
      model: a ``sentence_transformers.SentenceTransformer``.
    """

    name: str
    model: Any

    @classmethod
    def load(cls, name: str) -> "SentenceTransformerEmbedder":
        """Load a model by hub name or directory.

        Raises:
          AtlasError: if the package or the model is missing.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise AtlasError("sentence-transformers is not installed: pip install sentence-transformers") from None
        try:
            return cls(f"sentence-transformers:{name}", SentenceTransformer(name))
        except Exception as error:  # noqa: BLE001 - the package raises many types for a model it cannot load
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AtlasError(f"sentence-transformers could not load '{name}': {reason}") from None

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """One float32 row a text."""
        rows = self.model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(rows, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class CachedEmbedder:
    """An embedder whose vectors are kept on disk, a file for every batch, so that an interrupted run resumes.

    Attributes:
      inner: the embedder.
      directory: where the files are.
      batch: texts a file.

    Example:
      >>> class Lengths:
      ...     name = "lengths"
      ...     def encode(self, texts): return np.array([[len(t)] for t in texts], np.float32)
      >>> CachedEmbedder(Lengths(), tmp).encode(["a", "bcd"]).tolist()
      [[1.0], [3.0]]
    """

    inner: Embedder
    directory: Path
    batch: int = BATCH

    @property
    def name(self) -> str:
        """Of the embedder inside."""
        return self.inner.name

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """One float32 row a text."""
        starts = range(0, len(texts), self.batch)
        return np.concatenate([self._batch(texts[i : i + self.batch]) for i in starts])

    def _batch(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        digest = hashlib.sha256("\0".join([self.name, *texts]).encode()).hexdigest()
        path = self.directory / f"{digest[:32]}.npy"
        if path.is_file():
            try:
                return np.load(path, allow_pickle=False)
            except (OSError, EOFError, ValueError) as error:
                raise AtlasError(f"{path} is damaged ({error}); delete it, and its texts are embedded again") from None
        rows = self.inner.encode(texts)
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.directory, suffix=".tmp", delete=False) as file:
            np.save(file, rows)
        os.replace(file.name, path)
        return rows
