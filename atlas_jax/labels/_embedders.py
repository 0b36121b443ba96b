"""Texts as vectors: static word vectors, and embedders of the user's own behind one cache on disk."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import new_file
from atlas_jax.labels._endpoint import BATCH, EndpointEmbedder
from atlas_jax.rows import unit

DEFAULT = Path(__file__).parent / "words"
KINDS = ("sentence-transformers", "endpoint")


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors.

    Attributes:
      name: name that no other embedder has; it is part of the key of cached vectors.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.labels import Embedder
      >>> class Lengths:
      ...     name = "lengths"
      ...     def encode(self, texts): return np.array([[len(t)] for t in texts], np.float32)
      >>> isinstance(Lengths(), Embedder)
      True
    """

    name: str

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """Return one float32 row a text."""


def open_embedder(
    spec: str, *, base_url: str | None = None, api_key: str | None = None, cache: str | Path | None = None
) -> Embedder:
    """Return the embedder that a user names.

    Args:
      spec: ``sentence-transformers:NAME`` (a hub name or a directory) or ``endpoint:MODEL``.
      base_url: address of an OpenAI-compatible API, such as ``http://localhost:8000/v1``; OPENAI_BASE_URL by default.
      api_key: sent as a bearer token; OPENAI_API_KEY by default, none where that is unset.
      cache: a directory that keeps the vectors, so that a text is embedded once.

    Raises:
      AtlasError: for another kind of embedder, no name, a missing package or model, or an endpoint without a base URL.

    Example:
      >>> from atlas_jax.labels import open_embedder
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
      name: name of the embedder.
      model: a ``sentence_transformers.SentenceTransformer``.

    Example:
      >>> from atlas_jax.labels import SentenceTransformerEmbedder
      >>> embedder = SentenceTransformerEmbedder.load("all-MiniLM-L6-v2")  # doctest: +SKIP
      >>> embedder.encode(["a dog"]).shape  # doctest: +SKIP
      (1, 384)
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
        """Return one float32 row a text."""
        rows = self.model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(rows, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class CachedEmbedder:
    """An embedder whose vectors are kept on disk, a file for every batch, so that an interrupted run resumes.

    Attributes:
      inner: the embedder.
      directory: directory of the files.
      batch: texts a file.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from pathlib import Path
      >>> from atlas_jax.labels import CachedEmbedder
      >>> class Lengths:
      ...     name = "lengths"
      ...     def encode(self, texts): return np.array([[len(t)] for t in texts], np.float32)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     CachedEmbedder(Lengths(), Path(directory)).encode(["a", "bcd"]).tolist()
      [[1.0], [3.0]]
    """

    inner: Embedder
    directory: Path
    batch: int = BATCH

    @property
    def name(self) -> str:
        """The name of the embedder inside."""
        return self.inner.name

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """Return one float32 row a text."""
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
        with new_file(path) as file, file.open("wb") as content:
            np.save(content, rows)
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class StaticEmbedding:
    """Word vectors that do not depend on context.

    Attributes:
      tokenizer: a ``tokenizers.Tokenizer``.
      table: float32 ``[c, w]``, the distinct vectors.
      rows: ``[v]``, the row of the table that belongs to each token.
      weights: float32 ``[v]``, the factor of each token in :meth:`encode`.
      normalize: true where :meth:`encode` returns unit rows.

    Example:
      >>> from atlas_jax.labels import StaticEmbedding
      >>> words = StaticEmbedding.default()
      >>> dog, puppy, tax = words.encode(["a dog", "a puppy", "a tax"])
      >>> bool(dog @ puppy > dog @ tax)
      True
      >>> words.vectors[words.token_ids(["dog"])[0]].shape
      (1, 128)
    """

    tokenizer: Any
    table: Float[np.ndarray, "c w"]
    rows: Int[np.ndarray, " v"]
    weights: Float[np.ndarray, " v"]
    normalize: bool = True

    @classmethod
    def load(cls, directory: str | Path) -> "StaticEmbedding":
        """Read ``tokenizer.json``, ``model.safetensors`` and ``config.json``.

        The tensors are ``embeddings`` [c, w] and, where the vocabulary is quantised, ``mapping`` [v], the row of each
        token, and ``weights`` [v]. Not read by model2vec, which takes 0.5 s instead of 0.04 s, accepts damaged
        mappings, and gives means only in its own weights.

        Raises:
          AtlasError: for a missing or damaged file, or tensors that do not fit the tokenizer.
        """
        directory = Path(directory)
        tokenizer = _tokenizer(directory / "tokenizer.json")
        try:
            tensors = load_file(directory / "model.safetensors")
            normalize = json.loads((directory / "config.json").read_text()).get("normalize", False)
            table = tensors["embeddings"].astype(np.float32)
        except (OSError, SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise AtlasError(f"{directory} holds no static embeddings in model2vec's layout: {error!r}") from error
        rows = tensors.get("mapping", np.arange(len(table)))
        weights = tensors.get("weights", np.ones(len(rows))).astype(np.float32)
        size = tokenizer.get_vocab_size()
        if not size == len(rows) == len(weights) or rows.min() < 0 or rows.max() >= len(table):
            raise AtlasError(f"{directory} has {size} tokens and tensors for {len(rows)}: they do not belong together")
        return cls(tokenizer, table, rows, weights, normalize)

    @classmethod
    @lru_cache(maxsize=1)
    def default(cls) -> "StaticEmbedding":
        """Return the small English vectors that come with the package."""
        return cls.load(DEFAULT)

    @property
    def vectors(self) -> Float[np.ndarray, "v w"]:
        """One vector a token."""
        return self.table[self.rows]

    def save(self, directory: str | Path) -> None:
        """Write the three files :meth:`load` reads, vectors as int8: each is a whole multiple of 1/127 of the largest.

        Raises:
          AtlasError: where :meth:`encode` is not normalised, because the scale is lost.

        Example:
          >>> import tempfile
          >>> from atlas_jax.labels import StaticEmbedding, train_static
          >>> trained = train_static(["the red cats sat", "the red dog sat"] * 9, width=2)
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     trained.save(directory)
          ...     StaticEmbedding.load(directory).table.shape
          (5, 2)
        """
        if not self.normalize:
            raise AtlasError("only normalised embeddings can be saved, because int8 vectors lose their scale")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        tensors = {
            "embeddings": np.rint(self.table * (127 / np.abs(self.table).max())).astype(np.int8, order="C"),
            "mapping": self.rows.astype(np.int32),
            "weights": self.weights.astype(np.float16),
        }
        save_file(tensors, directory / "model.safetensors")
        config = {"model_type": "model2vec", "hidden_dim": self.table.shape[1], "normalize": self.normalize}
        (directory / "config.json").write_text(json.dumps(config) + "\n")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the known tokens of each text."""
        unknown = _unknown_id(self.tokenizer)
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[i for i in one.ids if i != unknown] for one in encoded]

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """Return the mean of the weighted vectors of the known tokens, as model2vec does; zero where there are none."""
        means = np.zeros((len(texts), self.table.shape[1]), np.float32)
        for mean, ids in zip(means, self.token_ids(texts), strict=True):
            if ids:
                mean[:] = (self.table[self.rows[ids]] * self.weights[ids][:, None]).mean(axis=0)
        return unit(means) if self.normalize else means


def _unknown_id(tokenizer: Any) -> int | None:
    """Return the id of unknown words; only unigram models state its number, the others its token."""
    if hasattr(tokenizer.model, "unk_token"):
        return None if (token := tokenizer.model.unk_token) is None else tokenizer.token_to_id(token)
    return json.loads(tokenizer.to_str())["model"].get("unk_id")


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    if not file.is_file():
        raise AtlasError(f"{file.parent} holds no static embeddings: {file.name} is missing")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the class that tokenizers raises for a damaged file
        raise AtlasError(f"{file} is no tokenizer: {error}") from error
