"""Conversion of text to token ids and back, by the tokenizer that transformers loads from a model directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import tokenizers

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.models._config import transformers
from atlas_jax.types import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class Tokenizer:
    """A tokenizer of transformers with a fast backend, and the special ids that pooling leaves out.

    Attributes:
      hf: the tokenizer of transformers.
      backend: its ``tokenizers.Tokenizer``, which encodes.
      bos_id: the id that every encoded text begins with, None where there is none.
      pad_id: the id of padding; any id serves, since padding is masked.
      special_ids: ids that pooling leaves out.
      limit: rows of the model's embedding; ids from there on are refused. None for no model.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import Tokenizer
      >>> tokenizer = Tokenizer.load(SUBJECT)
      >>> ids = tokenizer.encode(["Return the value"])[0]
      >>> tokenizer.decode(ids)
      'Return the value'
      >>> first, after = tokenizer.span("Return the value", 5)
      >>> "Return the value"[first:after]
      ' value'
      >>> tokenizer.pad([ids], length=8, index=[0], side="left").attention_mask.tolist()
      [[False, False, True, True, True, True, True, True]]
    """

    def __init__(self, hf: "PreTrainedTokenizerFast", limit: int | None = None):
        self.hf, self.backend, self.limit, self.pad_id = hf, hf.backend_tokenizer, limit, 0
        self.backend.no_padding()
        self.backend.no_truncation()
        added = self.backend.get_added_tokens_decoder()
        self.special_ids = frozenset(hf.all_special_ids) | {i for i, token in added.items() if token.special}
        self.bos_id = hf.bos_token_id if self.backend.encode("a").ids[:1] == [hf.bos_token_id] else None
        largest = max([self.backend.get_vocab_size(with_added_tokens=False) - 1, *added])
        self._may_exceed = limit is not None and largest >= limit

    @classmethod
    def load(cls, directory: Path, limit: int | None = None) -> "Tokenizer":
        """Read a model directory's tokenizer with ``transformers.AutoTokenizer``.

        A ``tokenizer.json`` without ``tokenizer_config.json`` is taken as it stands, where transformers would rebuild
        it as the usual tokenizer of the model's family.

        Args:
          directory: directory of the model.
          limit: rows of the model's embedding.

        Raises:
          AtlasError: if the directory has no readable tokenizer, it has no fast backend, or its vocabulary is larger
            than the embedding.
        """
        for name in _SETTINGS:
            read_object(directory / name, missing={})
        tokenizer = cls(_load(directory), limit)
        if limit is not None and (size := tokenizer.backend.get_vocab_size(with_added_tokens=False)) > limit:
            raise AtlasError(
                f"the tokenizer of {directory} has {size} tokens and the model's embedding {limit} rows, so they are "
                "not of one model; put the model's own tokenizer there"
            )
        return tokenizer

    @classmethod
    def from_backend(cls, backend: tokenizers.Tokenizer, bos_token: str | None) -> "Tokenizer":
        """Wrap a tokenizer of the ``tokenizers`` library; every text begins with ``bos_token`` unless that is None.

        Example:
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import Tokenizer
          >>> Tokenizer.from_backend(Tokenizer.load(SUBJECT).backend, None).bos_id is None
          True
        """
        options = {} if bos_token is None else {"bos_token": bos_token}
        options |= {"tokenizer_object": backend, "add_bos_token": bos_token is not None}
        return cls(transformers().PreTrainedTokenizerFast(**options))

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Return the ids of each text as transformers encodes it, cut to ``max_length``; BOS is never doubled.

        Raises:
          AtlasError: if a text has a token that the model's embedding does not.
        """
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=True)
        rows = [self._one_bos(e.ids)[:max_length] for e in encodings]
        if self._may_exceed:
            self._check(rows)
        return rows

    def encode_chat(self, messages: Any, add_generation_prompt: bool = True) -> list[int]:
        """Return the ids of a conversation by the model's own chat template; see :meth:`LanguageModel.chat`."""
        from jinja2 import TemplateError

        if not isinstance(messages, Sequence) or not messages or not all(_is_message(m) for m in messages):
            raise AtlasError('a conversation is a list of messages such as {"role": "user", "content": "Hello"}')
        if not self.hf.chat_template:
            raise AtlasError("this model has no chat template; give a model tuned for chat, or plain text")
        try:
            rendered = self.hf.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=True
            )
        except TemplateError as e:
            raise AtlasError(f"the model's chat template refuses this conversation: {e}") from e
        ids = self._one_bos(list(rendered["input_ids"]))
        self._check([ids])
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids, without special tokens unless they are asked for."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text that ids add to a prompt's: the two, put together, are the text of all ids.

        Example:
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import Tokenizer
          >>> tokenizer = Tokenizer.load(SUBJECT)
          >>> ids = tokenizer.encode(["Return the value"])[0]
          >>> tokenizer.continuation(ids[:-1], ids[-1:])
          ' value'
        """
        before = self.decode(prompt, skip_special_tokens=skip_special_tokens)
        both = self.decode([*prompt, *ids], skip_special_tokens=skip_special_tokens)
        if both.startswith(before):
            return both[len(before) :]
        # The prompt ends within a character, which only all ids together spell.
        return both[next(i for i, (a, b) in enumerate(zip(before, both + "\0", strict=False)) if a != b) :]

    def span(self, text: str, position: int) -> tuple[int, int]:
        """Return the first character of the token at ``position`` (BOS counted) and the one past its last."""
        return self.spans([text])[0][position]

    def spans(self, texts: Sequence[str], max_length: int | None = None) -> list[list[tuple[int, int]]]:
        """Return, for each id of :meth:`encode`, the first character of its token and the one past its last.

        Special tokens that are not in the text have the span ``(0, 0)``. The tokens that spell one character together
        all have its span.
        """
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=True)
        return [e.offsets[len(e.ids) - len(self._one_bos(e.ids)) :][:max_length] for e in encodings]

    def pad(self, rows: Sequence[Sequence[int]], length: int, index: Sequence[int], side: str = "right") -> Tokens:
        """Stack rows of ids into a batch of one length.

        Raises:
          ValueError: if a row is longer than ``length``.
          AtlasError: for an id that the model's embedding does not have.
        """
        ids = np.full((len(rows), length), self.pad_id, np.int32)
        real = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            if len(row) > length:
                raise ValueError(f"row {i} has {len(row)} tokens, more than the length {length}")
            span = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            ids[i, span], real[i, span] = row, True
        check_ids(ids, self.limit)
        content = real & ~np.isin(ids, list(self.special_ids))
        return Tokens(jnp.asarray(ids), jnp.asarray(content), jnp.asarray(index, jnp.int32), jnp.asarray(real))

    def save(self, directory: Path) -> None:
        """Write the files ``AutoTokenizer`` loads it from, chat template included.

        Example:
          >>> import tempfile
          >>> from pathlib import Path
          >>> from atlas_jax.bundled import SUBJECT
          >>> from atlas_jax.models import Tokenizer
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     Tokenizer.load(SUBJECT).save(Path(directory))
          ...     Tokenizer.load(Path(directory)).bos_id
          0
        """
        self.hf.save_pretrained(directory)

    def _one_bos(self, ids: list[int]) -> list[int]:
        return ids[1:] if self.bos_id is not None and ids[:2] == [self.bos_id] * 2 else ids

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        if self.limit is not None and (wrong := [i for row in rows for i in row if i >= self.limit]):
            raise AtlasError(
                f"token {self.hf.convert_ids_to_tokens(wrong[0])!r} has the id {wrong[0]}, and the model's embedding "
                f"{self.limit} rows; resize the embedding (resize_token_embeddings), or leave the token out"
            )


def check_ids(ids: np.ndarray, limit: int | None) -> None:
    """Refuse token ids that a model does not have.

    Raises:
      AtlasError: for a negative id, or one not below ``limit``.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.models._tokenizer import check_ids
      >>> check_ids(np.array([0, 4]), 5)
    """
    if limit is not None and (wrong := ids[(ids < 0) | (ids >= limit)]).size:
        raise AtlasError(f"token id {wrong[0]} does not exist; this model has 0 to {limit - 1}")


def _load(directory: Path) -> "PreTrainedTokenizerFast":
    alone = directory / "tokenizer.json"
    try:
        if alone.is_file() and not (directory / "tokenizer_config.json").is_file():
            return transformers().PreTrainedTokenizerFast(tokenizer_file=str(alone))
        hf = transformers().AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as e:  # noqa: BLE001 - transformers and tokenizers raise whatever the file made them stumble on
        if not any((directory / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise AtlasError(f"{directory} has no tokenizer.json; save one there with tokenizer.save_pretrained") from e
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise AtlasError(f"the tokenizer of {directory} cannot be read ({reason}); save it there again") from e
    if not hf.is_fast:
        raise AtlasError(f"the tokenizer of {directory} has no tokenizer.json; save one with a fast tokenizer")
    return hf


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message
