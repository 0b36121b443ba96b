"""Moments of one chunk, and the merge of two sets of moments (Chan, Golub and LeVeque's update, compensated)."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from atlas_jax.statistics._types import Cross, Moments, Side, Sums

Tree = TypeVar("Tree")


class Rows(NamedTuple):
    """Centred rows of one side of a chunk, times the roots of their weights, by view."""

    raw: Float[Array, "b d"]
    unit: Float[Array, "b d"] | None


def row_maximum(a: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The largest magnitude of each row; infinite exactly where the row is not finite.

    Finiteness is tested apart because XLA's maximum on CPUs passes over some nan.
    """
    return jnp.where(jnp.all(jnp.isfinite(a), axis=1), jnp.max(jnp.abs(a), axis=1), jnp.inf)


def unit_scale(a: Float[Array, "b d"], peak: Float[Array, " b"]) -> Float[Array, " b"]:
    """Factors that give each row an L2 norm of one, 0 for zero rows; ``peak`` keeps squares in range."""
    some = peak > jnp.finfo(jnp.float32).tiny
    scaled = a / jnp.where(some, peak, 1.0)[:, None]
    norm = jnp.sqrt(jnp.sum(scaled * scaled, axis=1))
    return jnp.where(some, 1.0 / jnp.where(some, peak * norm, 1.0), 0.0)


def product(x: Float[Array, "b m"], y: Float[Array, "b n"]) -> Float[Array, "m n"]:
    """``x^T y`` in float32 at the highest precision."""
    return jnp.dot(x.T, y, precision=lax.Precision.HIGHEST)


def chunk_side(
    a: Float[Array, "b d"], peak: Float[Array, " b"], weight: Float[Array, " b"], total: Float[Array, ""], like: Side
) -> tuple[Side, Side, Rows]:
    """Moments of one side of a chunk, their low parts, and its centred rows."""
    scales = [jnp.ones_like(weight)] if like.unit is None else [jnp.ones_like(weight), unit_scale(a, peak)]
    means = _column_sums(weight[None, :] * jnp.stack(scales), a) / total
    views = [_chunk_moments(a, weight, total, *view) for view in zip(scales, means, like, strict=False)]
    sides, lows, rows = zip(*views, *[(None, None, None)] * (2 - len(views)), strict=True)
    return Side(*sides), Side(*lows), Rows(*rows)


def chunk_cross(subject: Rows, atlas: Rows, like: Cross) -> Cross:
    """Centred cross products of a chunk."""
    return Cross(
        None if like.raw is None else product(subject.raw, atlas.raw),
        None if like.unit is None else product(subject.unit, atlas.unit),
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
    return compensated_add(a, a_low, delta, delta_low)


def _chunk_moments(
    a: Float[Array, "b d"],
    weight: Float[Array, " b"],
    total: Float[Array, ""],
    scale: Float[Array, " b"],
    mean: Float[Array, " d"],
    like: Moments,
) -> tuple[Moments, Moments, Float[Array, "b d"]]:
    """Moments of the rows times ``scale``, given their mean; the mean's low part is the rest that rounding left."""
    root = jnp.sqrt(weight)
    rows = (a * scale[:, None] - mean[None, :]) * root[:, None]
    rest = _column_sums(root[None, :], rows)[0] / total
    scatter = _column_squares(rows)
    gram = None if like.gram is None else product(rows, rows)
    low = Moments(rest, jnp.zeros_like(scatter), None if gram is None else jnp.zeros_like(gram))
    return Moments(mean, scatter, gram), low, rows


def _column_sums(weights: Float[Array, "v b"], x: Float[Array, "b d"], parts: int = 16) -> Float[Array, "v d"]:
    """``weights @ x`` in 16 partial sums each, whose rounding does not build up over the rows of a large batch."""
    part = (jnp.arange(x.shape[0]) % parts)[None, :] == jnp.arange(parts)[:, None]
    select = jnp.where(part[None, :, :], weights[:, None, :], 0.0).reshape(-1, x.shape[0])
    sums = jnp.dot(select, x, precision=lax.Precision.HIGHEST)
    return jnp.sum(sums.reshape(len(weights), parts, x.shape[1]), axis=1)


def _column_squares(x: Float[Array, "b d"], most: int = 64) -> Float[Array, " d"]:
    """Sums of squares, in as many equal parts as the rows can be dealt into."""
    parts = max(n for n in range(1, most + 1) if x.shape[0] % n == 0)
    return jnp.sum(jnp.sum((x * x).reshape(-1, parts, x.shape[1]), axis=0), axis=0)


def _absorb_side(
    a: Side, a_low: Side, b: Side, b_low: Side, share: Float[Array, ""], factor: Float[Array, ""]
) -> tuple[Side, Side, tuple[Any, Any]]:
    """The change of ``a`` by ``b``, its low part, and the difference of the means by view."""
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


def compensated_add(a: Tree, a_low: Tree, delta: Tree, delta_low: Tree) -> tuple[Tree, Tree]:
    """``a + delta`` with the rounding error of before, and the rounding error of now (Kahan)."""
    step = jax.tree.map(lambda x_low, d, d_low: d + (x_low + d_low), a_low, delta, delta_low)
    total = jax.tree.map(jnp.add, a, step)
    return total, jax.tree.map(lambda x, t, y: y - (t - x), a, total, step)
