"""Static word vectors in model2vec's directory layout: a tokenizer and one vector a token."""

import dataclasses
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from atlas_jax.errors import AtlasError

DEFAULT = Path(__file__).parent / "words"


@dataclasses.dataclass(frozen=True, eq=False)
class StaticEmbedding:
    """Word vectors that do not depend on context.

    Attributes:
      tokenizer: a ``tokenizers.Tokenizer``.
      table: float32 ``[c, w]``, the distinct vectors.
      rows: ``[v]``, the row of the table that belongs to each token.
      weights: float32 ``[v]``, the factor of each token in :meth:`encode`.
      normalize: whether :meth:`encode` returns unit rows.
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
        token, and ``weights`` [v].

        Raises:
          AtlasError: for a missing or damaged file, or tensors that do not fit the tokenizer.
        """
        directory = Path(directory)
        tokenizer = _tokenizer(directory / "tokenizer.json")
        try:
            tensors = load_file(directory / "model.safetensors")
            normalize = json.loads((directory / "config.json").read_text()).get("normalize", True)
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
        """The small English vectors that come with the package."""
        return cls.load(DEFAULT)

    @property
    def vectors(self) -> Float[np.ndarray, "v w"]:
        """One vector a token."""
        return self.table[self.rows]

    def save(self, directory: str | Path) -> None:
        """Write the three files :meth:`load` reads, vectors as int8: each is a whole multiple of 1/127 of the largest.

        Raises:
          AtlasError: where :meth:`encode` is not normalised, because the scale is lost.
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
        """Ids of the known tokens of each text."""
        unknown = self.tokenizer.model.unk_token if hasattr(self.tokenizer.model, "unk_token") else None
        unknown = None if unknown is None else self.tokenizer.token_to_id(unknown)
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[i for i in one.ids if i != unknown] for one in encoded]

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """Mean of the weighted vectors of the known tokens, as model2vec computes it; zero where there are none."""
        means = np.zeros((len(texts), self.table.shape[1]), np.float32)
        for mean, ids in zip(means, self.token_ids(texts), strict=True):
            if ids:
                mean[:] = (self.table[self.rows[ids]] * self.weights[ids][:, None]).mean(axis=0)
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        return means / np.where(norms > 0, norms, 1) if self.normalize else means


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    if not file.is_file():
        raise AtlasError(f"{file.parent} holds no static embeddings: {file.name} is missing")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the class that tokenizers raises for a damaged file
        raise AtlasError(f"{file} is no tokenizer: {error}") from error
