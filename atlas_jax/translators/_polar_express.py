"""The polar factor by matrix products alone: for accelerators, and for matrices spread over many devices."""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P, Sharding
from jaxtyping import Array, Float, Int

from atlas_jax.translators._polar_certificate import CUT, LIMITS, LIMITS_SINGLE, acceptable
from atlas_jax.translators._polar_iteration import Evidence, evidence, iterate
from atlas_jax.translators._ring import PANEL, ring_mesh, ring_of, spread_rows
from atlas_jax.translators._solution import has_double

CUSHION = 0.025  # polynomials are fitted to [CUSHION * high, high] at the widest, which bounds their coefficients
REACH = 4.7e-7  # what the polynomials bring to one; of what they leave, sharpening splits at 1e-7


def polar_express(m: Float[Array, "p q"]) -> tuple[Float[Array, "p q"], dict[str, Any]]:
    """The polar factor of ``m`` by odd quintic polynomials, each minimax on the interval that the last one left.

    The method of Amsel, Persson, Musco and Gower (2025), then a polynomial that brings what is left between 0 and 1
    to one of them, so that the result is a partial isometry: singular values above about ``1e-7`` times the largest
    count. Arithmetic is float64 where the devices have it. The rows are spread over all devices of the mesh of ``m``,
    none of which ever holds a whole ``p x q`` or ``p x p`` matrix; the result is sharded as ``m``. Zero rows and
    columns stay exactly zero.

    Args:
      m: any real matrix, on one device or with a ``NamedSharding``, float32 or float64.

    Returns:
      ``T`` float32 and what :func:`certify_rows` says of it, with the number of steps.

    Raises:
      AtlasError: if ``m`` is on several devices without a ``NamedSharding``.

    Example:
      >>> t, certificate = polar_express(jnp.array([[0.0, 2.0, 0.0], [1e-3, 0.0, 0.0]]))
      >>> t.round(4).tolist(), certificate["rank"], certificate["accepted"]
      ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 2, True)
    """
    mesh, double = ring_mesh(m), has_double(m)
    with jax.enable_x64(double):
        steps = schedule(REACH)
        t, sharpenings = _factor(m, jnp.asarray(steps, jnp.float64 if double else jnp.float32), mesh, m.sharding)
        steps = len(steps) + int(sharpenings)
    return t, {"solver": "polar_express", "steps": steps, **certify_rows(m, t)}


def certify_rows(m: Float[Array, "p q"], t: Float[Array, "p q"]) -> dict[str, Any]:
    """What ``t`` satisfies as the polar factor of ``m``, spread over the devices as :func:`polar_express` is.

    Args:
      m: any real matrix, on one device or with a ``NamedSharding``, float32 or float64.
      t: what claims to be its polar factor, sharded as ``m``.

    Returns:
      precision of the evaluation; rank; orthogonality ``|Y Y - Y| / |Y|`` of ``Y = T T^T``; asymmetry of ``M T^T``;
      duality gap by ``W = sym(M T^T) = L L^T``, relative; error ``|L^-1 (M T^T - T M^T) L^-T| / (2 |T|)``, which to
      first order bounds the relative distance to the exact factor; remainder, the largest singular value of
      ``M - W T``, relative; accepted. A number is None where W is not positive definite.

    Example:
      >>> m = jnp.array([[0.0, 2.0], [1.0, 0.0]])
      >>> [certify_rows(m, t)["accepted"] for t in (m / 2, jnp.eye(2), jnp.eye(2)[::-1])]
      [False, False, True]
    """
    mesh, double = ring_mesh(m), has_double(m)
    with jax.enable_x64(double):
        found = Evidence(*map(float, _weigh(m, t, mesh, double)))
    numbers = {name: value if np.isfinite(value := getattr(found, name)) else None for name in LIMITS}
    rank = round(found.rank) if np.isfinite(found.rank) else None
    limits = LIMITS if double else LIMITS_SINGLE
    known = {"precision": "float64" if double else "float32", "rank": rank, "cut": CUT}
    return known | numbers | {"accepted": acceptable(numbers, limits)}


@partial(jax.jit, static_argnums=(2, 3))
def _factor(
    m: Float[Array, "p q"], steps: Float[Array, "n 3"], mesh: Mesh, result: Sharding
) -> tuple[Float[Array, "p q"], Int[Array, ""]]:
    ring, rows = ring_of(mesh)
    x = _spread(m, mesh, 1).astype(steps.dtype)
    solve = lambda x: iterate(ring, x, steps)
    t, count = jax.shard_map(solve, mesh=mesh, in_specs=rows, out_specs=(rows, P()), check_vma=False)(x)
    t = t[: min(m.shape)].astype(jnp.float32)
    return lax.with_sharding_constraint(t if m.shape[0] <= m.shape[1] else t.T, result), count


@partial(jax.jit, static_argnums=(2, 3))
def _weigh(m: Float[Array, "p q"], t: Float[Array, "p q"], mesh: Mesh, double: bool) -> Evidence:
    ring, rows = ring_of(mesh)
    block = min(PANEL, -(-min(m.shape) // mesh.size))
    m, t = (_spread(x, mesh, block).astype(jnp.float64 if double else jnp.float32) for x in (m, t))
    weigh = lambda m, t: evidence(ring, m, t, block)
    return jax.shard_map(weigh, mesh=mesh, in_specs=(rows, rows), out_specs=P(), check_vma=False)(m, t)


def _spread(m: Float[Array, "p q"], mesh: Mesh, block: int) -> Float[Array, "n k"]:
    """The shorter side as rows, over all devices, filled up with zero rows to whole blocks on each."""
    wide = m if m.shape[0] <= m.shape[1] else m.T
    filled = jnp.pad(wide, ((0, -wide.shape[0] % (block * mesh.size)), (0, 0)))
    return spread_rows(filled, mesh)


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
