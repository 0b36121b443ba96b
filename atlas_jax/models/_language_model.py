"""A language model: configuration, tokenizer and decoder, as one thing."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.errors import AtlasError
from atlas_jax.models._config import ModelConfig
from atlas_jax.models._config_file import load_config
from atlas_jax.models._tokenizer import Tokenizer
from atlas_jax.models._weights import load_decoder, save_decoder
from atlas_jax.types import Tokens


@dataclasses.dataclass(frozen=True)
class _Static:
    config: ModelConfig
    tokenizer: Tokenizer
    hf_config: dict[str, Any] = dataclasses.field(hash=False, compare=False)


@jax.tree_util.register_pytree_node_class
class LanguageModel:
    """A decoder with its tokenizer. A pytree whose leaves are the parameters, so it passes through ``jax.jit``.

    Attributes:
      config: what the decoder computes with.
      tokenizer: text to ids and back.
      decoder: the Flax NNX module, a pytree that may be passed to jitted functions.
      hf_config: the content of the checkpoint's ``config.json``; of the text part alone where there are others.

    Example:
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> lm.tokenize(["some text"]).ids.shape[0]
      1
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, decoder: Any, hf_config: dict[str, Any]):
        self.config, self.tokenizer, self.decoder, self.hf_config = config, tokenizer, decoder, hf_config

    def tree_flatten(self) -> "tuple[tuple, _Static]":
        """The parameters, and all the rest as one static value compared by identity of the tokenizer."""
        return (self.decoder,), _Static(self.config, self.tokenizer, self.hf_config)

    @classmethod
    def tree_unflatten(cls, static: "_Static", children: tuple) -> "LanguageModel":
        """Inverse of :meth:`tree_flatten`."""
        return cls(static.config, static.tokenizer, children[0], static.hf_config)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None, revision: str | None = None
    ) -> "LanguageModel":
        """Load a model in Hugging Face layout.

        Args:
          name: a local directory, or a repository on the Hugging Face hub. A directory never touches the network.
          dtype: of the parameters and activations, "float32" or "bfloat16".
          mesh: a mesh with an axis "model" to shard the parameters over.
          revision: of a hub repository.

        Raises:
          AtlasError: for a missing directory or repository, an unsupported architecture, config attribute or dtype,
            or tensors that are missing, unexpected or mis-shaped (all of them in one message).
        """
        if dtype not in ("float32", "bfloat16"):
            raise AtlasError(f"dtype '{dtype}' is not supported; use float32 or bfloat16")
        directory = resolve(name, revision)
        config, raw = load_config(directory)
        tokenizer = Tokenizer.load(directory)
        return cls(config, tokenizer, load_decoder(directory, config, jnp.dtype(dtype), mesh), raw)

    def save_pretrained(self, directory: str | Path, *, dtype: str | None = None) -> None:
        """Write a directory that ``transformers`` loads; it appears under its name only when complete.

        Args:
          directory: where to; an existing one is replaced.
          dtype: of the stored parameters, their own by default.
        """
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            new = Path(temporary) / "model"
            new.mkdir()
            dtype = dtype or str(self.decoder.norm.weight[...].dtype)
            save_decoder(self.decoder, new, jnp.dtype(dtype))
            self.tokenizer.save(new)
            (new / "config.json").write_text(json.dumps(self.hf_config | {"dtype": dtype}, indent=2))
            if directory.exists():
                shutil.rmtree(directory)
            new.rename(directory)

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        index: Sequence[int] | None = None,
        length: int | None = None,
        max_length: int | None = None,
        side: str = "right",
    ) -> Tokens:
        """Encode texts into one padded batch.

        Args:
          texts: at least one.
          index: sentence ids; 0, 1, 2, ... by default.
          length: tokens a row; that of the longest text by default.
          max_length: where longer texts are cut; the model's context by default.
          side: on which side padding goes, "right" or "left".

        Returns:
          :class:`Tokens` with ``ids[b, t]``; ``mask`` is false on BOS, special tokens and padding.

        Raises:
          AtlasError: if there is no text.
        """
        if not texts:
            raise AtlasError("there is no text to tokenize; give at least one")
        rows = self.tokenizer.encode(texts, max_length or self.config.max_positions)
        length = length or max(1, *map(len, rows))
        return self.tokenizer.pad(rows, length, range(len(rows)) if index is None else index, side)


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """The local directory of a model, fetched from the hub when ``name`` is a repository.

    Raises:
      AtlasError: if there is no such directory and the hub cannot provide it.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or path.exists() or str(name).startswith(".") or str(name).count("/") != 1:
        raise AtlasError(f"'{name}' is not a directory; give one, or a hub name such as owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.npz"]
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        reason = type(e).__name__
        raise AtlasError(
            f"'{name}' is no local directory and could not be fetched from the hub ({reason}); "
            "check the name, the network, and for gated models that you are logged in and were granted access"
        ) from e
