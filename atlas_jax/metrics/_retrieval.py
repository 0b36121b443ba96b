"""Retrieval of a known feature from a similarity vector: Eqs. 10 and 11, one value a query."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@partial(jax.jit, static_argnames="ties")
def reciprocal_rank(
    similarity: Float[Array, "*q d"], target: Int[Array, "*q"], ties: Literal["favour", "mid"] = "favour"
) -> Float[Array, "*q"]:
    r"""One over the rank of the right feature, the summand of Eq. 10; its mean over queries is the MRR of Table 4.

    :math:`1 / (1 + \sum_{k \neq i} 1[s_i < s_k])`. As Eq. 10 is written only strictly larger similarities count, so
    ties favour the target and a constant similarity vector scores 1. At random the mean is H_d / d (the harmonic
    number over the width), not the 1 / d of the paper's text.

    Args:
      similarity: ``[*q, d]``.
      target: the right feature of each query, ``[*q]``.
      ties: "favour" is Eq. 10; "mid" counts half of the other tied features as larger, which gives a constant
        vector the rank (d + 1) / 2.

    Returns:
      float32 ``[*q]``; nan where a similarity is NaN or the target lies outside 0 .. d - 1.

    Example:
      >>> reciprocal_rank(jnp.array([0.1, 0.9, 0.5, 0.5]), jnp.array(2)).item()
      0.5
      >>> f"{reciprocal_rank(jnp.array([0.1, 0.9, 0.5, 0.5]), jnp.array(2), ties='mid'):.3f}"
      '0.400'
    """
    similarity = _at_least_float32(similarity)
    own = _take(similarity, target)
    tie = 0.5 if ties == "mid" else 0.0
    ahead = jnp.where(similarity > own[..., None], 1.0, jnp.where(similarity == own[..., None], tie, 0.0))
    rank = 1 - tie + jnp.sum(jnp.where(jnp.isnan(similarity), jnp.nan, ahead), axis=-1)
    return jnp.where(jnp.isnan(own), jnp.nan, 1 / rank)


@jax.jit
def predicted_probability(similarity: Float[Array, "*q d"], target: Int[Array, "*q"]) -> Float[Array, "*q"]:
    r"""Softmax probability of the right feature after z-scoring, the summand of Eq. 11; its mean is the MPP of Table 4.

    :math:`\exp(\tilde s_i) / \sum_k \exp(\tilde s_k)` with :math:`\tilde s = (s - \mu) / \sigma` over the features of
    one query and the population standard deviation. A constant vector has no z-score: every feature gets 1 / d.

    Args:
      similarity: ``[*q, d]``; adding a constant or multiplying by a positive number changes nothing.
      target: the right feature of each query, ``[*q]``.

    Returns:
      float32 ``[*q]``; nan where a similarity is not finite or the target lies outside 0 .. d - 1.

    Example:
      >>> f"{predicted_probability(jnp.array([0.0, 0.0, 0.0, 1.0]), jnp.array(3)):.3f}"
      '0.770'
    """
    similarity = _at_least_float32(similarity)
    top = jnp.max(similarity, axis=-1, keepdims=True)
    shifted = similarity - top
    mean = jnp.mean(shifted, axis=-1, keepdims=True)
    size = jnp.where(mean < 0, -mean, 1)
    deviation = size * jnp.sqrt(jnp.mean(((shifted - mean) / size) ** 2, axis=-1, keepdims=True))
    scale = 1 / jnp.where(deviation > 0, deviation, 1)
    own = (_take(similarity, target) - top[..., 0]) * scale[..., 0]
    return jnp.exp(own) / jnp.sum(jnp.exp(shifted * scale), axis=-1)


def _at_least_float32(similarity: Float[Array, "*q d"]) -> Float[Array, "*q d"]:
    return similarity.astype(jnp.promote_types(similarity.dtype, jnp.float32))


def _take(values: Float[Array, "*q d"], target: Int[Array, "*q"]) -> Float[Array, "*q"]:
    inside = (target >= 0) & (target < values.shape[-1])
    picked = jnp.take_along_axis(values, jnp.where(inside, target, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(inside, picked, jnp.nan)
