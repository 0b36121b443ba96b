"""Activations of a site as an endless stream of rows that can be entered at any chunk, for training on them."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.pipeline import Pass, token_activations
from atlas_jax.types import Site

GROUP = 2048  # sentences of a chunk; a cursor is meaningless under another value


class ActivationStream(NamedTuple):
    """The activations of the tokens of a pass that count, chunk by chunk, in another order each time around.

    Attributes:
      stream: a pass over one space, its sentences numbered from 0.
      sentences: how many there are.
      site: where the activations are read.
      norm_limit: longer activations are left out.
      seed: of the order.

    Example:
      >>> rows = ActivationStream(stream, 4000, Site("resid_post", 3), np.inf, 0)       # doctest: +SKIP
      >>> batches = mixed_batches(rows, batch=1024, buffer=1 << 17)                     # doctest: +SKIP
    """

    stream: Pass
    sentences: int
    site: Site
    norm_limit: float
    seed: int

    @property
    def chunks(self) -> int:
        """Chunks in which every sentence occurs once."""
        return -(-self.sentences // GROUP)

    def __call__(self, number: int) -> Iterator[Float[np.ndarray, "n d"]]:
        """The rows of a chunk, a batch of sentences at a time.

        Raises:
          AtlasError: if an activation is not finite.
        """
        around, part = divmod(number, self.chunks)
        order = np.random.default_rng([self.seed, around]).permutation(self.sentences)
        ids = order[part * GROUP : (part + 1) * GROUP].astype(np.int32)
        for acts, mask in token_activations(self.stream.only(ids), self.site):
            acts, mask = jax.device_get((acts, mask))
            rows = acts[mask]
            lengths = norms(rows)
            if not np.isfinite(lengths).all():
                raise AtlasError(f"the model gave an activation at {self.site} that is not finite; use float32")
            yield rows[lengths <= self.norm_limit]


def typical_norm(stream: Pass, site: Site) -> float:
    """The median norm of the activations of a few sentences."""
    taken = stream.only(np.arange(GROUP, dtype=np.int32))
    lengths = [norms(np.asarray(acts)[np.asarray(mask)]) for acts, mask in token_activations(taken, site)]
    return float(np.median(np.concatenate(lengths)))


def norms(rows: Float[Array | np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Euclidean norms of rows of any float dtype."""
    return np.linalg.norm(rows.astype(np.float32), axis=1)
