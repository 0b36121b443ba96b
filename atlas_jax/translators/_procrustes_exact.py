"""The minimiser of Eq. 2 itself, which for ``d_s < d_c`` is not the polar factor."""

from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float

from atlas_jax.translators._polar import polar
from atlas_jax.translators._solution import Solution, cross_of, gram_of, solution
from atlas_jax.types_statistics import Statistics


def procrustes_exact(
    stats: Statistics,
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
) -> Solution:
    """A minimiser of ``|A_s - A_c T^T|^2`` over ``T T^T = I``, Eq. 2 as written.

    For ``d_s < d_c`` the norm of ``A_c T^T`` depends on T, there is no closed form, and the problem is not convex:
    this descends from the polar factor, every step lowering Eq. 2, to a stationary point. For ``d_s >= d_c`` the polar
    factor is the minimiser (over ``T^T T = I`` when ``d_s > d_c``, where ``T T^T = I`` has no solution) and is
    returned. Dead features have exactly zero rows and columns. Costs ``d_s d_c^2`` per step on the host.

    Args:
      stats: statistics with the needs ``"unit_cross"`` and ``"unit_atlas_gram"`` (``"cross"`` and ``"atlas_gram"``
        without ``normalize_rows``).
      normalize_rows: use rows divided by their L2 norm, as section 3.3 does.
      centre: subtract the column means (after the normalisation).
      tolerance: stop when the gradient on the manifold is this small relative to the gradient in all directions.
      max_steps: stop there at the latest; the certificate says whether it converged.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``; ``certificate`` with steps, stationarity and the change of Eq. 2's loss.

    Raises:
      AtlasError: if a need is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import Statistics, update
      >>> a_c = jnp.array([[2.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 2), a_c[:, 1:], a_c)
      >>> abs(procrustes_exact(stats, normalize_rows=False).matrix).round(3).tolist()
      [[0.0, 1.0]]
    """
    m = cross_of(stats, unit=normalize_rows, centre=centre)
    gram = gram_of(stats, "atlas", unit=normalize_rows, centre=centre)
    start, certificate = polar(m)
    rows, columns = np.flatnonzero(m.any(axis=1)), np.flatnonzero(np.diagonal(gram) > 0)
    if rows.size >= columns.size:
        return solution(start, **certificate, steps=0, converged=True, loss_change=0.0)
    small = m[np.ix_(rows, columns)]
    t = start[np.ix_(rows, columns)].astype(np.float64)
    if certificate["rank"] < rows.size:
        u, _, vt = scipy.linalg.svd(small, full_matrices=False)
        t = u @ vt
    t, found = _descend(t, small, gram[np.ix_(columns, columns)], tolerance, max_steps)
    matrix = np.zeros(m.shape)
    matrix[np.ix_(rows, columns)] = t
    dead = {"dead_rows": m.shape[0] - rows.size, "dead_columns": m.shape[1] - columns.size}
    return solution(matrix, solver="stiefel_descent", rank=int(rows.size), **found, **dead)


def _descend(
    t: Float[np.ndarray, "p q"],
    m: Float[np.ndarray, "p q"],
    gram: Float[np.ndarray, "q q"],
    tolerance: float,
    max_steps: int,
) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """Projected gradient steps ``T <- polar(T - (T G - M) / c)``, which never raise the loss.

    With c at the largest eigenvalue of G a step minimises an upper bound of the loss, so it cannot raise it. A smaller
    c, the curvature along the last step (Barzilai and Borwein), is tried first and doubled until the loss falls.
    """
    steepest = float(scipy.linalg.eigh(gram, eigvals_only=True, subset_by_index=[len(gram) - 1] * 2)[0])
    loss = lambda t, slope: float(np.einsum("pq,pq->", t, slope - m))
    t = _orthonormal(t)
    slope = t @ gram - m
    first = value = loss(t, slope)
    curvature, steps = steepest, 0
    while (residual := _stationarity(t, slope)) > tolerance and steps < max_steps:
        steps += 1
        while True:
            new = _orthonormal(t - slope / curvature)
            new_slope = new @ gram - m
            new_value = loss(new, new_slope)
            if new_value <= value - 1e-4 * curvature * np.linalg.norm(new - t) ** 2 or curvature >= steepest:
                break
            curvature = min(2 * curvature, steepest)
        if new_value >= value:
            break
        step, bend = new - t, new_slope - slope
        curvature = float(np.clip((step * bend).sum() / (step * step).sum(), 1e-6 * steepest, steepest))
        t, slope, value = new, new_slope, new_value
    return t, {
        "steps": steps,
        "stationarity": residual,
        "converged": bool(residual <= tolerance),
        "orthogonality": float(np.linalg.norm(t @ t.T - np.eye(len(t))) / np.sqrt(len(t))),
        "loss_change": value - first,
    }


def _orthonormal(x: Float[np.ndarray, "p q"]) -> Float[np.ndarray, "p q"]:
    """``(X X^T)^(-1/2) X`` for X of full row rank."""
    values, vectors = scipy.linalg.eigh(x @ x.T, check_finite=False, driver="evd")
    return (vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny))) @ (vectors.T @ x)


def _stationarity(t: Float[np.ndarray, "p q"], slope: Float[np.ndarray, "p q"]) -> float:
    """The gradient along the manifold, relative to the whole gradient."""
    inner = slope @ t.T
    along = slope - (inner + inner.T) / 2 @ t
    return float(np.linalg.norm(along) / max(np.linalg.norm(slope), np.finfo(float).tiny))
