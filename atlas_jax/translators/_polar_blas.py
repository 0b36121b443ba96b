"""Products and inverses of matrices on the host, in the precision of their arguments.

All go to scipy's BLAS and LAPACK, since threads of a second BLAS, as numpy's, would wait busily beside its own.
Symmetric matrices are in Fortran order and hold their lower triangle; what is above it means nothing. Other matrices
are in C order.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_blas_funcs, get_lapack_funcs

PANEL = 256
POWERS = 5  # of power iteration from eight vectors, which then stays within a tenth below the spectra met here


def product(a: Float[np.ndarray, "m k"], b: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "m n"]:
    """``A B`` in Fortran order, of matrices in either order."""
    (gemm,) = get_blas_funcs(("gemm",), (a, b))
    flip_a, flip_b = not a.flags.f_contiguous, not b.flags.f_contiguous
    return gemm(1.0, a.T if flip_a else a, b.T if flip_b else b, trans_a=flip_a, trans_b=flip_b)


def lower_product(a: Float[np.ndarray, "p q"], b: Float[np.ndarray, "p q"]) -> Float[np.ndarray, "p p"]:
    """The lower triangle of ``A B^T``, in float64 whatever it was computed in."""
    out = np.zeros((len(a), len(a)), order="F")
    for i in range(0, len(a), PANEL):
        out[i:, i : i + PANEL] = product(a[i:], b[i : i + PANEL].T)
    return out


def gram(x: Float[np.ndarray, "p q"]) -> Float[np.ndarray, "p p"]:
    """``X X^T``, symmetric."""
    (syrk,) = get_blas_funcs(("syrk",), (x,))
    return syrk(1.0, x.T, trans=1, lower=1)


def symmetric_times(
    s: Float[np.ndarray, "p p"], x: Float[np.ndarray, "p q"], scale: float = 1.0
) -> Float[np.ndarray, "p q"]:
    """``scale S X`` for symmetric S."""
    (symm,) = get_blas_funcs(("symm",), (s, x))
    return symm(scale, s, x.T, side=1, lower=1).T


def inverse(s: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
    """``S^-1`` of symmetric S by Cholesky, in the memory of S; NaN where that is not positive definite."""
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (s,))
    factor, failed = potrf(s, lower=1, clean=0, overwrite_a=1)
    return np.full_like(s, np.nan) if failed else potri(factor, lower=1, overwrite_c=1)[0]


def inverse_times(s: Float[np.ndarray, "p p"], x: Float[np.ndarray, "p q"], scale: float) -> Float[np.ndarray, "p q"]:
    """``scale S^-1 X`` of symmetric S by Cholesky, in the memory of S; NaN where that is not positive definite."""
    (potrf,), (trsm,) = get_lapack_funcs(("potrf",), (s,)), get_blas_funcs(("trsm",), (s,))
    root, failed = potrf(s, lower=1, clean=0, overwrite_a=1)
    if failed:
        return np.full_like(x, np.nan)
    half = trsm(scale, root, x.T, side=1, lower=1, trans_a=1)
    return trsm(1.0, root, half, side=1, lower=1, overwrite_b=1).T


def add_to_diagonal(s: Float[np.ndarray, "p p"], shift: float) -> None:
    """Add ``shift I`` to S in place."""
    s[np.diag_indices_from(s)] += s.dtype.type(shift)


def largest_eigenvalue(s: Float[np.ndarray, "p p"]) -> float:
    """The largest eigenvalue of symmetric S without negative ones, estimated from below."""
    (symm,) = get_blas_funcs(("symm",), (s,))
    return _power(lambda x: symm(1.0, s, x, lower=1), len(s))


def smallest_eigenvalue(root: Float[np.ndarray, "p p"]) -> float:
    """The smallest eigenvalue of ``L L^T`` for lower triangular L, estimated from above."""
    (trsm,) = get_blas_funcs(("trsm",), (root,))
    return 1 / _power(lambda x: trsm(1.0, root, trsm(1.0, root, x, lower=1), lower=1, trans_a=1), len(root))


def _power(times: Callable[[Float[np.ndarray, "p k"]], Float[np.ndarray, "p k"]], p: int) -> float:
    x = np.random.default_rng(0).standard_normal((p, 8))
    for _ in range(POWERS):
        x = times(x / np.linalg.norm(x, axis=0))
    return float(np.linalg.norm(x, axis=0).max())
