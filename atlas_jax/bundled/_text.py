"""The text the bundled pair is trained on: installed documentation, split into training and held-out documents."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atlas_jax.corpus import installed_documentation
from atlas_jax.models import Tokenizer


class Documents(NamedTuple):
    """Texts for training, and texts of other documents for measurements."""

    train: list[str]
    held_out: list[str]
    sha256: str

    @property
    def characters(self) -> tuple[int, int]:
        """Numbers of characters of both parts."""
        return sum(map(len, self.train)), sum(map(len, self.held_out))


def read_documents(held_out_share: int = 40) -> Documents:
    """Read all installed documentation; hold out one document in ``held_out_share``, chosen by a hash of its text."""
    train, held_out, digest = [], [], hashlib.sha256()
    for document in installed_documentation():
        text = " ".join(document.text.split())
        digest.update(text.encode())
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        (held_out if key % held_out_share == 0 else train).append(text)
    return Documents(train, held_out, digest.hexdigest())


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """Cut one long stream of tokens into rows ``[n, length]`` that each start with BOS."""
    encoded = tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)
    stream = np.concatenate([np.asarray(e.ids, np.int32) for e in encoded if e.ids])
    n = len(stream) // (length - 1)
    body = stream[: n * (length - 1)].reshape(n, length - 1)
    return np.concatenate([np.full((n, 1), tokenizer.bos_id, np.int32), body], axis=1)
