"""A language model: configuration, tokenizer and decoder in one object."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.checks import as_texts
from atlas_jax.errors import AtlasError
from atlas_jax.files import from_hub, read_object, writable, write_json
from atlas_jax.models._attention import choose_kernel
from atlas_jax.models._config import ModelConfig, load_config
from atlas_jax.models._tokenizer import Tokenizer
from atlas_jax.models._weights import load_decoder, save_decoder
from atlas_jax.types import Tokens

GENERATION = "generation_config.json"
# What a model directory may hold that is read; published repositories keep the same weights in other formats beside it.
DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.npz"]
NOT_DOWNLOADED = ["original/*", "consolidated*", "onnx/*", "metal/*", "runs/*"]


@dataclasses.dataclass(frozen=True)
class _Static:
    config: ModelConfig
    tokenizer: Tokenizer | None
    hf_config: dict[str, Any] = dataclasses.field(hash=False, compare=False)
    generation_config: dict[str, Any] = dataclasses.field(hash=False, compare=False)


@jax.tree_util.register_pytree_node_class
class LanguageModel:
    """A decoder with its tokenizer. A pytree whose leaves are the parameters, so it passes through ``jax.jit``.

    Attributes:
      config: description of the decoder.
      tokenizer: text to ids and back; None in a model of shapes.
      decoder: the Flax NNX module, a pytree that may be passed to jitted functions.
      hf_config: the content of the checkpoint's ``config.json``; of the text part alone where there are others.
      generation_config: the content of its ``generation_config.json``, empty where there is none.

    Example:
      >>> import jax
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> lm.tokenize(["some text", "a longer text"]).ids.shape[0]
      2
      >>> twice = jax.tree.map(lambda x: 2 * x, lm)
      >>> twice.config == lm.config
      True
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        decoder: Any,
        hf_config: dict[str, Any],
        generation_config: dict[str, Any] | None = None,
    ):
        self.config, self.tokenizer, self.decoder, self.hf_config = config, tokenizer, decoder, hf_config
        self.generation_config = generation_config or {}

    def replace(self, *, tokenizer: Tokenizer | None = None, decoder: Any = None) -> "LanguageModel":
        """Return the model with another tokenizer or decoder, all else the same.

        Example:
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import LanguageModel
          >>> lm = LanguageModel.from_pretrained(SUBJECT)
          >>> lm.replace(tokenizer=lm.tokenizer).decoder is lm.decoder
          True
        """
        own = tokenizer or self.tokenizer, self.decoder if decoder is None else decoder
        return LanguageModel(self.config, *own, self.hf_config, self.generation_config)

    def tree_flatten(self) -> "tuple[tuple, _Static]":
        """Return the parameters, and all the rest as one static value compared by identity of the tokenizer."""
        return (self.decoder,), _Static(self.config, self.tokenizer, self.hf_config, self.generation_config)

    @classmethod
    def tree_unflatten(cls, static: "_Static", children: tuple) -> "LanguageModel":
        """Undo :meth:`tree_flatten`."""
        return cls(static.config, static.tokenizer, children[0], static.hf_config, static.generation_config)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        revision: str | None = None,
        attention: str = "xla",
    ) -> "LanguageModel":
        """Load a model in Hugging Face layout.

        Args:
          name: a local directory, or a repository on the Hugging Face hub. A directory never touches the network.
          dtype: dtype of the parameters and activations, "float32" or "bfloat16".
          mesh: a mesh with an axis "model" to shard the parameters over.
          revision: branch, tag or commit of a hub repository.
          attention: the kernel that computes it: "xla", "tokamax", "cudnn", or "auto" for the first of these that
            gives the same as XLA on this device (:func:`choose_kernel`).

        Raises:
          AtlasError: for a missing directory or repository, an unsupported architecture, config attribute or dtype,
            tensors that are missing, unexpected or mis-shaped (all of them in one message), or a kernel that does not
            give the same here.

        Example:
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import LanguageModel
          >>> LanguageModel.from_pretrained(SUBJECT, dtype="bfloat16").config.num_layers
          4
        """
        if dtype not in ("float32", "bfloat16"):
            raise AtlasError(f"dtype '{dtype}' is not supported; use float32 or bfloat16")
        directory = resolve(name, revision)
        config, raw = load_config(directory)
        tokenizer = Tokenizer.load(directory, config.vocab_size)
        config = dataclasses.replace(config, attention=choose_kernel(attention, config, dtype, mesh))
        decoder = load_decoder(directory, config, jnp.dtype(dtype), mesh)
        raw = raw | {"tie_word_embeddings": decoder.config.tie_embeddings}
        generation = read_object(directory / GENERATION, missing={})
        return cls(decoder.config, tokenizer, decoder, raw, generation)

    def save_pretrained(self, directory: str | Path, *, dtype: str | None = None) -> None:
        """Write a directory that ``transformers`` loads, with the chat template and generation defaults it came with.

        A new directory appears under its name only when complete. In an existing one, files of the same names are
        replaced one by one and all others are left alone.

        Args:
          directory: directory to write.
          dtype: dtype of the stored parameters, their own by default.

        Raises:
          AtlasError: if it cannot be written, or holds a LoRA adapter, which would act on this model.

        Example:
          >>> import tempfile
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import LanguageModel
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     LanguageModel.from_pretrained(SUBJECT).save_pretrained(directory)
          ...     LanguageModel.from_pretrained(directory).config.hidden_size
          128
        """
        directory = Path(directory)
        if directory.exists() and not directory.is_dir():
            raise AtlasError(f"'{directory}' is a file; give a directory")
        if (directory / "adapter_config.json").is_file():
            raise AtlasError(f"'{directory}' holds a LoRA adapter, which would act on this model; choose another place")
        with writable(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
                new = Path(temporary) / "model"
                new.mkdir()
                self._write(new, dtype or str(self.decoder.norm.weight[...].dtype))
                if not directory.exists():
                    new.rename(directory)
                    return
                for file in sorted(new.iterdir()):
                    os.replace(file, directory / file.name)

    def _write(self, directory: Path, dtype: str) -> None:
        save_decoder(self.decoder, directory, jnp.dtype(dtype))
        self.tokenizer.save(directory)
        write_json(directory / "config.json", self.hf_config | {"dtype": dtype}, sort_keys=False)
        if self.generation_config:
            write_json(directory / GENERATION, self.generation_config, sort_keys=False)

    def tokenize(
        self,
        texts: Any = None,
        *,
        messages: Any = None,
        index: Sequence[int] | None = None,
        length: int | None = None,
        max_length: int | None = None,
        side: str = "right",
    ) -> Tokens:
        """Encode texts into one padded batch.

        Args:
          texts: one, or several.
          messages: a conversation in place of texts, written by the model's own chat template (see :meth:`chat`).
          index: sentence ids; 0, 1, 2, ... by default.
          length: tokens a row; that of the longest text by default.
          max_length: length to which longer texts are cut; by default none is cut.
          side: side of the padding, "right" or "left".

        Returns:
          :class:`Tokens` with ``ids[b, t]``; ``mask`` is false on BOS, special tokens and padding.

        Raises:
          AtlasError: if there is no text, one is no string or is longer than the model's context and may not be cut,
            or a token is not in the model's embedding.

        Example:
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import LanguageModel
          >>> tokens = LanguageModel.from_pretrained(SUBJECT).tokenize(["the value", "the"], length=4)
          >>> tokens.attention_mask.sum(axis=1).tolist(), tokens.mask.sum(axis=1).tolist()
          ([3, 2], [2, 1])
        """
        if (texts is None) == (messages is None):
            raise AtlasError("give either texts or messages to tokenize")
        if messages is not None:
            rows = [self.chat(messages)[:max_length]]
        else:
            rows = self.tokenizer.encode(as_texts(texts), max_length)
        longest, context = max(map(len, rows)), self.config.max_positions
        if longest > context:
            raise AtlasError(
                f"a text of {longest} tokens exceeds the model's context of {context}; shorten it, or give max_length"
            )
        return self.tokenizer.pad(rows, length or max(1, longest), range(len(rows)) if index is None else index, side)

    def chat(self, messages: Any, *, add_generation_prompt: bool = True) -> list[int]:
        """Return the token ids of a conversation by the model's own chat template: a prompt for :func:`generate`.

        Args:
          messages: ``{"role": ..., "content": ...}`` each, roles as the template knows them.
          add_generation_prompt: end with the tokens that open the model's answer.

        Raises:
          AtlasError: if the model has no chat template, or the template refuses the messages.

        Example:
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import LanguageModel
          >>> lm = LanguageModel.from_pretrained(SUBJECT)
          >>> lm.tokenizer.hf.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
          >>> lm.tokenizer.decode(lm.chat([{"role": "user", "content": "the value"}]))
          'user: the value'
        """
        return self.tokenizer.encode_chat(messages, add_generation_prompt)


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of a model, fetched from the hub when ``name`` is a repository.

    Raises:
      AtlasError: if there is no such directory and the hub cannot provide it.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import resolve
      >>> resolve(SUBJECT) == SUBJECT
      True
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or path.exists() or str(name).startswith(".") or str(name).count("/") != 1:
        raise AtlasError(f"'{name}' is not a directory; give one, or a hub name such as owner/name")
    return from_hub(str(name), revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED)


def every_head(model: str | Path, names: Sequence[Any]) -> list[Any]:
    """Replace each site ``z.LAYER.all`` among names by those of the model's single heads.

    Raises:
      AtlasError: as :func:`resolve`, or if the model's config cannot be read; both only where there is such a name.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import every_head
      >>> every_head(SUBJECT, ["mlp_act.1", "z.2.all"])
      ['mlp_act.1', 'z.2.0', 'z.2.1', 'z.2.2', 'z.2.3']
    """
    every = lambda name: isinstance(name, str) and name.startswith("z.") and name.endswith(".all")
    if not any(map(every, names)):
        return list(names)
    config, _ = load_config(resolve(model))
    heads = lambda name: [f"{name.removesuffix('all')}{head}" for head in range(config.num_heads)]
    return [site for name in names for site in (heads(name) if every(name) else [name])]
