"""Minimising Eq. 2 over matrices with orthonormal rows, by Newton's method on rows spread over a ring of devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P, Sharding
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from atlas_jax.mesh import everywhere
from atlas_jax.translators._eigen_rows import GramEigen, eigen, gram_eigen
from atlas_jax.translators._ring import Ring, ring_mesh, ring_of, spread_rows
from atlas_jax.translators._solution import has_double

SPLITTINGS = 30  # towards a start from which few Newton steps are left
MOST_INNER = 100
FLOOR = 0.1  # of the typical curvature: what a preconditioner divides by at least
ROUNDING = 100.0  # times the precision: what the gradient can be brought to


class Problem(NamedTuple):
    """``|A_s - A_c T^T|^2 = |A_s|^2 + 2 peak (tr(T D T^T) / 2 - tr(T M^T))``, in the eigenbasis of ``A_c^T A_c``.

    Attributes:
      m: rows of ``M = A_s^T A_c``, turned and over ``peak``; zero for dead atlas features.
      alive: which of them are not zero.
      atlas: the eigenbasis.
    """

    m: Float[Array, "n q"]
    alive: Bool[Array, "n 1"]
    atlas: GramEigen

    @classmethod
    def layout(cls, mesh: Mesh) -> "Problem":
        """How one lies on a mesh, for ``shard_map``."""
        rows = ring_of(mesh)[1]
        return cls(rows, rows, GramEigen.layout(mesh))


class Facts(NamedTuple):
    """What a Newton step found: of T before it, and of the step."""

    stationarity: Float[Array, ""]  # the gradient on the manifold, relative to that in all directions
    excess: Float[Array, ""]  # of the largest multiplier over the smallest eigenvalue
    model: Float[Array, ""]  # the change of the loss that was expected
    change: Float[Array, ""]  # and that there was
    edge: Bool[Array, ""]  # whether the radius stopped the step
    inner: Int[Array, ""]  # products with the Hessian


class _Search(NamedTuple):
    """Truncated conjugate gradients: the step so far, and lengths in the metric of the preconditioner."""

    x: Float[Array, "n q"]
    hx: Float[Array, "n q"]
    residual: Float[Array, "n q"]
    direction: Float[Array, "n q"]
    rz: Float[Array, ""]
    xx: Float[Array, ""]
    xd: Float[Array, ""]
    dd: Float[Array, ""]
    count: Int[Array, ""]
    edge: Bool[Array, ""]


def living(
    cross: Float[Array, "d_s d_c"], gram: Float[Array, "d_c d_c"], lift: Float[np.ndarray, " d_c"]
) -> tuple[int, int]:
    """How many rows of the cross product, and of ``gram + lift lift^T``, are not zero.

    Example:
      >>> living(jnp.array([[0.0, 1.0]]), jnp.diag(jnp.array([0.0, 1.0])), np.zeros(2))
      (1, 1)
    """
    mesh = ring_mesh(gram)
    live = lambda m, g, v: (jnp.any(m != 0, axis=1), (jnp.diagonal(g) != 0) | (v != 0))
    count = lambda *parts: everywhere(tuple(map(jnp.sum, live(*parts))), mesh)
    with jax.enable_x64(has_double(gram)):
        rows, columns = jax.jit(count)(cross, gram, lift)
    return int(rows), int(columns)


def minimise(
    cross: Float[Array, "d_s d_c"],
    gram: Float[Array, "d_c d_c"],
    lift: Float[np.ndarray, " d_c"],
    *,
    tolerance: float,
    max_steps: int,
) -> tuple[Float[Array, "d_s d_c"], dict[str, Any]]:
    """The T of orthonormal rows that minimises ``tr(T (G + v v^T) T^T) / 2 - tr(T M^T)``, from a good start.

    In the eigenbasis of the Gram matrix the loss is cheap and the Hessian, ``X -> X D - S X`` on tangents with the
    multiplier ``S = sym((T D - M) T^T)``, is diagonal but for the projection once S is diagonal too: that is the
    preconditioner of truncated conjugate gradients in a trust region. The start is the better of the polar factor and
    what operator splitting makes of regularised least squares. The rows are spread over all devices of the mesh of
    ``gram``; arithmetic is float64 where the devices have it.

    At a stationary point ``f(T') - f(T) = tr(X D X^T - X^T S X) / 2`` for ``X = T' - T``, so it is a global minimum if
    no multiplier exceeds the smallest eigenvalue, and otherwise at most ``2 d_s excess`` above it.

    Args:
      cross: M, on one device or with a ``NamedSharding``.
      gram: G, centred, laid out on the same devices.
      lift: v, zero for centred rows.
      tolerance: stop when the gradient on the manifold is this small, relative to that in all directions.
      max_steps: Newton steps at most.

    Returns:
      ``T`` float32, sharded as ``cross``, zero in dead rows and columns; and solver, precision, rank, steps, products
      with the Hessian, stationarity, whether it converged, orthogonality, the gap to the global minimum at most,
      relative to ``2 tr(T M^T)``, the change of the loss from the polar factor, dead rows and columns, and whether all
      of this is accepted.

    Raises:
      AtlasError: if ``gram`` is on several devices without a ``NamedSharding``.

    Example:
      >>> t, certificate = minimise(jnp.array([[0.0, 2.0]]), jnp.eye(2), np.zeros(2), tolerance=1e-6, max_steps=9)
      >>> abs(t).round(3).tolist(), certificate["accepted"]
      ([[0.0, 1.0]], True)
    """
    mesh, double = ring_mesh(gram), has_double(gram)
    with jax.enable_x64(double):
        problem = _problem(cross, gram, lift, mesh)
        eps = float(jnp.finfo(problem.m.dtype).eps)
        tolerance = max(tolerance, ROUNDING * eps)
        t, polar_value, trace = _start(problem, cross.shape, mesh)
        limit = radius = float(trace) ** 0.5
        inner = 0
        for steps in range(max_steps + 1):
            new, facts = _step(problem, t, radius, tolerance, mesh)
            facts = Facts(*(x.item() for x in facts))
            if facts.stationarity <= tolerance or steps == max_steps or radius < eps * limit:
                break
            inner += facts.inner
            ratio = facts.change / facts.model if facts.model < 0 else -1.0
            t = new if ratio > 0.1 and facts.change < 0 else t
            radius *= 0.25 if ratio < 0.25 else 2.0 if ratio > 0.75 and facts.edge else 1.0
        matrix, value, trace, orthogonality = _finish(problem, t, mesh, cross.shape, cross.sharding)
        peak = float(problem.atlas.peak)
    rows, columns = living(cross, gram, lift)
    gap = 2 * rows * max(facts.excess, 0.0) / max(float(trace), eps)
    certificate = {
        "solver": "stiefel_newton",
        "precision": "float64" if double else "float32",
        "rank": rows,
        "steps": steps,
        "products": inner,
        "stationarity": facts.stationarity,
        "converged": facts.stationarity <= tolerance,
        "orthogonality": float(orthogonality),
        "gap": gap,
        "loss_change": 2 * peak * (float(value) - float(polar_value)),
        "dead_rows": cross.shape[0] - rows,
        "dead_columns": cross.shape[1] - columns,
    }
    return matrix, certificate | {"accepted": certificate["converged"] and certificate["orthogonality"] <= 1e-5}


@partial(jax.jit, static_argnums=3)
def _problem(
    cross: Float[Array, "d_s d_c"], gram: Float[Array, "d_c d_c"], lift: Float[Array, " d_c"], mesh: Mesh
) -> Problem:
    ring, rows = ring_of(mesh)
    missing = [-n % (2 * mesh.size) for n in cross.shape]
    spread = lambda x, *pad: spread_rows(jnp.pad(x.astype(float), [(0, n) for n in pad]), mesh)
    cross, gram, lift = spread(cross, *missing), spread(gram, missing[1], missing[1]), jnp.pad(lift, (0, missing[1]))

    def work(m: Float[Array, "n q"], gram: Float[Array, "k q"], lift: Float[Array, " q"]) -> Problem:
        atlas = gram_eigen(ring, gram, lift)
        turned = jnp.where(atlas.free, ring.outer(m / atlas.peak, atlas.vectors), 0.0)
        return Problem(turned, jnp.any(m != 0, axis=1, keepdims=True), atlas)

    solve = jax.shard_map(work, mesh=mesh, in_specs=(rows, rows, P()), out_specs=Problem.layout(mesh), check_vma=False)
    return solve(cross, gram, lift.astype(float))


@partial(jax.jit, static_argnums=(1, 2))
def _start(
    problem: Problem, shape: tuple[int, int], mesh: Mesh
) -> tuple[Float[Array, "n q"], Float[Array, ""], Float[Array, ""]]:
    """T to begin with, the loss of the polar factor, and ``tr(T M^T)`` of the latter.

    Splitting alternates between the minimiser of the loss and of a distance to orthonormal rows, and orthonormal rows.
    A little noise, the same on any mesh, makes these independent whatever rank M has.
    """
    ring, rows = ring_of(mesh)
    noise = jax.random.normal(jax.random.key(0), shape, problem.m.dtype)
    noise = jnp.pad(noise, [(0, n - k) for n, k in zip(problem.m.shape, shape, strict=True)])

    def work(
        problem: Problem, noise: Float[Array, "n q"]
    ) -> tuple[Float[Array, "n q"], Float[Array, ""], Float[Array, ""]]:
        m, d, free = problem.m, problem.atlas.values, problem.atlas.free
        polar = orthonormal(ring, m, problem.alive)
        count = ring.sum(jnp.sum(problem.alive.astype(m.dtype)))
        weight = ring.norm(polar * d - m) / jnp.sqrt(jnp.maximum(count, 1.0))
        weight = jnp.where(weight > 0, weight, 1.0)
        mean = jnp.sum(d) / jnp.maximum(jnp.sum(free.astype(d.dtype)), 1.0)
        first = m / jnp.where(d + mean > 0, d + 0.01 * mean, 1.0)
        noise = jnp.where(free & problem.alive, ring.outer(noise, problem.atlas.vectors), 0.0)
        first = first + noise * (1e-3 * ring.norm(first) / ring.norm(noise))

        def split(
            _: Int[Array, ""], state: tuple[Float[Array, "n q"], Float[Array, "n q"]]
        ) -> tuple[Float[Array, "n q"], Float[Array, "n q"]]:
            z, u = state
            t = (m + weight * (z - u)) / (d + weight)
            z = orthonormal(ring, t + u, problem.alive)
            return z, u + t - z

        z, _ = lax.fori_loop(0, SPLITTINGS, split, (orthonormal(ring, first, problem.alive), jnp.zeros_like(m)))
        value = _loss(ring, problem, polar)
        whole_rank = ring.dot(polar, polar) > count - 0.5
        better = whole_rank & (value < _loss(ring, problem, z))
        return jnp.where(better, polar, z), value, ring.dot(polar, m)

    solve = jax.shard_map(
        work, mesh=mesh, in_specs=(Problem.layout(mesh), rows), out_specs=(rows, P(), P()), check_vma=False
    )
    return solve(problem, spread_rows(noise, mesh))


@partial(jax.jit, static_argnums=4)
def _step(
    problem: Problem, t: Float[Array, "n q"], radius: Float[ArrayLike, ""], tolerance: Float[ArrayLike, ""], mesh: Mesh
) -> tuple[Float[Array, "n q"], Facts]:
    ring, rows = ring_of(mesh)
    laid_out, facts = (Problem.layout(mesh), rows, P(), P()), Facts(*[P()] * len(Facts._fields))
    work = partial(_newton, ring)
    solve = jax.shard_map(work, mesh=mesh, in_specs=laid_out, out_specs=(rows, facts), check_vma=False)
    return solve(problem, t, jnp.asarray(radius, t.dtype), jnp.asarray(tolerance, t.dtype))


def _newton(
    ring: Ring, problem: Problem, t: Float[Array, "n q"], radius: Float[Array, ""], tolerance: Float[Array, ""]
) -> tuple[Float[Array, "n q"], Facts]:
    """One step in the trust region, and T moved by it and made orthonormal again."""
    d, free = problem.atlas.values, problem.atlas.free
    slope = t * d - problem.m
    found = eigen(ring, _symmetric(ring, ring.outer(slope, t)))
    s, turn = found.values[:, None], found.vectors
    at, slope = ring.inner(turn, t), ring.inner(turn, slope)
    tangent = lambda x: x - ring.inner(_symmetric(ring, ring.outer(x, at)), at)
    multipliers = ring.whole(found.values)
    size = jnp.abs(multipliers)
    typical = _median(d, free) + _median(size, size > jnp.finfo(d.dtype).eps * jnp.max(size))
    curvature = jnp.maximum(jnp.abs(d - s), FLOOR * typical)
    gradient = tangent(slope)
    steep, whole = ring.norm(gradient), ring.norm(slope)
    stationarity = steep / jnp.where(whole > 0, whole, 1.0)
    goal = jnp.maximum(steep * jnp.minimum(0.1, stationarity), tolerance * whole / 2)
    x, hx, edge, inner = _search(
        ring,
        gradient,
        lambda x: tangent(x * d - s * x),
        lambda x: tangent(x / curvature),
        radius,
        goal,
    )
    model = ring.dot(gradient, x) + ring.dot(x, hx) / 2
    new = orthonormal(ring, t + ring.inner(ring.transpose(turn), x), problem.alive)
    moved = ring.inner(turn, new - t)  # the change is exact between orthonormal rows; a difference of losses rounds
    change = ring.dot(gradient + (moved * d - s * moved) / 2, moved)
    excess = jnp.max(multipliers) - jnp.min(jnp.where(free, d, jnp.inf))
    return new, Facts(stationarity, excess, model, change, edge, inner)


def _search(
    ring: Ring,
    gradient: Float[Array, "n q"],
    hessian: Callable[[Float[Array, "n q"]], Float[Array, "n q"]],
    precondition: Callable[[Float[Array, "n q"]], Float[Array, "n q"]],
    radius: Float[Array, ""],
    goal: Float[Array, ""],
) -> tuple[Float[Array, "n q"], Float[Array, "n q"], Bool[Array, ""], Int[Array, ""]]:
    """Conjugate gradients that stop at the radius and at negative curvature (Steihaug): x, H x, whether so, steps."""
    zero, one = jnp.zeros_like(gradient), jnp.ones((), gradient.dtype)
    z = precondition(gradient)
    rz = ring.dot(gradient, z)
    start = _Search(zero, zero, gradient, -z, rz, 0 * one, 0 * one, rz, jnp.int32(0), jnp.asarray(False))

    def unfinished(state: _Search) -> Bool[Array, ""]:
        return ~state.edge & (state.count < MOST_INNER) & (ring.norm(state.residual) > goal)

    def advance(state: _Search) -> _Search:
        x, hx, residual, direction, rz, xx, xd, dd, count, _ = state
        image = hessian(direction)
        bend = ring.dot(direction, image)
        step = rz / jnp.where(bend > 0, bend, one)
        length = xx + 2 * step * xd + step**2 * dd
        edge = (bend <= 0) | (length >= radius**2)
        reach = (jnp.sqrt(jnp.maximum(xd**2 + dd * (radius**2 - xx), 0.0)) - xd) / jnp.where(dd > 0, dd, one)
        step = jnp.where(edge, reach, step)
        residual = residual + step * image
        z = precondition(residual)
        new = ring.dot(residual, z)
        ratio = new / jnp.where(rz > 0, rz, one)
        return _Search(
            x + step * direction, hx + step * image, residual, ratio * direction - z, new, length,
            ratio * (xd + step * dd), new + ratio**2 * dd, count + 1, edge,
        )  # fmt: skip

    end = lax.while_loop(unfinished, advance, start)
    return end.x, end.hx, end.edge, end.count


@partial(jax.jit, static_argnums=(2, 3, 4))
def _finish(
    problem: Problem, t: Float[Array, "n q"], mesh: Mesh, shape: tuple[int, int], to: Sharding
) -> tuple[Float[Array, "d_s d_c"], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """T in the basis of the features, its loss, ``tr(T M^T)`` and ``|T T^T - I|`` relative to ``|I|``."""
    ring, rows = ring_of(mesh)

    def work(problem: Problem, t: Float[Array, "n q"]) -> tuple[Array, ...]:
        matrix = jnp.where(problem.alive & problem.atlas.alive, ring.inner(t, problem.atlas.vectors), 0.0)
        identity = ring.diagonal(t.shape[0], problem.alive.astype(t.dtype))
        off = ring.norm(ring.outer(t, t) - identity) / jnp.maximum(ring.norm(identity), 1.0)
        return matrix, _loss(ring, problem, t), ring.dot(t, problem.m), off

    solve = jax.shard_map(
        work, mesh=mesh, in_specs=(Problem.layout(mesh), rows), out_specs=(rows, P(), P(), P()), check_vma=False
    )
    matrix, *numbers = solve(problem, t)
    return lax.with_sharding_constraint(matrix.astype(jnp.float32)[: shape[0], : shape[1]], to), *numbers


def orthonormal(ring: Ring, x: Float[Array, "n q"], alive: Bool[Array, "n 1"]) -> Float[Array, "n q"]:
    """``(X X^T)^(-1/2) X`` over the range of X; rows that are not alive are zero before and after."""
    gram = _symmetric(ring, ring.outer(x, x))
    top = lax.pmax(jnp.max(ring.entries(gram)), ring.axes)
    found = eigen(ring, gram + ring.diagonal(x.shape[0], jnp.where(alive, 0.0, -top)))
    keep = found.values > gram.shape[1] * jnp.finfo(x.dtype).eps * top
    scale = jnp.where(keep, lax.rsqrt(jnp.where(keep, found.values, 1.0)), 0.0)
    return ring.inner(ring.transpose(found.vectors), scale[:, None] * ring.inner(found.vectors, x))


def _loss(ring: Ring, problem: Problem, t: Float[Array, "n q"]) -> Float[Array, ""]:
    return ring.dot(t * problem.atlas.values / 2 - problem.m, t)


def _symmetric(ring: Ring, a: Float[Array, "n p"]) -> Float[Array, "n p"]:
    return (a + ring.transpose(a)) / 2


def _median(x: Float[Array, "*k"], where: Bool[Array, "*k"]) -> Float[Array, ""]:
    return jnp.nanmedian(jnp.where(where, x, jnp.nan))
