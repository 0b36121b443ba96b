"""Moments of one chunk, and the merge of two sets of moments (Chan, Golub and LeVeque's update, compensated)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from atlas_jax.types_statistics import Cross, Moments, Side, Sums


class Rows(NamedTuple):
    """Centred rows of one side of a chunk, by view."""

    raw: Float[Array, "b d"]
    unit: Float[Array, "b d"] | None


def row_peak(a: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The largest magnitude of each row; not finite exactly where the row is not.

    Asked apart, for XLA's maximum on CPUs passes over some nan.
    """
    return jnp.where(jnp.all(jnp.isfinite(a), axis=1), jnp.max(jnp.abs(a), axis=1), jnp.inf)


def unit_rows(a: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Each row divided by its L2 norm; zero rows stay zero. Scaled first, so nothing overflows or underflows."""
    peak = row_peak(a)[:, None]
    scaled = a / jnp.where(peak > 0, peak, 1.0)
    norm = jnp.sqrt(jnp.sum(scaled * scaled, axis=1, keepdims=True))
    return scaled / jnp.where(norm > 0, norm, 1.0)


def product(x: Float[Array, "b m"], y: Float[Array, "b n"]) -> Float[Array, "m n"]:
    """``x^T y`` in float32 at the highest precision."""
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def chunk_side(
    a: Float[Array, "b d"], weight: Float[Array, " b"], total: Float[Array, ""], like: Side
) -> tuple[Side, Side, Rows]:
    """Moments of one side of a chunk, their low parts, and its centred rows."""
    raw, raw_low, raw_rows = _chunk_moments(a, weight, total, like.raw)
    if like.unit is None:
        return Side(raw, None), Side(raw_low, None), Rows(raw_rows, None)
    unit, unit_low, rows = _chunk_moments(unit_rows(a), weight, total, like.unit)
    return Side(raw, unit), Side(raw_low, unit_low), Rows(raw_rows, rows)


def chunk_cross(subject: Rows, atlas: Rows, weight: Float[Array, " b"], like: Cross) -> Cross:
    """Centred cross products of a chunk."""
    weigh = lambda x: x * weight[:, None]
    return Cross(
        None if like.raw is None else product(subject.raw, weigh(atlas.raw)),
        None if like.unit is None else product(subject.unit, weigh(atlas.unit)),
    )


def absorb(a: Sums, a_low: Sums, b: Sums, b_low: Sums) -> tuple[Sums, Sums]:
    """The statistics of both sets of rows, and their low parts.

    With ``d`` the difference of the means, the centred sums add up to ``S_a + S_b + (n m / (n + m)) d d^T``.
    """
    n, m = a.weight, b.weight
    whole = jnp.where(n + m > 0, n + m, 1.0)
    share, factor = m / whole, n * (m / whole)
    atlas, atlas_low, shift_c = _absorb_side(a.atlas, a_low.atlas, b.atlas, b_low.atlas, share, factor)
    delta = Sums(m, atlas, {}, {})
    delta_low = Sums(b_low.weight, atlas_low, {}, {})
    for site in a.subjects:
        side, side_low, shift_s = _absorb_side(
            a.subjects[site], a_low.subjects[site], b.subjects[site], b_low.subjects[site], share, factor
        )
        delta.subjects[site], delta_low.subjects[site] = side, side_low
        delta.crosses[site] = Cross(
            *(
                None if cross is None else cross + _outer(d_s, d_c, factor)
                for cross, d_s, d_c in zip(b.crosses[site], shift_s, shift_c, strict=True)
            )
        )
        delta_low.crosses[site] = b_low.crosses[site]
    return _add(a, a_low, delta, delta_low)


def _chunk_moments(
    a: Float[Array, "b d"], weight: Float[Array, " b"], total: Float[Array, ""], like: Moments
) -> tuple[Moments, Moments, Float[Array, "b d"]]:
    mean = _column_sums(weight, a) / total
    rest = _column_sums(weight, a - mean[None, :]) / total
    rows = (a - mean[None, :]) - rest[None, :]
    scatter = _column_sums(weight, rows * rows)
    gram = None if like.gram is None else product(rows, rows * weight[:, None])
    zero = jnp.zeros_like(scatter)
    low = Moments(rest, zero, None if gram is None else jnp.zeros_like(gram))
    return Moments(mean, scatter, gram), low, rows


def _column_sums(weight: Float[Array, " b"], x: Float[Array, "b d"], parts: int = 32) -> Float[Array, " d"]:
    """``weight @ x`` in 32 partial sums, whose rounding does not build up over the rows of a large batch."""
    part = jnp.arange(x.shape[0]) % parts
    select = jnp.where(part[None, :] == jnp.arange(parts)[:, None], weight[None, :], 0.0)
    return jnp.sum(jnp.dot(select, x, precision=lax.Precision.HIGHEST), axis=0)


def _absorb_side(
    a: Side, a_low: Side, b: Side, b_low: Side, share: Float[Array, ""], factor: Float[Array, ""]
) -> tuple[Side, Side, tuple[Any, Any]]:
    """What ``b`` adds to ``a``, its low part, and the difference of the means by view."""
    parts = [
        (None, None, None) if x is None else _absorb_moments(x, x_low, y, y_low, share, factor)
        for x, x_low, y, y_low in zip(a, a_low, b, b_low, strict=True)
    ]
    delta, low, shift = zip(*parts, strict=True)
    return Side(*delta), Side(*low), shift


def _absorb_moments(
    a: Moments, a_low: Moments, b: Moments, b_low: Moments, share: Float[Array, ""], factor: Float[Array, ""]
) -> tuple[Moments, Moments, Float[Array, " d"]]:
    high, rest = _two_sum(b.mean, -a.mean)
    rest = rest + (b_low.mean - a_low.mean)
    shift = high + rest
    scatter = b.scatter + factor * (shift * shift)
    gram = None if b.gram is None else b.gram + _outer(shift, shift, factor)
    return Moments(high * share, scatter, gram), Moments(rest * share, b_low.scatter, b_low.gram), shift


def _outer(x: Float[Array, " m"], y: Float[Array, " n"], factor: Float[Array, ""]) -> Float[Array, "m n"]:
    return (factor * x)[:, None] * y[None, :]


def _two_sum(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """``x + y`` rounded, and exactly what the rounding left out (Knuth)."""
    total = x + y
    y_part = total - x
    return total, (x - (total - y_part)) + (y - y_part)


def _add(a: Sums, a_low: Sums, delta: Sums, delta_low: Sums) -> tuple[Sums, Sums]:
    """``a + delta`` with what was rounded away before, and what is rounded away now (Kahan)."""
    step = jax.tree.map(lambda x_low, d, d_low: d + (x_low + d_low), a_low, delta, delta_low)
    total = jax.tree.map(jnp.add, a, step)
    return total, jax.tree.map(lambda x, t, y: y - (t - x), a, total, step)
