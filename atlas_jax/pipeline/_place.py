"""From rows on the host to a batch on the device: the one place where a batch gets its layout."""

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.models import Tokenizer
from atlas_jax.pipeline._plan import Batch, Block, Ragged
from atlas_jax.types import Tokens


def place(block: Block, batch: Batch, tokenizers: tuple[Tokenizer, ...]) -> tuple[Tokens, ...]:
    """One batch of a block as padded tokens of every model.

    Rows that only fill the shape have index -1 and no token that counts.
    """
    part = block.take(batch.places)
    index = np.full(batch.height, -1, np.int32)
    index[: len(part.index)] = part.index
    padded = [_pad(ids, t, (batch.height, batch.length), index) for ids, t in zip(part.ids, tokenizers, strict=True)]
    return jax.tree.map(jnp.asarray, tuple(padded))


def _pad(rows: Ragged, tokenizer: Tokenizer, shape: tuple[int, int], index: np.ndarray) -> Tokens:
    ids = np.full(shape, tokenizer.pad_id, np.int32)
    real = np.zeros(shape, bool)
    real[: len(rows.lengths)] = np.arange(shape[1]) < rows.lengths[:, None]
    ids[real] = rows.values
    return Tokens(ids, real & ~np.isin(ids, list(tokenizer.special_ids)), index, real)
