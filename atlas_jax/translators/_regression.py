"""Least squares, Eq. 8, and ridge, from the atlas Gram matrix, factorised on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.checks import as_number
from atlas_jax.sharding import mesh_of
from atlas_jax.statistics import Statistics, cross_product, gram_matrix, gram_moments, on_one_device
from atlas_jax.translators._solution import Solution, solution
from atlas_jax.translators._spectrum import eigh, largest_eigenvalue

INVERSE_STEPS = 10


def least_squares(stats: Statistics, *, centre: bool = False, cut: float = 1e-7) -> Solution:
    """The minimiser of ``|A_s - A_c T^T|`` of least norm, Eq. 8: ``A_s^T A_c (A_c^T A_c)^+``.

    Eigenvalues of the Gram matrix up to ``cut`` times the largest eigenvalue of the *centred* Gram matrix count as
    zero: below that, float32 statistics hold rounding only. The rank is in the certificate.

    Args:
      stats: statistics with the needs ``"cross"`` and ``"atlas_gram"``, in numpy, on one device or sharded over a
        mesh, also one of several processes (which must all call).
      centre: regress with an intercept, which Eq. 8 does not.
      cut: relative size below which an eigenvalue is zero.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, zero in the columns of dead atlas features, on the mesh of the statistics where
      they have one; ``certificate`` with solver (a Gram matrix that is clearly positive definite is factorised, any
      other diagonalised), rank, floor, dead columns and the relative residual of the normal equations.

    Raises:
      AtlasError: if a need is missing, there are no rows, an option is out of range, or the Gram matrix is too large.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import least_squares
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x, x)
      >>> least_squares(stats).matrix.tolist()
      [[2.0]]
    """
    as_number(cut, "cut", least=0)
    with jax.enable_x64(True):
        moments = gram_moments(stats, "atlas", unit=False)
        gram = gram_matrix(moments, centre=centre)
        centred = gram if centre else gram_matrix(moments, centre=True)
        cross = cross_product(stats, unit=False, centre=centre, one_device=True)
        t, certificate = _solve(cross, gram, cut * float(largest_eigenvalue(centred)))
    return solution(t, mesh_of(stats), **certificate)


def ridge(stats: Statistics, *, centre: bool = False, penalty: float = 1e-2) -> Solution:
    """Least squares with a penalty on the norm of T: ``A_s^T A_c (A_c^T A_c + p I)^-1``; not in the paper.

    Args:
      stats: statistics with the needs ``"cross"`` and ``"atlas_gram"``.
      centre: regress with an intercept.
      penalty: p, in units of the mean scatter of the atlas features that are not dead.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, zero in the columns of dead atlas features; ``certificate`` as in
      :func:`least_squares`, with the penalty and, as ``shift``, p itself.

    Raises:
      AtlasError: if a need is missing, there are no rows, an option is out of range, or the Gram matrix is too large.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import ridge
      >>> x = jnp.array([[1.0], [-1.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x, x)
      >>> ridge(stats, penalty=1.0).matrix.tolist()
      [[1.0]]
    """
    as_number(penalty, "the penalty", least=0)
    with jax.enable_x64(True):
        gram = gram_matrix(gram_moments(stats, "atlas", unit=False), centre=centre)
        nonzero = (jnp.diagonal(gram) > 0).astype(gram.dtype)
        scatter = on_one_device(jnp.asarray(stats.atlas.raw.scatter, jnp.float64))
        shift = penalty * float(jnp.sum(scatter * nonzero) / jnp.maximum(jnp.sum(nonzero), 1.0))
        cross = cross_product(stats, unit=False, centre=centre, one_device=True)
        t, certificate = _solve(cross, gram + jnp.diag(shift * nonzero), 0.0)
    return solution(t, mesh_of(stats), **certificate, shift=shift, penalty=penalty)


def _solve(
    cross: Float[Array, "d_s d_c"], gram: Float[Array, "d_c d_c"], floor: float
) -> tuple[Float[Array, "d_s d_c"], dict[str, Any]]:
    """Compute ``M G^+`` on one device, eigenvalues up to ``floor`` counting as zero; with a certificate."""
    count = int(jnp.count_nonzero(jnp.diagonal(gram)))
    rounding = np.finfo(float).eps * count
    root, smallest = _cholesky(gram)
    if float(smallest) > max(floor, rounding * float(jnp.trace(gram))):
        t, solver, rank = _by_cholesky(cross, gram, root), "cholesky", count
    else:
        values, vectors = eigh(gram)
        keep = values > max(floor, rounding * float(values[-1]))
        t, solver, rank = _by_eigenvectors(cross, values, vectors, keep), "eigh", int(jnp.sum(keep))
    residual = jnp.linalg.norm(t @ gram - cross) / jnp.maximum(jnp.linalg.norm(cross), np.finfo(float).tiny)
    known = {"solver": solver if count else "zero", "rank": rank, "floor": floor}
    return t, known | {"normal_residual": float(residual), "dead_columns": len(gram) - count}


@jax.jit
def _cholesky(gram: Float[Array, "d_c d_c"]) -> tuple[Float[Array, "d_c d_c"], Float[Array, ""]]:
    """L of ``G = L L^T``, dead features having the equation ``x = 0``; and the smallest eigenvalue of G on the others.

    That by inverse iteration: an upper bound, close when one eigenvalue is tiny. NaN where G is not positive definite.
    """
    nonzero = jnp.diagonal(gram) > 0
    root = jnp.linalg.cholesky(gram + jnp.diag(jnp.where(nonzero, 0.0, 1.0)))

    def step(
        _: Int[Array, ""], state: tuple[Float[Array, " d_c"], Float[Array, ""]]
    ) -> tuple[Float[Array, " d_c"], Float[Array, ""]]:
        x = state[0] / jnp.linalg.norm(state[0])
        y = cho_solve((root, True), x)
        return y, 1.0 / (x @ y)

    start = jnp.where(nonzero, jax.random.normal(jax.random.key(0), nonzero.shape, gram.dtype), 0.0)
    _, smallest = lax.fori_loop(0, INVERSE_STEPS, step, (start, jnp.zeros((), gram.dtype)))
    return root, jnp.where(jnp.any(nonzero), smallest, jnp.inf)


@jax.jit
def _by_cholesky(
    cross: Float[Array, "d_s d_c"], gram: Float[Array, "d_c d_c"], root: Float[Array, "d_c d_c"]
) -> Float[Array, "d_s d_c"]:
    return jnp.where((jnp.diagonal(gram) > 0)[None, :], cho_solve((root, True), cross.T).T, 0.0)


@jax.jit
def _by_eigenvectors(
    cross: Float[Array, "d_s d_c"],
    values: Float[Array, " d_c"],
    vectors: Float[Array, "d_c d_c"],
    keep: Bool[Array, " d_c"],
) -> Float[Array, "d_s d_c"]:
    return ((cross @ vectors) * jnp.where(keep, 1.0 / jnp.where(keep, values, 1.0), 0.0)[None, :]) @ vectors.T
