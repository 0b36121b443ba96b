"""The mean norm of the activations at single tokens, the unit of steering strengths."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from atlas_jax.statistics._moments import compensated_add


class NormSums(NamedTuple):
    """Sums over tokens, of all sentences ``[]`` or of each row ``[b]``.

    Attributes:
      norm: by site, sum of the L2 norms of the activations.
      tokens: number of tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import NormSums
      >>> sums = NormSums({"mlp_act.1": jnp.array([3.0, 5.0])}, tokens=jnp.array([1.0, 2.0]))
      >>> (sums.norm["mlp_act.1"] / sums.tokens).tolist()
      [3.0, 2.5]
    """

    norm: dict[Any, Float[Array, "*b"]]
    tokens: Float[Array, "*b"]


class TokenNorms(NamedTuple):
    """Token norms of a pass, float32, with their rounding errors.

    Attributes:
      sums: the sums.
      compensation: the same tree, holding the rounding errors of float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import NormSums, TokenNorms, add_norms
      >>> norms = add_norms(TokenNorms.init(["a"]), NormSums({"a": jnp.float32(6.0)}, jnp.float32(4.0)))
      >>> norms.mean("a")
      1.5
    """

    sums: NormSums
    compensation: NormSums

    @classmethod
    def init(cls, sites: Iterable[Any]) -> "TokenNorms":
        """Start without a token."""
        nothing = NormSums({site: jnp.zeros((), jnp.float32) for site in sites}, jnp.zeros((), jnp.float32))
        return cls(nothing, jax.tree.map(jnp.zeros_like, nothing))

    def mean(self, site: Any) -> float:
        """The mean norm at a site, nan without a token."""
        norm = float(self.sums.norm[site]) + float(self.compensation.norm[site])
        tokens = float(self.sums.tokens) + float(self.compensation.tokens)
        return norm / tokens if tokens else float("nan")


def add_norms(state: TokenNorms, batch: NormSums) -> TokenNorms:
    """Add the sums of a batch; the error does not grow with the number of batches.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import NormSums, TokenNorms, add_norms
      >>> batch = NormSums({"a": jnp.float32(6.0)}, jnp.float32(4.0))
      >>> add_norms(add_norms(TokenNorms.init(["a"]), batch), batch).mean("a")
      1.5
    """
    return merge_norms(state, TokenNorms(batch, jax.tree.map(jnp.zeros_like, batch)))


def merge_norms(a: TokenNorms, b: TokenNorms) -> TokenNorms:
    """Add the sums of two passes.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import NormSums, TokenNorms, add_norms, merge_norms
      >>> one = add_norms(TokenNorms.init(["a"]), NormSums({"a": jnp.float32(6.0)}, jnp.float32(4.0)))
      >>> other = add_norms(TokenNorms.init(["a"]), NormSums({"a": jnp.float32(4.0)}, jnp.float32(1.0)))
      >>> merge_norms(one, other).mean("a")
      2.0
    """
    return TokenNorms(*compensated_add(a.sums, a.compensation, b.sums, b.compensation))
