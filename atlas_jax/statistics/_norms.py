"""The mean norm of the activations at single tokens, the unit that steering strengths are given in."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from atlas_jax.statistics._moments import compensated_add


class NormSums(NamedTuple):
    """Sums over tokens, of all sentences ``[]`` or of each row ``[b]``.

    Attributes:
      norm: by site, of the L2 norms of the activations.
      tokens: how many tokens.
    """

    norm: dict[Any, Float[Array, "*b"]]
    tokens: Float[Array, "*b"]


class TokenNorms(NamedTuple):
    """Token norms of a pass, float32, with what rounding left out.

    Attributes:
      sums: the sums.
      compensation: the same tree, holding what float32 rounded away.

    Example:
      >>> norms = add_norms(TokenNorms.init(["a"]), NormSums({"a": jnp.float32(6.0)}, jnp.float32(4.0)))
      >>> norms.mean("a")
      1.5
    """

    sums: NormSums
    compensation: NormSums

    @classmethod
    def init(cls, sites: Iterable[Any]) -> "TokenNorms":
        """No token yet."""
        nothing = NormSums({site: jnp.zeros((), jnp.float32) for site in sites}, jnp.zeros((), jnp.float32))
        return cls(nothing, jax.tree.map(jnp.zeros_like, nothing))

    def mean(self, site: Any) -> float:
        """The mean norm at a site, nan without a token."""
        norm = float(self.sums.norm[site]) + float(self.compensation.norm[site])
        tokens = float(self.sums.tokens) + float(self.compensation.tokens)
        return norm / tokens if tokens else float("nan")


def add_norms(state: TokenNorms, batch: NormSums) -> TokenNorms:
    """Add the sums of a batch; the error does not grow with the number of batches."""
    return merge_norms(state, TokenNorms(batch, jax.tree.map(jnp.zeros_like, batch)))


def merge_norms(a: TokenNorms, b: TokenNorms) -> TokenNorms:
    """The sums of both."""
    return TokenNorms(*compensated_add(a.sums, a.compensation, b.sums, b.compensation))
