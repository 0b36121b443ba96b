"""Regression on devices: the normal equations by elimination, on rows spread over a mesh and never gathered."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P, Sharding
from jaxtyping import Array, Float, Int

from atlas_jax.translators._polar_certificate import acceptable
from atlas_jax.translators._polar_iteration import largest_singular_value
from atlas_jax.translators._ring import PANEL, Ring, ring_mesh, ring_of, spread_rows
from atlas_jax.translators._solution import has_double

LIMITS = {"normal_residual": 1e-6, "change": 1e-5}
LIMITS_SINGLE = {"normal_residual": 1e-4, "change": 1e-3}
CUT_SINGLE = 1e-5  # the smallest cut whose directions float32 can tell from rounding
SHIFT = 5.0  # times the floor, with which three filters of eight steps pass about half of what is at the floor
SQUARINGS = 3  # to raise to the eighth power


class Equations(NamedTuple):
    """``G X = R``, divided by the largest diagonal entry of G; dead features have the equation ``x = 0``.

    Attributes:
      gram: rows of G, with the penalty on its diagonal.
      right: rows of R.
      scale: what both were divided by.
      floor: eigenvalues of G up to this are zero.
      shift: the penalty.
      alive: how many features are not dead.
    """

    gram: Float[Array, "n p"]
    right: Float[Array, "n k"]
    scale: Float[Array, ""]
    floor: Float[Array, ""]
    shift: Float[Array, ""]
    alive: Int[Array, ""]


def regress(
    cross: Float[Array, "d_s d_c"],
    gram: Float[Array, "d_c d_c"],
    lift: Float[np.ndarray, " d_c"],
    *,
    cut: float = 0.0,
    penalty: float = 0.0,
) -> tuple[Float[Array, "d_s d_c"], dict[str, Any]]:
    """``T = M (G + v v^T + p I)^+`` by Gauss-Jordan elimination, in float64 where the devices have it.

    The rows are spread over all devices of the mesh of ``gram``, none of which ever holds a whole ``d_c x d_c`` or
    ``d_s x d_c`` matrix. A matrix that is clearly positive definite is inverted, and the answer refined once. Any other
    is inverted with a shift s added to its diagonal, and that inverse is applied eight times, each time to what is left
    of the right side. Then ``s^8 (G + s I)^-8 X`` is subtracted twice: a direction of eigenvalue e is passed by
    ``(1 - (s / (e + s))^8)^3``, in full well above the floor, hardly at all below it.

    Args:
      cross: M, on one device or with a ``NamedSharding``.
      gram: G, centred, laid out on the same devices.
      lift: v, zero for a centred regression.
      cut: eigenvalues up to ``cut`` times the largest of G are zero; at least 1e-5 where there is no float64, if any.
      penalty: p, in units of the mean diagonal entry of G over the features that are not dead.

    Returns:
      ``T`` float32, sharded as ``cross``, zero in dead columns; and solver, precision, rank, floor, the penalty as
      ``shift``, the shift that regularised, dead columns, ``normal_residual`` (``|T (G + ..) - M| / |M|``), ``change``
      (of T by the last refinement or subtraction, relative), and whether both are accepted. With
      ``"iterated_tikhonov"`` the change tells how much of T lies in directions that are neither clearly above the floor
      nor clearly below it; the rank counts those in part.

    Raises:
      AtlasError: if ``gram`` is on several devices without a ``NamedSharding``.

    Example:
      >>> t, certificate = regress(jnp.array([[2.0, 0.0]]), jnp.diag(jnp.array([4.0, 0.0])), np.zeros(2))
      >>> t.tolist(), certificate["rank"], certificate["dead_columns"], certificate["accepted"]
      ([[0.5, 0.0]], 1, 1, True)
    """
    mesh, double, width = ring_mesh(gram), has_double(gram), gram.shape[0]
    panels = -(-width // (PANEL * mesh.size))
    block = -(-width // (panels * mesh.size))
    cut = max(cut, CUT_SINGLE) if cut and not double else cut
    with jax.enable_x64(double):
        gram, right, scale, floor, shift, alive = _equations(cross, gram, lift, (cut, penalty), mesh, block)
        x, change, added, weak = _solve(gram, right, float(floor), mesh, block)
        t, residual = _finish(x, gram, right, mesh, width, cross.sharding)
        sizes = {"floor": floor * scale, "shift": shift * scale, "regularised_by": added * scale}
        sizes = {name: float(size) for name, size in sizes.items()}
    numbers = {"normal_residual": float(residual), "change": change}
    limits = LIMITS if double else LIMITS_SINGLE
    certificate = {
        "solver": "iterated_tikhonov" if added else "elimination",
        "precision": "float64" if double else "float32",
        "rank": round(int(alive) - weak) if np.isfinite(weak) else None,
        "dead_columns": width - int(alive),
        "accepted": acceptable(numbers, limits),
    }
    return t, certificate | sizes | numbers


def _solve(
    gram: Float[Array, "p p"], right: Float[Array, "p k"], floor: float, mesh: Mesh, block: int
) -> tuple[Float[Array, "p k"], float, float, float]:
    """X, its last change, what was added to the diagonal of G, and how many eigenvalues are small beside that."""
    inverse, smallest = _invert(gram, 0.0, mesh, block)
    if float(smallest) > floor:
        x, change = _apply(inverse, gram, right, 2, mesh)
        return x, float(change), 0.0, 0.0
    del inverse  # as large as G
    added = SHIFT * floor
    inverse, _ = _invert(gram, added, mesh, block)
    x, _ = _apply(inverse, gram, right, 2**SQUARINGS, mesh)
    x, change, weak = _sift(inverse, x, added, mesh)
    return x, float(change), added, float(weak)


@partial(jax.jit, static_argnums=(4, 5))
def _equations(
    cross: Float[Array, "d_s d_c"],
    gram: Float[Array, "d_c d_c"],
    lift: Float[Array, " d_c"],
    size: tuple[Float[Array, ""], Float[Array, ""]],
    mesh: Mesh,
    block: int,
) -> Equations:
    ring, rows = ring_of(mesh)
    gram = gram.astype(float)
    missing = -gram.shape[0] % (block * mesh.size)
    gram, right = (spread_rows(jnp.pad(x, ((0, missing), (0, m))), mesh) for x, m in ((gram, missing), (cross.T, 0)))
    cut, penalty = (jnp.asarray(x, gram.dtype) for x in size)
    lift = jnp.pad(lift, (0, missing)).astype(gram.dtype)
    work = lambda *parts: _scaled(ring, *parts)
    parts = (gram, right.astype(gram.dtype), lift, cut, penalty)
    out = Equations(rows, rows, P(), P(), P(), P())
    return jax.shard_map(work, mesh=mesh, in_specs=(rows, rows, P(), P(), P()), out_specs=out, check_vma=False)(*parts)


def _scaled(
    ring: Ring,
    gram: Float[Array, "n p"],
    right: Float[Array, "n k"],
    lift: Float[Array, " p"],
    cut: Float[Array, ""],
    penalty: Float[Array, ""],
) -> Equations:
    n = gram.shape[0]
    gram = (gram + ring.transpose(gram)) / 2
    scatter, floor = ring.entries(gram), cut * largest_singular_value(ring, gram)
    gram = gram + jnp.outer(lax.dynamic_slice_in_dim(lift, ring.index * n, n), lift)
    diagonal = ring.entries(gram)
    alive = diagonal > 0
    count = ring.sum(jnp.sum(alive.astype(gram.dtype)))
    total = lambda x: ring.sum(jnp.sum(jnp.where(alive, x, jnp.zeros_like(x))))
    shift = penalty * total(scatter) / jnp.maximum(count, 1)
    floor = jnp.maximum(floor, jnp.finfo(gram.dtype).eps * (total(diagonal) + shift * count))
    peak = lax.pmax(jnp.max(diagonal), ring.axes)
    peak = jnp.where(peak > 0, peak, jnp.ones_like(peak))
    gram = (gram + ring.diagonal(n, jnp.where(alive, shift, peak))) / peak
    right = jnp.where(alive, right, jnp.zeros_like(right)) / peak
    return Equations(gram, right, peak, floor / peak, shift / peak, count.astype(jnp.int32))


@partial(jax.jit, static_argnums=(2, 3))
def _invert(
    gram: Float[Array, "p p"], shift: Float[Array, ""] | float, mesh: Mesh, block: int
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """The inverse of G with the shift on its diagonal, and its smallest eigenvalue, NaN if it is not positive."""
    ring, rows = ring_of(mesh)

    def work(gram: Float[Array, "n p"], shift: Float[Array, ""]) -> tuple[Float[Array, "n p"], Float[Array, ""]]:
        inverse = ring.inverse(gram + ring.diagonal(gram.shape[0], shift), block)
        return inverse, 1 / largest_singular_value(ring, inverse)

    shift = jnp.asarray(shift, gram.dtype)
    return jax.shard_map(work, mesh=mesh, in_specs=(rows, P()), out_specs=(rows, P()), check_vma=False)(gram, shift)


@partial(jax.jit, static_argnums=(3, 4))
def _apply(
    inverse: Float[Array, "p p"], gram: Float[Array, "p p"], right: Float[Array, "p k"], steps: int, mesh: Mesh
) -> tuple[Float[Array, "p k"], Float[Array, ""]]:
    """``X <- X + V (R - G X)`` so many times from zero, and the size of the last change, relative."""
    ring, rows = ring_of(mesh)

    def work(inverse: Float[Array, "n p"], gram: Float[Array, "n p"], right: Float[Array, "n k"]) -> Any:
        def step(_: Int[Array, ""], state: tuple[Float[Array, "n k"], ...]) -> tuple[Float[Array, "n k"], ...]:
            x, change = state[0], ring.inner(inverse, right - ring.inner(gram, state[0]))
            return x + change, change

        x, change = lax.fori_loop(0, steps, step, (jnp.zeros_like(right), right))
        return x, _relative(ring, change, x)

    solve = jax.shard_map(work, mesh=mesh, in_specs=(rows, rows, rows), out_specs=(rows, P()), check_vma=False)
    return solve(inverse, gram, right)


@partial(jax.jit, static_argnums=3)
def _sift(
    inverse: Float[Array, "p p"], x: Float[Array, "p k"], shift: Float[Array, ""] | float, mesh: Mesh
) -> tuple[Float[Array, "p k"], Float[Array, ""], Float[Array, ""]]:
    """X less ``Q X``, twice, for ``Q = (s V)^8``; how much the second time, relative; and the trace of Q."""
    ring, rows = ring_of(mesh)

    def work(inverse: Float[Array, "n p"], x: Float[Array, "n k"]) -> Any:
        q = jnp.asarray(shift, x.dtype) * inverse
        for _ in range(SQUARINGS):
            q = ring.inner(q, q)
        x = x - ring.inner(q, x)
        change = ring.inner(q, x)
        return x - change, _relative(ring, change, x), ring.sum(jnp.sum(ring.entries(q)))

    sift = jax.shard_map(work, mesh=mesh, in_specs=(rows, rows), out_specs=(rows, P(), P()), check_vma=False)
    return sift(inverse, x)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _finish(
    x: Float[Array, "p k"], gram: Float[Array, "p p"], right: Float[Array, "p k"], mesh: Mesh, width: int, to: Sharding
) -> tuple[Float[Array, "k q"], Float[Array, ""]]:
    """``X^T`` laid out as the statistics are, and ``|R - G X| / |R|``."""
    ring, rows = ring_of(mesh)
    left = lambda x, gram, right: _relative(ring, right - ring.inner(gram, x), right)
    residual = jax.shard_map(left, mesh=mesh, in_specs=(rows, rows, rows), out_specs=P(), check_vma=False)
    return lax.with_sharding_constraint(x.astype(jnp.float32)[:width].T, to), residual(x, gram, right)


def _relative(ring: Ring, a: Float[Array, "n k"], b: Float[Array, "n k"]) -> Float[Array, ""]:
    size = ring.norm(b)
    return ring.norm(a) / jnp.where(size == 0, jnp.ones_like(size), size)
