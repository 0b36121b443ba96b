"""The iteration towards the polar factor and the evidence for its result, on rows spread over a ring of devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from atlas_jax.translators._polar_certificate import CUT
from atlas_jax.translators._ring import Ring

POWER_STEPS = 60  # of power iteration, which is then within a few percent
SHARPEN = (0.0, 2.5, -1.5)  # x -> 5/2 x^3 - 3/2 x^5 draws [0, 0.8] to 0 and [0.83, 1.1] to 1
MOST_SHARPENINGS = 20


class Evidence(NamedTuple):
    """Numbers of a certificate; :func:`certify_rows` says what they are."""

    rank: Float[Array, ""]
    orthogonality: Float[Array, ""]
    asymmetry: Float[Array, ""]
    gap: Float[Array, ""]
    error: Float[Array, ""]
    remainder: Float[Array, ""]


def iterate(
    ring: Ring, m: Float[Array, "n q"], steps: Float[Array, "k 3"]
) -> tuple[Float[Array, "n q"], Int[Array, ""]]:
    """Bring the singular values to one or, where they are negligible, to zero; and how many steps that second took."""
    peak = lax.pmax(jnp.max(jnp.abs(m)), ring.axes)
    x = m / jnp.where(peak > 0, peak, 1.0)
    high = jnp.minimum(1.1 * largest_singular_value(ring, x), 1.001 * ring.norm(x))
    x = x / jnp.where(high > 0, high, 1.0)
    step = lambda x, abc: (_polynomial(ring, x, ring.outer(x, x), abc)[0], None)
    x, _ = lax.scan(step, x, steps)
    sharpen = jnp.asarray(SHARPEN, x.dtype)

    def unfinished(state: tuple[Float[Array, "n q"], Float[Array, ""], Int[Array, ""]]) -> jax.Array:
        return (state[1] > 1e-5) & (state[2] < MOST_SHARPENINGS)

    def once_more(
        state: tuple[Float[Array, "n q"], Float[Array, ""], Int[Array, ""]],
    ) -> tuple[Float[Array, "n q"], Float[Array, ""], Int[Array, ""]]:
        x, _, count = state
        gram = ring.outer(x, x)
        new, square = _polynomial(ring, x, gram, sharpen)
        return new, _relative(ring.norm(square - gram), ring.norm(x)), count + 1

    x, _, count = lax.while_loop(unfinished, once_more, (x, jnp.asarray(jnp.inf, x.dtype), jnp.int32(0)))
    return x, count


def evidence(ring: Ring, m: Float[Array, "n q"], t: Float[Array, "n q"], block: int) -> Evidence:
    """What ``t`` satisfies as the polar factor of ``m``.

    ``W = sym(M T^T) + tau (I - T T^T)`` is ``L L^T`` if T is right, and for any such W the nuclear norm of M over the
    range of T is at most ``(|L^-1 T T^T M|^2 + tr M T^T) / 2`` (weak duality). In the eigenbasis of W with values s,
    ``K = M T^T - T M^T`` tells the rotation ``F_ij = K_ij / (s_i + s_j)`` by which T is off, and by the inequality of
    the means ``|F| <= |L^-1 K L^-T| / 2``.
    """
    peak = lax.pmax(jnp.max(jnp.abs(m)), ring.axes)
    m = m / jnp.where(peak > 0, peak, 1.0)
    gram, inner, mirrored = ring.outer(t, t), ring.outer(m, t), ring.outer(t, m)
    size, top = ring.norm(t), largest_singular_value(ring, m)
    symmetric, skew = (inner + mirrored) / 2, inner - mirrored
    floor = CUT * jnp.where(top > 0, top, 1.0)
    w = symmetric + floor * (ring.diagonal(gram.shape[0], jnp.ones_like(top)) - gram)
    trace = ring.dot(m, t)
    both = ring.whiten(w, jnp.concatenate([ring.inner(gram, m), skew], axis=1), block)
    bound = (ring.dot(both[:, : m.shape[1]], both[:, : m.shape[1]]) + trace) / 2
    rotation = ring.norm(ring.whiten(w, ring.transpose(both[:, m.shape[1] :]), block)) / 2
    return Evidence(
        rank=size**2,
        orthogonality=_relative(ring.norm(ring.inner(gram, gram) - gram), size),
        asymmetry=_relative(ring.norm(skew), ring.norm(inner)),
        gap=_relative(bound - trace, bound),
        error=_relative(rotation, size),
        remainder=_relative(_largest_left_out(ring, m, symmetric, t), top),
    )


def largest_singular_value(ring: Ring, m: Float[Array, "n q"]) -> Float[Array, ""]:
    """By power iteration, from below."""
    return _power(ring, lambda x: m @ x, lambda y: ring.sum(m.T @ y), m)


def _largest_left_out(
    ring: Ring, m: Float[Array, "n q"], w: Float[Array, "n p"], t: Float[Array, "n q"]
) -> Float[Array, ""]:
    """The largest singular value of ``M - W T`` for symmetric W."""
    forward = lambda x: m @ x - w @ ring.whole(t @ x)
    backward = lambda y: ring.sum(m.T @ y - t.T @ (w @ ring.whole(y)))
    return _power(ring, forward, backward, m)


def _power(ring: Ring, forward, backward, like: Float[Array, "n q"]) -> Float[Array, ""]:
    """The largest singular value of a map from vectors [q] to rows [n] and back."""
    start = jax.random.normal(jax.random.key(0), like.shape[1:], like.dtype)

    def step(
        _: Int[Array, ""], state: tuple[Float[Array, " q"], Float[Array, ""]]
    ) -> tuple[Float[Array, " q"], Float[Array, ""]]:
        x = state[0]
        x = _relative(x, jnp.linalg.norm(x))
        y = forward(x)
        return backward(y), jnp.sqrt(ring.sum(jnp.sum(y * y)))

    return lax.fori_loop(0, POWER_STEPS, step, (start, jnp.zeros((), like.dtype)))[1]


def _polynomial(
    ring: Ring, x: Float[Array, "n q"], gram: Float[Array, "n p"], abc: Float[Array, "3"]
) -> tuple[Float[Array, "n q"], Float[Array, "n p"]]:
    """``a X + b G X + c G G X`` for ``G = X X^T``, and ``G G``."""
    square = ring.inner(gram, gram)
    return abc[0] * x + ring.inner(abc[1] * gram + abc[2] * square, x), square


def _relative(x: Float[Array, "*d"], size: Float[Array, ""]) -> Float[Array, "*d"]:
    return x / jnp.where(size > 0, size, 1.0)
