"""The minimiser of Eq. 2 itself, which for ``d_s < d_c`` is not the polar factor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from atlas_jax.checks import as_count, as_number
from atlas_jax.sharding import mesh_of
from atlas_jax.statistics import Statistics, cross_product, gram_matrix, gram_moments
from atlas_jax.translators._procrustes import procrustes
from atlas_jax.translators._solution import Solution, solution, times

SPLITTINGS = 30  # towards a start from which few Newton steps are left
MOST_INNER = 100
FLOOR = 0.1  # of the typical curvature: what a preconditioner divides by at least
ROUNDING = 100.0  # times the precision: what the gradient can be brought to


def procrustes_exact(
    stats: Statistics,
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    tolerance: float = 1e-6,
    max_steps: int = 100,
) -> Solution:
    """The minimiser of ``|A_s - A_c T^T|^2`` over ``T T^T = I``, Eq. 2 as written.

    For ``d_s < d_c`` the norm of ``A_c T^T`` depends on T and there is no closed form: Newton's method in a trust
    region finds a stationary point whose loss is at most the polar factor's, and the certificate bounds how far it can
    be above the global minimum, which it usually is. For ``d_s >= d_c`` the polar factor is the minimiser (over
    ``T^T T = I`` when ``d_s > d_c``, where ``T T^T = I`` has no solution), and :func:`procrustes` computes it. Dead
    features have exactly zero rows and columns. All is computed in float64 on one device.

    Args:
      stats: statistics with the needs ``"unit_cross"`` and ``"unit_atlas_gram"`` (``"cross"`` and ``"atlas_gram"``
        without ``normalize_rows``), in numpy, on one device or sharded over a mesh, also one of several processes
        (which must all call).
      normalize_rows: use rows divided by their L2 norm, as section 3.3 does.
      centre: subtract the column means (after the normalisation).
      tolerance: stop when the gradient on the manifold is this small relative to the gradient in all directions.
      max_steps: Newton steps at most; the certificate's ``converged`` is false where they do not suffice.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, on the mesh of the statistics; ``certificate`` with solver, precision, rank,
      steps, stationarity, whether it converged, orthogonality, gap (to the global minimum at most, relative to
      ``2 tr(T A_c^T A_s)``), the change of Eq. 2's loss from the polar factor, and whether it is within
      tolerance.

    Raises:
      AtlasError: if a need is missing, there are no rows, an option is out of range, or the Gram matrix is too large.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import procrustes_exact
      >>> a_c = jnp.array([[2.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 2), a_c[:, 1:], a_c)
      >>> abs(procrustes_exact(stats, normalize_rows=False).matrix).round(3).tolist()
      [[0.0, 1.0]]
    """
    as_number(tolerance, "tolerance", least=0)
    as_count(max_steps, "max_steps")
    with jax.enable_x64(True):
        cross = cross_product(stats, unit=normalize_rows, centre=centre, one_device=True)
        gram = gram_matrix(gram_moments(stats, "atlas", unit=normalize_rows), centre=centre)
        rows, columns = int(jnp.sum(jnp.any(cross != 0, axis=1))), int(jnp.count_nonzero(jnp.diagonal(gram)))
        if rows < columns:
            t, certificate = minimise(cross, gram, tolerance=tolerance, max_steps=max_steps)
            return solution(t, mesh_of(stats), **certificate)
    polar = procrustes(stats, normalize_rows=normalize_rows, centre=centre)
    return polar._replace(certificate=polar.certificate | {"steps": 0, "converged": True, "loss_change": 0.0})


class Problem(NamedTuple):
    """``|A_s - A_c T^T|^2 = |A_s|^2 + 2 scale (tr(T D T^T) / 2 - tr(T M^T))``, in the eigenbasis of ``A_c^T A_c``.

    Attributes:
      m: ``M = A_s^T A_c`` in that basis and over ``scale``; zero for dead atlas features.
      nonzero_rows: which of its rows are not zero.
      values: eigenvalues over ``scale``, D; zero for dead features.
      free: which of them belong to features that are not dead.
      vectors: their vectors, as rows.
      nonzero_columns: which atlas features are not dead.
      scale: the largest entry of the Gram matrix.
    """

    m: Float[Array, "p q"]
    nonzero_rows: Bool[Array, "p 1"]
    values: Float[Array, "1 q"]
    free: Bool[Array, "1 q"]
    vectors: Float[Array, "q q"]
    nonzero_columns: Bool[Array, "1 q"]
    scale: Float[Array, ""]


class Facts(NamedTuple):
    """Measurements of a Newton step: of T before it, and of the step."""

    stationarity: Float[Array, ""]  # the gradient on the manifold, relative to that in all directions
    excess: Float[Array, ""]  # of the largest multiplier over the smallest eigenvalue
    model: Float[Array, ""]  # the change of the loss that was expected
    change: Float[Array, ""]  # and that there was
    edge: Bool[Array, ""]  # whether the radius stopped the step
    inner: Int[Array, ""]  # products with the Hessian


class _Search(NamedTuple):
    """Truncated conjugate gradients: the step so far, and lengths in the metric of the preconditioner."""

    x: Float[Array, "p q"]
    hx: Float[Array, "p q"]
    residual: Float[Array, "p q"]
    direction: Float[Array, "p q"]
    rz: Float[Array, ""]
    xx: Float[Array, ""]
    xd: Float[Array, ""]
    dd: Float[Array, ""]
    count: Int[Array, ""]
    edge: Bool[Array, ""]


def minimise(
    cross: Float[Array, "d_s d_c"], gram: Float[Array, "d_c d_c"], *, tolerance: float, max_steps: int
) -> tuple[Float[Array, "d_s d_c"], dict[str, Any]]:
    """The T of orthonormal rows that minimises ``tr(T G T^T) / 2 - tr(T M^T)``, from a good start.

    In the eigenbasis of the Gram matrix the loss is cheap and the Hessian, ``X -> X D - S X`` on tangents with the
    multiplier ``S = sym((T D - M) T^T)``, is diagonal but for the projection once S is diagonal too: that is the
    preconditioner of truncated conjugate gradients in a trust region. The start is the better of the polar factor and
    what operator splitting makes of regularised least squares.

    At a stationary point ``f(T') - f(T) = tr(X D X^T - X^T S X) / 2`` for ``X = T' - T``, so it is a global minimum if
    no multiplier exceeds the smallest eigenvalue, and otherwise at most ``2 d_s excess`` above it.

    Args:
      cross: M, on one device.
      gram: G, on the same device and in the same dtype.
      tolerance: stop when the gradient on the manifold is this small, relative to that in all directions.
      max_steps: Newton steps at most.

    Returns:
      ``T``, zero in dead rows and columns; and solver, precision, rank, steps, products with the Hessian, stationarity,
      whether it converged, orthogonality, the gap to the global minimum at most, relative to ``2 tr(T M^T)``, the
      change of the loss from the polar factor, dead rows and columns, and whether all of this is
      within tolerance.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.translators._procrustes_exact import minimise
      >>> t, certificate = minimise(jnp.array([[0.0, 2.0]]), jnp.eye(2), tolerance=1e-6, max_steps=9)
      >>> abs(t).round(3).tolist(), certificate["within_tolerance"]
      ([[0.0, 1.0]], True)
    """
    problem = _problem(cross, gram)
    eps = float(jnp.finfo(cross.dtype).eps)
    tolerance = max(tolerance, ROUNDING * eps)
    t, polar_value, trace = _start(problem)
    limit = radius = float(trace) ** 0.5
    inner = 0
    for steps in range(max_steps + 1):
        new, facts = _newton(problem, t, radius, tolerance)
        facts = Facts(*(x.item() for x in facts))
        if facts.stationarity <= tolerance or steps == max_steps or radius < eps * limit:
            break
        inner += facts.inner
        ratio = facts.change / facts.model if facts.model < 0 else -1.0
        t = new if ratio > 0.1 and facts.change < 0 else t
        radius *= 0.25 if ratio < 0.25 else 2.0 if ratio > 0.75 and facts.edge else 1.0
    matrix, value, trace, orthogonality = _finish(problem, t)
    rows, columns = int(jnp.sum(problem.nonzero_rows)), int(jnp.sum(problem.nonzero_columns))
    certificate = {
        "solver": "stiefel_newton",
        "precision": str(cross.dtype),
        "rank": rows,
        "steps": steps,
        "products": inner,
        "stationarity": facts.stationarity,
        "converged": facts.stationarity <= tolerance,
        "orthogonality": float(orthogonality),
        "gap": 2 * rows * max(facts.excess, 0.0) / max(float(trace), eps),
        "loss_change": 2 * float(problem.scale) * (float(value) - float(polar_value)),
        "dead_rows": cross.shape[0] - rows,
        "dead_columns": cross.shape[1] - columns,
    }
    return matrix, certificate | {"within_tolerance": certificate["converged"] and certificate["orthogonality"] <= 1e-5}


@jax.jit
def _problem(cross: Float[Array, "p q"], gram: Float[Array, "q q"]) -> Problem:
    """Change to the eigenbasis, where dead features get an eigenvalue of their own: so they mix with no other."""
    diagonal = jnp.diagonal(gram)
    nonzero_columns, scale = diagonal > 0, jnp.max(diagonal)
    scale = jnp.where(scale > 0, scale, 1.0)
    values, vectors = jnp.linalg.eigh(gram / scale + jnp.diag(jnp.where(nonzero_columns, 0.0, -1.0)))
    free = values > -0.5
    values, free, nonzero_columns = (
        x[None, :] for x in (jnp.where(free, jnp.maximum(values, 0.0), 0.0), free, nonzero_columns)
    )
    m = jnp.where(free, times(cross / scale, vectors), 0.0)
    return Problem(m, jnp.any(cross != 0, axis=1, keepdims=True), values, free, vectors.T, nonzero_columns, scale)


@jax.jit
def _start(problem: Problem) -> tuple[Float[Array, "p q"], Float[Array, ""], Float[Array, ""]]:
    """T to begin with, the loss of the polar factor, and ``tr(T M^T)`` of the latter.

    Splitting alternates between the minimiser of the loss and of a distance to orthonormal rows, and orthonormal rows.
    A little noise makes these independent whatever rank M has.
    """
    m, d, free = problem.m, problem.values, problem.free
    noise = jax.random.normal(jax.random.key(0), m.shape, m.dtype)
    polar = orthonormal(m, problem.nonzero_rows)
    count = jnp.sum(problem.nonzero_rows.astype(m.dtype))
    weight = jnp.linalg.norm(polar * d - m) / jnp.sqrt(jnp.maximum(count, 1.0))
    weight = jnp.where(weight > 0, weight, 1.0)
    mean = jnp.sum(d) / jnp.maximum(jnp.sum(free.astype(d.dtype)), 1.0)
    first = m / jnp.where(d + mean > 0, d + 0.01 * mean, 1.0)
    noise = jnp.where(free & problem.nonzero_rows, times(noise, problem.vectors.T), 0.0)
    first = first + noise * (1e-3 * jnp.linalg.norm(first) / jnp.linalg.norm(noise))

    def split(
        _: Int[Array, ""], state: tuple[Float[Array, "p q"], Float[Array, "p q"]]
    ) -> tuple[Float[Array, "p q"], Float[Array, "p q"]]:
        z, u = state
        t = (m + weight * (z - u)) / (d + weight)
        z = orthonormal(t + u, problem.nonzero_rows)
        return z, u + t - z

    z, _ = lax.fori_loop(0, SPLITTINGS, split, (orthonormal(first, problem.nonzero_rows), jnp.zeros_like(m)))
    value = _loss(problem, polar)
    whole_rank = _inner(polar, polar) > count - 0.5
    better = whole_rank & (value < _loss(problem, z))
    return jnp.where(better, polar, z), value, _inner(polar, m)


@jax.jit
def _newton(
    problem: Problem, t: Float[Array, "p q"], radius: Float[ArrayLike, ""], tolerance: Float[ArrayLike, ""]
) -> tuple[Float[Array, "p q"], Facts]:
    """One step in the trust region, and T moved by it and made orthonormal again."""
    d, free = problem.values, problem.free
    radius, tolerance = (jnp.asarray(x, t.dtype) for x in (radius, tolerance))
    slope = t * d - problem.m
    multipliers, basis = jnp.linalg.eigh(_symmetric(times(slope, t.T)))
    s = multipliers[:, None]
    at, slope = times(basis.T, t), times(basis.T, slope)
    tangent = lambda x: x - times(_symmetric(times(x, at.T)), at)
    size = jnp.abs(multipliers)
    typical = _median(d, free) + _median(size, size > jnp.finfo(d.dtype).eps * jnp.max(size))
    curvature = jnp.maximum(jnp.abs(d - s), FLOOR * typical)
    gradient = tangent(slope)
    steep, whole = jnp.linalg.norm(gradient), jnp.linalg.norm(slope)
    stationarity = steep / jnp.where(whole > 0, whole, 1.0)
    goal = jnp.maximum(steep * jnp.minimum(0.1, stationarity), tolerance * whole / 2)
    hessian, precondition = lambda x: tangent(x * d - s * x), lambda x: tangent(x / curvature)
    x, hx, edge, inner = _search(gradient, hessian, precondition, radius, goal)
    model = _inner(gradient, x) + _inner(x, hx) / 2
    new = orthonormal(t + times(basis, x), problem.nonzero_rows)
    moved = times(basis.T, new - t)  # the change is exact between orthonormal rows; a difference of losses rounds
    change = _inner(gradient + (moved * d - s * moved) / 2, moved)
    excess = jnp.max(multipliers) - jnp.min(jnp.where(free, d, jnp.inf))
    return new, Facts(stationarity, excess, model, change, edge, inner)


def _search(
    gradient: Float[Array, "p q"],
    hessian: Callable[[Float[Array, "p q"]], Float[Array, "p q"]],
    precondition: Callable[[Float[Array, "p q"]], Float[Array, "p q"]],
    radius: Float[Array, ""],
    goal: Float[Array, ""],
) -> tuple[Float[Array, "p q"], Float[Array, "p q"], Bool[Array, ""], Int[Array, ""]]:
    """Conjugate gradients that stop at the radius and at negative curvature (Steihaug).

    Returns:
      x, H x, true if one of these stopped it, and the number of steps.
    """
    zero, one = jnp.zeros_like(gradient), jnp.ones((), gradient.dtype)
    z = precondition(gradient)
    rz = _inner(gradient, z)
    start = _Search(zero, zero, gradient, -z, rz, 0 * one, 0 * one, rz, jnp.int32(0), jnp.asarray(False))

    def unfinished(state: _Search) -> Bool[Array, ""]:
        return ~state.edge & (state.count < MOST_INNER) & (jnp.linalg.norm(state.residual) > goal)

    def advance(state: _Search) -> _Search:
        x, hx, residual, direction, rz, xx, xd, dd, count, _ = state
        image = hessian(direction)
        bend = _inner(direction, image)
        step = rz / jnp.where(bend > 0, bend, one)
        length = xx + 2 * step * xd + step**2 * dd
        edge = (bend <= 0) | (length >= radius**2)
        reach = (jnp.sqrt(jnp.maximum(xd**2 + dd * (radius**2 - xx), 0.0)) - xd) / jnp.where(dd > 0, dd, one)
        step = jnp.where(edge, reach, step)
        residual = residual + step * image
        z = precondition(residual)
        new = _inner(residual, z)
        ratio = new / jnp.where(rz > 0, rz, one)
        return _Search(
            x + step * direction, hx + step * image, residual, ratio * direction - z, new, length,
            ratio * (xd + step * dd), new + ratio**2 * dd, count + 1, edge,
        )  # fmt: skip

    end = lax.while_loop(unfinished, advance, start)
    return end.x, end.hx, end.edge, end.count


@jax.jit
def _finish(
    problem: Problem, t: Float[Array, "p q"]
) -> tuple[Float[Array, "p q"], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """T in the basis of the features, its loss, ``tr(T M^T)`` and ``|T T^T - I|`` relative to ``|I|``."""
    matrix = jnp.where(problem.nonzero_rows & problem.nonzero_columns, times(t, problem.vectors), 0.0)
    identity = jnp.diag(problem.nonzero_rows[:, 0].astype(t.dtype))
    off = jnp.linalg.norm(times(t, t.T) - identity) / jnp.maximum(jnp.linalg.norm(identity), 1.0)
    return matrix, _loss(problem, t), _inner(t, problem.m), off


def orthonormal(x: Float[Array, "p q"], nonzero_rows: Bool[Array, "p 1"]) -> Float[Array, "p q"]:
    """``(X X^T)^(-1/2) X`` over the range of X; rows that are not nonzero_rows are zero before and after."""
    gram = _symmetric(times(x, x.T))
    top = jnp.max(jnp.diagonal(gram))
    values, vectors = jnp.linalg.eigh(gram + jnp.diag(jnp.where(nonzero_rows[:, 0], 0.0, -top)))
    keep = values > len(gram) * jnp.finfo(x.dtype).eps * top
    scale = jnp.where(keep, lax.rsqrt(jnp.where(keep, values, 1.0)), 0.0)
    return times(vectors, scale[:, None] * times(vectors.T, x))


def _inner(a: Float[Array, "p q"], b: Float[Array, "p q"]) -> Float[Array, ""]:
    """``tr(A^T B)``."""
    return jnp.sum(a * b)


def _loss(problem: Problem, t: Float[Array, "p q"]) -> Float[Array, ""]:
    return _inner(t * problem.values / 2 - problem.m, t)


def _symmetric(a: Float[Array, "p p"]) -> Float[Array, "p p"]:
    return (a + a.T) / 2


def _median(x: Float[Array, "*k"], where: Bool[Array, "*k"]) -> Float[Array, ""]:
    return jnp.nanmedian(jnp.where(where, x, jnp.nan))
