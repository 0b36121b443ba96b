"""The polar factor by matrix products alone, in float32: for accelerators, and sharded like its input."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from atlas_jax.translators._polar import ORTHOGONAL, SYMMETRIC

SMALLEST = 1e-7  # singular values down to SMALLEST * the Frobenius norm are brought to one
CUSHION = 0.025  # polynomials are fitted to [CUSHION * high, high] at the widest, which bounds their coefficients


def polar_express(m: Float[Array, "p q"]) -> tuple[Float[Array, "p q"], dict[str, Any]]:
    """The polar factor of ``m`` by odd quintic polynomials, each minimax on the interval that the last one left.

    The method of Amsel, Persson, Musco and Gower (2025). Zero rows and columns stay zero. Singular values below
    ``SMALLEST`` times the Frobenius norm are not brought to one, and the certificate is then not accepted.

    Args:
      m: any matrix with entries of modest size (scale it first).

    Returns:
      ``T`` float32 and its certificate, evaluated in float32: rank; orthogonality ``|T T^T T - T| / |T|``; asymmetry
      of ``M T^T``. There is no duality gap, which float32 cannot resolve.

    Example:
      >>> t, certificate = polar_express(jnp.array([[0.0, 2.0, 0.0], [1e-3, 0.0, 0.0]]))
      >>> t.round(4).tolist(), certificate["accepted"]
      ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], True)
    """
    wide = m if m.shape[0] <= m.shape[1] else m.T
    t, rank, orthogonality, asymmetry = _solve(wide, jnp.asarray(schedule(SMALLEST), jnp.float32))
    accepted = float(orthogonality) <= ORTHOGONAL and float(asymmetry) <= SYMMETRIC
    return (t if wide is m else t.T), {
        "solver": "polar_express",
        "rank": round(float(rank)),
        "steps": len(schedule(SMALLEST)),
        "orthogonality": float(orthogonality),
        "asymmetry": float(asymmetry),
        "accepted": accepted,
    }


@lru_cache
def schedule(smallest: float) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of ``a x + b x^3 + c x^5``, step by step, until [smallest, 1] has come to one within 1e-7.

    Example:
      >>> len(schedule(1e-3)) < len(schedule(1e-7)) < 20
      True
    """
    low, high, steps = smallest, 1.0, []
    while high - low > 1e-7:
        steps.append(minimax(max(low, CUSHION * high), high))
        a, b, c = steps[-1]
        ends = [x * (a + x * x * (b + x * x * c)) for x in (low, high)]
        low, high = min(ends[0], 2.0 - ends[1]), max(ends[1], 1.0)
    return tuple(steps)


def minimax(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic closest to one on [low, high], by Remez exchange: ``1 - p`` is -e, e, -e, e at four points.

    On a narrow interval it is the Taylor (Newton-Schulz) polynomial, to which it tends.
    """
    if high - low < 0.1:
        return 15 / 8, -10 / 8, 3 / 8
    points = np.array([low, low + 0.3 * (high - low), low + 0.75 * (high - low), high])
    for _ in range(50):
        system = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        points[1:3] = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a])))
    return float(a), float(b), float(c)


@jax.jit
def _solve(
    m: Float[Array, "p q"], steps: Float[Array, "n 3"]
) -> tuple[Float[Array, "p q"], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    norm = jnp.linalg.norm(m)

    def step(x: Float[Array, "p q"], abc: Float[Array, "3"]) -> tuple[Float[Array, "p q"], None]:
        gram = _dot(x, x.T)
        return abc[0] * x + _dot(abc[1] * gram + abc[2] * _dot(gram, gram), x), None

    t, _ = lax.scan(step, m / jnp.where(norm > 0, 1.0001 * norm, 1.0), steps)
    size = jnp.linalg.norm(t)
    inner = _dot(m, t.T)
    floor = lambda x: jnp.where(x > 0, x, 1.0)
    orthogonality = jnp.linalg.norm(_dot(_dot(t, t.T), t) - t) / floor(size)
    return t, size**2, orthogonality, jnp.linalg.norm(inner - inner.T) / floor(jnp.linalg.norm(inner))


def _dot(x: Float[Array, "m k"], y: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)
