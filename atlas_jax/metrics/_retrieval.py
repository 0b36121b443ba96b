"""Retrieval of a known feature from a similarity vector: Eqs. 10 and 11, one value a query."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.checks import as_numbers, known, refuse
from atlas_jax.errors import AtlasError

AnyArray = Array | np.ndarray


def reciprocal_rank(
    similarity: Float[AnyArray, "*q d"] | Sequence,
    target: Int[AnyArray, "*q"] | Sequence | int,
    ties: Literal["favour", "mid"] = "favour",
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
      float32 ``[*q]``; inside ``jit`` nan where a similarity is NaN or the target lies outside 0 .. d - 1.

    Raises:
      AtlasError: for a similarity that is NaN, a target that is no feature, shapes that do not fit, or an unknown rule
        for ties.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.metrics import reciprocal_rank
      >>> reciprocal_rank(jnp.array([0.1, 0.9, 0.5, 0.5]), jnp.array(2)).item()
      0.5
      >>> f"{reciprocal_rank(jnp.array([0.1, 0.9, 0.5, 0.5]), jnp.array(2), ties='mid'):.3f}"
      '0.400'
    """
    if ties not in ("favour", "mid"):
        raise AtlasError(f"unknown rule for ties '{ties}'; use favour or mid")
    similarity, target = _checked(similarity, target)
    return _without_nan(_reciprocal_rank(similarity, target, ties), similarity)


@partial(jax.jit, static_argnames="ties")
def _reciprocal_rank(similarity: Float[Array, "*q d"], target: Int[Array, "*q"], ties: str) -> Float[Array, "*q"]:
    own = _take(similarity, target)
    tie = 0.5 if ties == "mid" else 0.0
    ahead = jnp.where(similarity > own[..., None], 1.0, jnp.where(similarity == own[..., None], tie, 0.0))
    rank = 1 - tie + jnp.sum(jnp.where(jnp.isnan(similarity), jnp.nan, ahead), axis=-1)
    return jnp.where(jnp.isnan(own), jnp.nan, 1 / rank)


def predicted_probability(
    similarity: Float[AnyArray, "*q d"] | Sequence, target: Int[AnyArray, "*q"] | Sequence | int
) -> Float[Array, "*q"]:
    r"""Softmax probability of the right feature after z-scoring, the summand of Eq. 11; its mean is the MPP of Table 4.

    :math:`\exp(\tilde s_i) / \sum_k \exp(\tilde s_k)` with :math:`\tilde s = (s - \mu) / \sigma` over the features of
    one query and the population standard deviation. A constant vector has no z-score: every feature gets 1 / d.

    Args:
      similarity: ``[*q, d]``; adding a constant or multiplying by a positive number changes nothing.
      target: the right feature of each query, ``[*q]``.

    Returns:
      float32 ``[*q]``; inside ``jit`` nan where a similarity is not finite or the target lies outside 0 .. d - 1.

    Raises:
      AtlasError: for a similarity that is not finite, a target that is no feature, or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.metrics import predicted_probability
      >>> f"{predicted_probability(jnp.array([0.0, 0.0, 0.0, 1.0]), jnp.array(3)):.3f}"
      '0.770'
    """
    similarity, target = _checked(similarity, target)
    return _without_nan(_predicted_probability(similarity, target), similarity)


@jax.jit
def _predicted_probability(similarity: Float[Array, "*q d"], target: Int[Array, "*q"]) -> Float[Array, "*q"]:
    top = jnp.max(similarity, axis=-1, keepdims=True)
    shifted = similarity - top
    mean = jnp.mean(shifted, axis=-1, keepdims=True)
    size = jnp.where(mean < 0, -mean, 1)
    deviation = size * jnp.sqrt(jnp.mean(((shifted - mean) / size) ** 2, axis=-1, keepdims=True))
    scale = 1 / jnp.where(deviation > 0, deviation, 1)
    own = (_take(similarity, target) - top[..., 0]) * scale[..., 0]
    return jnp.exp(own) / jnp.sum(jnp.exp(shifted * scale), axis=-1)


def _checked(similarity: Any, target: Any) -> tuple[Float[Array, "*q d"], Int[Array, "*q"]]:
    """Return both as arrays whose shapes fit, similarities at least float32."""
    similarity, target = as_numbers(similarity, "the similarity"), as_numbers(target, "the target")
    if similarity.ndim == 0 or target.shape != similarity.shape[:-1]:
        raise AtlasError(f"targets of shape {target.shape} do not fit similarities of shape {similarity.shape}")
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise AtlasError(f"targets are feature ids, whole numbers, not {target.dtype}")
    if known(target):
        d = similarity.shape[-1]
        refuse((target < 0) | (target >= d), target, "the target", f"features from 0 to {d - 1}")
    similarity = jnp.asarray(similarity)
    floating = jnp.issubdtype(similarity.dtype, jnp.floating)
    wide = jnp.promote_types(similarity.dtype, jnp.float32) if floating else jnp.float32
    return similarity.astype(wide), jnp.asarray(target)


def _without_nan(scores: Float[Array, "*q"], similarity: Float[Array, "*q d"]) -> Float[Array, "*q"]:
    """The scores; outside of ``jit`` nan, which only similarities can cause, is refused."""
    if known(scores) and known(similarity) and bool(jnp.isnan(scores).any()):
        refuse(~jnp.isfinite(similarity), similarity, "the similarity", "finite numbers")
    return scores


def _take(values: Float[Array, "*q d"], target: Int[Array, "*q"]) -> Float[Array, "*q"]:
    inside = (target >= 0) & (target < values.shape[-1])
    picked = jnp.take_along_axis(values, jnp.where(inside, target, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(inside, picked, jnp.nan)
