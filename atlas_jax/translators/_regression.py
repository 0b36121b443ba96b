"""Least squares, Eq. 8, and ridge, from the atlas Gram matrix: on the host, or where the statistics are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from atlas_jax.checks import as_number
from atlas_jax.translators._regression_rows import regress
from atlas_jax.translators._solution import (
    Solution,
    Solver,
    cross_of,
    cross_on_devices,
    gram_of,
    gram_on_devices,
    solution,
    where_it_belongs,
)
from atlas_jax.types_statistics import Statistics


def least_squares(stats: Statistics, *, centre: bool = False, cut: float = 1e-7, solver: Solver = "auto") -> Solution:
    """The minimiser of ``|A_s - A_c T^T|`` of least norm, Eq. 8: ``A_s^T A_c (A_c^T A_c)^+``.

    Eigenvalues of the Gram matrix up to ``cut`` times the largest eigenvalue of the *centred* Gram matrix count as
    zero: below that, float32 statistics hold rounding only. The certificate tells the rank.

    Args:
      stats: statistics with the needs ``"cross"`` and ``"atlas_gram"``, in numpy, on one device or sharded over a
        mesh, be it of several processes (which must all call).
      centre: regress with an intercept, which Eq. 8 does not.
      cut: relative size below which an eigenvalue is zero.
      solver: ``"host"`` gathers the statistics; it factorises a Gram matrix that is clearly positive definite and
        diagonalises any other. ``"device"`` eliminates where the statistics are, without ever gathering them; a Gram
        matrix that is not clearly positive definite it regularises, and the certificate tells by how much and whether
        the result is accepted as the one of least norm. ``"auto"`` is the device for sharded statistics and
        accelerators, the host otherwise. A device result that is not accepted is solved again on the host if one
        process holds it all; the certificate then names what it escalated from.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, zero in the columns of dead atlas features, sharded as the statistics where
      the device solved; ``certificate`` with solver, rank, floor, dead columns and the relative residual of the normal
      equations, from the device also precision, what regularised, the last change, and whether it is accepted.

    Raises:
      AtlasError: if a need is missing, there are no rows, or an option is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import Statistics, update
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x, x)
      >>> least_squares(stats).matrix.tolist()
      [[2.0]]
    """

    as_number(cut, "cut", least=0)

    def on_host() -> Solution:
        gram = gram_of(stats, "atlas", unit=False, centre=centre)
        floor = cut * largest_eigenvalue(gram_of(stats, "atlas", unit=False, centre=True))
        return _solve(cross_of(stats, unit=False, centre=centre), gram, floor)

    return _where(stats, solver, on_host, centre=centre, cut=cut)


def ridge(stats: Statistics, *, centre: bool = False, penalty: float = 1e-2, solver: Solver = "auto") -> Solution:
    """Least squares with a penalty on the norm of T: ``A_s^T A_c (A_c^T A_c + p I)^-1``; not in the paper.

    Args:
      stats: statistics with the needs ``"cross"`` and ``"atlas_gram"``.
      centre: regress with an intercept.
      penalty: p, in units of the mean scatter of the atlas features that are not dead.
      solver: as in :func:`least_squares`.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, zero in the columns of dead atlas features; ``certificate`` as in
      :func:`least_squares`, with the penalty and, as ``shift``, p itself.

    Raises:
      AtlasError: if a need is missing, there are no rows, or an option is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import Statistics, update
      >>> x = jnp.array([[1.0], [-1.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x, x)
      >>> ridge(stats, penalty=1.0).matrix.tolist()
      [[1.0]]
    """

    as_number(penalty, "the penalty", least=0)

    def on_host() -> Solution:
        gram = gram_of(stats, "atlas", unit=False, centre=centre)
        alive = np.diagonal(gram) > 0
        scale = np.asarray(stats.atlas.raw.scatter, np.float64)[alive].mean() if alive.any() else 0.0
        gram[np.diag_indices_from(gram)] += penalty * scale * alive
        result = _solve(cross_of(stats, unit=False, centre=centre), gram, 0.0)
        return result._replace(certificate=result.certificate | {"shift": float(penalty * scale)})

    result = _where(stats, solver, on_host, centre=centre, penalty=penalty)
    return result._replace(certificate=result.certificate | {"penalty": penalty})


def _where(
    stats: Statistics, solver: Solver, on_host: Callable[[], Solution], *, centre: bool, **options: float
) -> Solution:
    """On the devices or on the host, as ``solver`` and the place of the statistics have it."""

    def on_devices() -> tuple[Float[Array, "d_s d_c"], dict[str, Any]]:
        gram, lift = gram_on_devices(stats, "atlas", unit=False)
        cross = cross_on_devices(stats, unit=False, centre=centre)
        return regress(cross, gram, lift * (not centre), **options)

    return where_it_belongs(solver, (stats.cross.raw, stats.atlas.raw.gram), on_host, on_devices)


def _solve(cross: Float[np.ndarray, "d_s d_c"], gram: Float[np.ndarray, "d_c d_c"], floor: float) -> Solution:
    alive = np.flatnonzero(np.diagonal(gram) > 0)
    small = gram[np.ix_(alive, alive)]
    matrix = np.zeros(cross.shape)
    certificate: dict[str, Any] = {"solver": "zero", "rank": 0}
    if alive.size:
        matrix[:, alive], certificate = _solve_alive(cross[:, alive], small, floor)
        residual = np.linalg.norm(matrix[:, alive] @ small - cross[:, alive])
        certificate["normal_residual"] = float(residual / max(np.linalg.norm(cross), np.finfo(float).tiny))
    return solution(matrix, **certificate, floor=floor, dead_columns=gram.shape[0] - alive.size)


def _solve_alive(
    cross: Float[np.ndarray, "d_s n"], gram: Float[np.ndarray, "n n"], floor: float
) -> tuple[Float[np.ndarray, "d_s n"], dict[str, Any]]:
    try:
        factor = scipy.linalg.cho_factor(gram, check_finite=False)
        if _smallest_eigenvalue(factor, len(gram)) > max(floor, np.finfo(float).eps * len(gram) * gram.trace()):
            answer = scipy.linalg.cho_solve(factor, cross.T, check_finite=False).T
            return answer, {"solver": "cholesky", "rank": len(gram)}
    except np.linalg.LinAlgError:
        pass  # not positive definite in float64: the eigenvalues tell the rank
    values, vectors = scipy.linalg.eigh(gram, check_finite=False, driver="evd")
    keep = values > max(floor, np.finfo(float).eps * len(gram) * values[-1])
    vectors = vectors[:, keep]
    return ((cross @ vectors) / values[keep]) @ vectors.T, {"solver": "eigh", "rank": int(keep.sum())}


def largest_eigenvalue(gram: Float[np.ndarray, "n n"], steps: int = 30) -> float:
    """By power iteration: a lower bound, close for a Gram matrix."""
    x = np.random.default_rng(0).normal(size=len(gram))
    value = 0.0
    for _ in range(steps):
        x = x / max(np.linalg.norm(x), np.finfo(float).tiny)
        y = gram @ x
        value, x = float(x @ y), y
    return value


def _smallest_eigenvalue(factor: Any, n: int, steps: int = 10) -> float:
    """By inverse iteration from the Cholesky factor: an upper bound, close when one eigenvalue is tiny."""
    x = np.random.default_rng(0).normal(size=n)
    value = np.inf
    for _ in range(steps):
        x = x / np.linalg.norm(x)
        y = scipy.linalg.cho_solve(factor, x, check_finite=False)
        value, x = 1.0 / float(x @ y), y
    return value
