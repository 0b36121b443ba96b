"""The polar factor by matrix products alone, in global view: for accelerators, and for matrices over many devices."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.sharding import mesh_of
from atlas_jax.statistics import has_double, on_one_device
from atlas_jax.translators._certificate import CUT, LIMITS, LIMITS_SINGLE, within_limits
from atlas_jax.translators._solution import laid_out, times

CUSHION = 0.025  # polynomials are fitted to [CUSHION * high, high] at the widest, which bounds their coefficients
REACH = 4.7e-7  # what the polynomials bring to one; of what they leave, sharpening splits at 1e-7
POWER_STEPS = 60  # of power iteration, which is then within a few percent
SHARPEN = (0.0, 2.5, -1.5)  # x -> 5/2 x^3 - 3/2 x^5 draws [0, 0.8] to 0 and [0.83, 1.1] to 1
MOST_SHARPENINGS = 20


def polar_express(m: Float[Array, "p q"]) -> tuple[Float[Array, "p q"], dict[str, Any]]:
    """The polar factor of ``m`` by odd quintic polynomials, each minimax on the interval that the last one left.

    The method of Amsel, Persson, Musco and Gower (2025), then a polynomial that brings what is left between 0 and 1
    to one of them, so that the result is a partial isometry: singular values above about ``1e-7`` times the largest
    count. Arithmetic is float64 where the devices have it, in matrix products that XLA spreads over the devices of
    ``m``; the result is sharded as ``m``. Zero rows and columns stay exactly zero.

    Args:
      m: any real matrix, on one device or with a ``NamedSharding``, float32 or float64.

    Returns:
      ``T`` float32 and the certificate of :func:`certify_rows`, with the number of steps.

    Raises:
      AtlasError: if ``m`` is on several devices without a ``NamedSharding``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.translators import polar_express
      >>> t, certificate = polar_express(jnp.array([[0.0, 2.0, 0.0], [1e-3, 0.0, 0.0]]))
      >>> t.round(4).tolist(), certificate["rank"], certificate["within_tolerance"]
      ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 2, True)
    """
    _check_sharding(m)
    dtype = _dtype(m)
    with jax.enable_x64(dtype == "float64"):
        steps = schedule(REACH)
        t, sharpenings = _factor(m, jnp.asarray(steps, dtype), m.sharding)
        steps = len(steps) + int(sharpenings)
    return t, {"solver": "polar_express", "steps": steps, **certify_rows(m, t)}


def certify_rows(m: Float[Array, "p q"], t: Float[Array, "p q"]) -> dict[str, Any]:
    """Return how well ``t`` is the polar factor of ``m``, in products as those of :func:`polar_express`.

    ``W = sym(M T^T) + tau (I - T T^T)`` is ``L L^T`` if T is right, and for any such W the nuclear norm of M over the
    range of T is at most ``(|L^-1 T T^T M|^2 + tr M T^T) / 2`` (weak duality). In the eigenbasis of W with values s,
    ``K = M T^T - T M^T`` gives the rotation ``F_ij = K_ij / (s_i + s_j)`` by which T is off, and by the inequality of
    the means ``|F| <= |L^-1 K L^-T| / 2``. L is computed on one device.

    Args:
      m: any real matrix, on one device or with a ``NamedSharding``, float32 or float64.
      t: the claimed polar factor, sharded as ``m``.

    Returns:
      precision of the evaluation; rank; orthogonality ``|Y Y - Y| / |Y|`` of ``Y = T T^T``; asymmetry of ``M T^T``;
      duality gap, relative; error, which to first order bounds the relative distance to the exact factor; remainder,
      the largest singular value of ``M - W T``, relative; within_tolerance, of all of
      them. A number is None where W is not positive definite.

    Raises:
      AtlasError: if ``m`` is on several devices without a ``NamedSharding``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.translators import certify_rows
      >>> m = jnp.array([[0.0, 2.0], [1.0, 0.0]])
      >>> [certify_rows(m, t)["within_tolerance"] for t in (m / 2, jnp.eye(2), jnp.eye(2)[::-1])]
      [False, False, True]
    """
    _check_sharding(m)
    dtype = _dtype(m)
    double = dtype == "float64"
    with jax.enable_x64(double):
        products = _products(m, t, jnp.dtype(dtype))
    with jax.enable_x64(True):
        root = _inverse_root(on_one_device(products.w))
        root = laid_out(root, mesh_of(m), dtype)
    with jax.enable_x64(double):
        evidence = _evidence(m, t, products, root)
        numbers = {name: float(value) for name, value in evidence.items()}
    rank = numbers.pop("rank")
    numbers = {name: numbers[name] if np.isfinite(numbers[name]) else None for name in LIMITS}
    known = {"precision": dtype, "rank": round(rank) if np.isfinite(rank) else None, "cut": CUT}
    return known | numbers | {"within_tolerance": within_limits(numbers, LIMITS if double else LIMITS_SINGLE)}


def _check_sharding(m: Float[Array, "p q"]) -> None:
    if len(m.sharding.device_set) > 1 and mesh_of(m) is None:
        raise AtlasError(f"a matrix on {len(m.sharding.device_set)} devices needs a NamedSharding, not {m.sharding}")


def _dtype(m: Float[Array, "p q"]) -> str:
    return "float64" if has_double(m) else "float32"


@partial(jax.jit, static_argnums=2)
def _factor(
    m: Float[Array, "p q"], steps: Float[Array, "n 3"], result: Sharding
) -> tuple[Float[Array, "p q"], Int[Array, ""]]:
    """Bring the singular values to one or, where they are negligible, to zero; and how many steps that second took."""
    x = _wide(m, steps.dtype)
    high = jnp.minimum(1.1 * _largest_singular_value(x), 1.001 * jnp.linalg.norm(x))
    x = x / jnp.where(high > 0, high, 1.0)
    step = lambda x, abc: (_polynomial(x, times(x, x.T), abc)[0], None)
    x, _ = lax.scan(step, x, steps)
    sharpen = jnp.asarray(SHARPEN, x.dtype)

    def unfinished(state: tuple[Float[Array, "p q"], Float[Array, ""], Int[Array, ""]]) -> jax.Array:
        return (state[1] > 1e-5) & (state[2] < MOST_SHARPENINGS)

    def once_more(
        state: tuple[Float[Array, "p q"], Float[Array, ""], Int[Array, ""]],
    ) -> tuple[Float[Array, "p q"], Float[Array, ""], Int[Array, ""]]:
        x, _, count = state
        gram = times(x, x.T)
        new, square = _polynomial(x, gram, sharpen)
        return new, _relative(jnp.linalg.norm(square - gram), jnp.linalg.norm(x)), count + 1

    x, _, count = lax.while_loop(unfinished, once_more, (x, jnp.asarray(jnp.inf, x.dtype), jnp.int32(0)))
    t = x.astype(jnp.float32)
    return lax.with_sharding_constraint(t if m.shape[0] <= m.shape[1] else t.T, result), count


class _Products(NamedTuple):
    """``T T^T``, ``sym(M T^T)``, ``M T^T - T M^T``, W and the largest singular value, M over its largest entry."""

    gram: Float[Array, "n n"]
    symmetric: Float[Array, "n n"]
    skew: Float[Array, "n n"]
    w: Float[Array, "n n"]
    top: Float[Array, ""]


@partial(jax.jit, static_argnums=2)
def _products(m: Float[Array, "p q"], t: Float[Array, "p q"], dtype: jnp.dtype) -> _Products:
    m, t = _wide(m, dtype), _flat(t, dtype)
    gram, inner, top = times(t, t.T), times(m, t.T), _largest_singular_value(m)
    symmetric, floor = (inner + inner.T) / 2, CUT * jnp.where(top > 0, top, 1.0)
    w = symmetric + floor * (jnp.eye(len(gram), dtype=dtype) - gram)
    return _Products(gram, symmetric, inner - inner.T, w, top)


@jax.jit
def _inverse_root(w: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """``L^-1`` of ``W = L L^T``, NaN where W is not positive definite."""
    identity = jnp.eye(len(w), dtype=jnp.float64)
    return lax.linalg.triangular_solve(
        jnp.linalg.cholesky(w.astype(identity.dtype)), identity, left_side=True, lower=True
    )


@jax.jit
def _evidence(
    m: Float[Array, "p q"], t: Float[Array, "p q"], products: _Products, root: Float[Array, "n n"]
) -> dict[str, Float[Array, ""]]:
    gram, symmetric, skew, _, top = products
    m, t = _wide(m, gram.dtype), _flat(t, gram.dtype)
    norm, size, trace = jnp.linalg.norm, jnp.linalg.norm(t), jnp.sum(m * t)
    bound = (norm(times(root, times(gram, m))) ** 2 + trace) / 2
    rotation = norm(times(times(root, skew), root.T)) / 2
    return {
        "rank": size**2,
        "orthogonality": _relative(norm(times(gram, gram) - gram), size),
        "asymmetry": _relative(norm(skew), norm(symmetric + skew / 2)),
        "gap": _relative(bound - trace, bound),
        "error": _relative(rotation, size),
        "remainder": _relative(_largest_left_out(m, symmetric, t), top),
    }


def _wide(m: Float[Array, "p q"], dtype: jnp.dtype) -> Float[Array, "n k"]:
    """The shorter side as rows, over the largest entry."""
    m = _flat(m, dtype)
    scale = jnp.max(jnp.abs(m))
    return m / jnp.where(scale > 0, scale, 1.0)


def _flat(m: Float[Array, "p q"], dtype: jnp.dtype) -> Float[Array, "n k"]:
    """The shorter side as rows."""
    return (m if m.shape[0] <= m.shape[1] else m.T).astype(dtype)


def _largest_singular_value(m: Float[Array, "p q"]) -> Float[Array, ""]:
    """The largest singular value by power iteration, from below."""
    return _power(lambda x: times(m, x), lambda y: times(m.T, y), m)


def _largest_left_out(m: Float[Array, "p q"], w: Float[Array, "p p"], t: Float[Array, "p q"]) -> Float[Array, ""]:
    """The largest singular value of ``M - W T`` for symmetric W."""
    forward = lambda x: times(m, x) - times(w, times(t, x))
    return _power(forward, lambda y: times(m.T, y) - times(t.T, times(w, y)), m)


def _power(forward, backward, like: Float[Array, "p q"]) -> Float[Array, ""]:
    """The largest singular value of a map from vectors [q] to [p] and back."""
    start = jax.random.normal(jax.random.key(0), like.shape[1:], like.dtype)

    def step(
        _: Int[Array, ""], state: tuple[Float[Array, " q"], Float[Array, ""]]
    ) -> tuple[Float[Array, " q"], Float[Array, ""]]:
        x = _relative(state[0], jnp.linalg.norm(state[0]))
        y = forward(x)
        return backward(y), jnp.linalg.norm(y)

    return lax.fori_loop(0, POWER_STEPS, step, (start, jnp.zeros((), like.dtype)))[1]


def _polynomial(
    x: Float[Array, "p q"], gram: Float[Array, "p p"], abc: Float[Array, "3"]
) -> tuple[Float[Array, "p q"], Float[Array, "p p"]]:
    """``a X + b G X + c G G X`` for ``G = X X^T``, and ``G G``."""
    square = times(gram, gram)
    return abc[0] * x + times(abc[1] * gram + abc[2] * square, x), square


def _relative(x: Float[Array, "*d"], size: Float[Array, ""]) -> Float[Array, "*d"]:
    return x / jnp.where(size > 0, size, 1.0)


@lru_cache
def schedule(smallest: float) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of ``a x + b x^3 + c x^5``, step by step, until [smallest, 1] has come to one within 1e-7.

    Example:
      >>> from atlas_jax.translators._polar_express import schedule
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
