"""AUROC and average precision in JAX: one sort of integer keys, then counts.

Scores become unsigned integers of the same order, so ties, -0.0 and subnormal numbers are decided exactly on every
backend. Counts stay integers and sums run over a balanced tree, which keeps float32 results within 1e-6.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, UInt


@jax.jit
def measure(
    scores: Num[Array, "*q n"], labels: Bool[Array, "*l n"], weights: Num[Array, "*w n"] | None = None
) -> tuple[Float[Array, "*q"], Float[Array, "*q"], Int[Array, "*q"]]:
    """AUROC, AP and the number of positives of every row."""
    labels = jnp.broadcast_to(labels, scores.shape)
    if weights is None:
        payload = (labels.astype(jnp.int32), (~labels).astype(jnp.int32))
        counted = jnp.ones_like(labels)
    else:
        mass = jnp.broadcast_to(weights, scores.shape).astype(jnp.float32)
        payload = (jnp.where(labels, mass, 0), jnp.where(labels, 0, mass))
        counted = mass > 0
    key, positive, negative = lax.sort((~_ordered_key(scores), *payload), dimension=-1, num_keys=1)
    area, precision = _from_sorted(key, positive, negative)
    bad = _any_nan(scores, counted)
    count = jnp.sum(labels & counted, axis=-1, dtype=jnp.int32)
    return jnp.where(bad, jnp.nan, area), jnp.where(bad, jnp.nan, precision), count


def _from_sorted(
    key: UInt[Array, "*q n"], positive: Num[Array, "*q n"], negative: Num[Array, "*q n"]
) -> tuple[Float[Array, "*q"], Float[Array, "*q"]]:
    """AUROC and AP from keys in falling order of score and the mass each sample adds to its class."""
    edge = key[..., 1:] != key[..., :-1]
    end = jnp.concatenate([edge, jnp.ones_like(key[..., :1], dtype=bool)], axis=-1)
    hits, false = jnp.cumsum(positive, axis=-1), jnp.cumsum(negative, axis=-1)
    hits_at, false_at = _at_end_of_tie(hits, end), _at_end_of_tie(false, end)
    false_before = _at_start_of_tie(false, negative, edge)
    total, others = hits[..., -1].astype(jnp.float32), false[..., -1].astype(jnp.float32)

    share = positive.astype(jnp.float32)
    lost = (false_before + false_at).astype(jnp.float32) / (2 * jnp.where(others > 0, others, 1))[..., None]
    area = _tree_sum(share * (1 - lost)) / total
    accepted = (hits_at + false_at).astype(jnp.float32)
    kept = jnp.where(share > 0, hits_at.astype(jnp.float32) / jnp.where(accepted > 0, accepted, 1), 0)
    precision = _tree_sum(share * kept) / total
    return jnp.where(others > 0, area, jnp.nan), precision


def _at_end_of_tie(running: Num[Array, "*q n"], end: Bool[Array, "*q n"]) -> Num[Array, "*q n"]:
    return lax.cummin(jnp.where(end, running, running[..., -1:]), axis=running.ndim - 1, reverse=True)


def _at_start_of_tie(
    running: Num[Array, "*q n"], step: Num[Array, "*q n"], edge: Bool[Array, "*q n-1"]
) -> Num[Array, "*q n"]:
    first = jnp.zeros_like(running[..., :1])
    return lax.cummax(jnp.concatenate([first, jnp.where(edge, running[..., :-1], 0)], axis=-1), axis=running.ndim - 1)


def _ordered_key(scores: Num[Array, "*q n"]) -> UInt[Array, "*q n"]:
    """Unsigned integers in the order of the scores, with -0.0 equal to 0.0."""
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return scores
    if jnp.issubdtype(scores.dtype, jnp.floating):
        wide = jnp.float64 if scores.dtype == jnp.float64 else jnp.float32
        bits = lax.bitcast_convert_type(scores.astype(wide), f"uint{8 * jnp.dtype(wide).itemsize}")
        sign = _top_bit(bits)
        bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
        return jnp.where(bits >= sign, ~bits, bits | sign)
    bits = lax.bitcast_convert_type(scores, f"uint{8 * scores.dtype.itemsize}")
    return bits ^ _top_bit(bits)


def _top_bit(bits: UInt[Array, "*q n"]) -> UInt[Array, ""]:
    return jnp.asarray(1 << (8 * bits.dtype.itemsize - 1), bits.dtype)


def _any_nan(scores: Num[Array, "*q n"], counted: Bool[Array, "*q n"]) -> Bool[Array, "*q"]:
    return jnp.any((scores != scores) & counted, axis=-1)


def _tree_sum(values: Float[Array, "*q n"]) -> Float[Array, "*q"]:
    """Sum over the last axis by halving, whose float32 error grows with log n on every backend."""
    while (n := values.shape[-1]) > 1:
        half = n // 2
        folded = values[..., :half] + values[..., half : 2 * half]
        values = jnp.concatenate([folded, values[..., 2 * half :]], axis=-1)
    return values[..., 0]
