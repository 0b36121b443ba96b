"""Static word vectors in model2vec's directory layout: a tokenizer and one vector a token."""

import dataclasses
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from atlas_jax.errors import AtlasError

DEFAULT = Path(__file__).parent / "words"


@dataclasses.dataclass(frozen=True, eq=False)
class StaticEmbedding:
    """Word vectors that do not depend on context.

    Attributes:
      tokenizer: a ``tokenizers.Tokenizer``.
      vectors: float32 ``[v, w]``, one row a token.
      weights: float32 ``[v]``, the factor of each token in :meth:`encode`.
      normalize: whether :meth:`encode` returns unit rows.
    """

    tokenizer: Any
    vectors: Float[np.ndarray, "v w"]
    weights: Float[np.ndarray, " v"]
    normalize: bool = True

    @classmethod
    def load(cls, directory: str | Path) -> "StaticEmbedding":
        """Read ``tokenizer.json``, ``model.safetensors`` and ``config.json``.

        The tensors are ``embeddings`` [c, w] and, where the vocabulary is quantised, ``mapping`` [v], the row of each
        token, and ``weights`` [v].

        Raises:
          AtlasError: for a missing or damaged file, or tensors that do not fit the tokenizer.
        """
        directory = Path(directory)
        tokenizer = _tokenizer(directory / "tokenizer.json")
        try:
            tensors = load_file(directory / "model.safetensors")
            normalize = json.loads((directory / "config.json").read_text()).get("normalize", True)
            vectors = tensors["embeddings"].astype(np.float32)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise AtlasError(f"{directory} holds no static embeddings in model2vec's layout: {error!r}") from error
        mapping = tensors.get("mapping")
        vectors = vectors if mapping is None else vectors[mapping]
        weights = tensors.get("weights", np.ones(len(vectors))).astype(np.float32)
        size = tokenizer.get_vocab_size()
        if not size == len(vectors) == len(weights):
            raise AtlasError(f"{directory} has {size} tokens, {len(vectors)} vectors and {len(weights)} weights")
        return cls(tokenizer, vectors, weights, normalize)

    @classmethod
    @lru_cache(maxsize=1)
    def default(cls) -> "StaticEmbedding":
        """The small English vectors that come with the package."""
        return cls.load(DEFAULT)

    def save(self, directory: str | Path) -> None:
        """Write the three files :meth:`load` reads, vectors in float16."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        tensors = {"embeddings": self.vectors, "weights": self.weights}
        tensors = {name: np.ascontiguousarray(value, np.float16) for name, value in tensors.items()}
        save_file(tensors, directory / "model.safetensors")
        config = {"model_type": "model2vec", "hidden_dim": self.vectors.shape[1], "normalize": self.normalize}
        (directory / "config.json").write_text(json.dumps(config) + "\n")

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the known tokens of each text."""
        unknown = self.tokenizer.model.unk_token if hasattr(self.tokenizer.model, "unk_token") else None
        unknown = None if unknown is None else self.tokenizer.token_to_id(unknown)
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[i for i in one.ids if i != unknown] for one in encoded]

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """Mean of the weighted vectors of the known tokens, as model2vec computes it; zero where there are none."""
        rows = np.zeros((len(texts), self.vectors.shape[1]), np.float32)
        for row, ids in zip(rows, self.token_ids(texts), strict=True):
            if ids:
                row[:] = (self.vectors[ids] * self.weights[ids][:, None]).mean(axis=0)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1) if self.normalize else rows


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    if not file.is_file():
        raise AtlasError(f"{file.parent} holds no static embeddings: {file.name} is missing")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the class that tokenizers raises for a damaged file
        raise AtlasError(f"{file} is no tokenizer: {error}") from error
