"""Text to token ids and back, from a model directory's ``tokenizer.json``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers

from atlas_jax.errors import AtlasError
from atlas_jax.types import Tokens


class Tokenizer:
    """A fast tokenizer that knows which of its ids are special.

    Raises:
      AtlasError: if the directory has no readable ``tokenizer.json``.

    Example:
      >>> Tokenizer.load(SUBJECT).decode([])
      ''
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_id: int | None, pad_id: int, config: dict[str, Any] | None = None
    ):
        self.backend, self.bos_id, self.pad_id, self.config = backend, bos_id, pad_id, config or {}
        self.backend.no_padding()
        self.backend.no_truncation()
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read ``tokenizer.json``, and ``tokenizer_config.json`` for whether BOS is added."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise AtlasError(f"{directory} has no tokenizer.json; save one there with tokenizer.save_pretrained")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as e:  # noqa: BLE001 - the library raises bare Exception
            raise AtlasError(f"{path} is not a readable tokenizer ({e}); save it again") from e
        config = _read_json(directory / "tokenizer_config.json")
        bos = config.get("bos_token")
        bos = bos["content"] if isinstance(bos, dict) else bos
        bos_id = backend.token_to_id(bos) if bos else None
        added = config.get("add_bos_token")
        added = bos_id in backend.encode("a").ids if added is None else added
        return cls(backend, bos_id if added else None, 0, config)

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Ids of each text, BOS first where the model uses one, cut to ``max_length``."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=True)
        return [self._with_bos(e.ids)[:max_length] for e in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def span(self, text: str, position: int) -> tuple[int, int]:
        """Where in a text the token at ``position`` (BOS counted) comes from: first character and one past the last."""
        encoding = self.backend.encode(text)
        shift = len(self._with_bos(encoding.ids)) - len(encoding.ids)
        return encoding.offsets[position - shift]

    def pad(self, rows: Sequence[Sequence[int]], length: int, index: Sequence[int], side: str = "right") -> Tokens:
        """Stack rows of ids into a batch of one length.

        Raises:
          ValueError: if a row is longer than ``length``.
        """
        ids = np.full((len(rows), length), self.pad_id, np.int32)
        real = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            if len(row) > length:
                raise ValueError(f"row {i} has {len(row)} tokens, more than the length {length}")
            span = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            ids[i, span], real[i, span] = row, True
        content = real & ~np.isin(ids, list(self.special_ids))
        return Tokens(jnp.asarray(ids), jnp.asarray(content), jnp.asarray(index, jnp.int32), jnp.asarray(real))

    def save(self, directory: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        self.backend.save(str(directory / "tokenizer.json"))
        config = (
            {"tokenizer_class": "PreTrainedTokenizerFast"} | self.config | {"add_bos_token": self.bos_id is not None}
        )
        if self.bos_id is not None:
            config["bos_token"] = self.backend.id_to_token(self.bos_id)
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
