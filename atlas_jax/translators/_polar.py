"""The polar factor of a matrix on the host, in float64, with a certificate."""

from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float

CUT = 1e-7  # singular values below CUT * the largest are noise of the float64 Gram matrix
ORTHOGONAL, SYMMETRIC, GAP, CORRECTION = 1e-5, 1e-4, 1e-6, 1e-2  # what a certificate must show to be accepted


def polar(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """The partial isometry ``T = U V^T`` of ``M = U S V^T`` over the range of M, and its certificate.

    Zero rows and columns of ``m`` stay exactly zero. The Gram matrix of the shorter side is diagonalised in float64
    and the result refined once; if the certificate is not accepted, a float64 SVD is used, and the certificate says so.

    Args:
      m: any real matrix.

    Returns:
      ``T`` and its certificate: solver, rank, singular value cut and condition number over the range; orthogonality
      ``|T T^T - P| / |P|``; asymmetry of ``M T^T``; duality gap to the nuclear norm, relative; the largest element
      of the correction step.
    """
    rows, columns = np.flatnonzero(m.any(axis=1)), np.flatnonzero(m.any(axis=0))
    factor = np.zeros(m.shape)
    dead = {"dead_rows": m.shape[0] - rows.size, "dead_columns": m.shape[1] - columns.size}
    if not rows.size:
        return factor, {"solver": "zero", "rank": 0, "cut": CUT, "accepted": True, **_ZERO, **dead}
    alive = m[np.ix_(rows, columns)]
    alive = alive / np.abs(alive).max()
    wide = alive if alive.shape[0] <= alive.shape[1] else alive.T
    t, certificate = _gram_route(wide)
    if not certificate["accepted"]:
        t, certificate = _svd_route(wide)
    factor[np.ix_(rows, columns)] = t if wide is alive else t.T
    return factor, certificate | dead


_ZERO = {"condition": 1.0, "orthogonality": 0.0, "asymmetry": 0.0, "gap": 0.0, "correction": 0.0}


def _gram_route(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """``V diag(1/s) V^T M`` from ``M M^T = V diag(s^2) V^T``, corrected to first order.

    With ``t = (I + F) t*`` in the eigenbasis and ``diag(s)(I + F)`` symmetric, the measured ``D = t t^T - I`` gives
    ``F_ij = D_ij s_j / (s_i + s_j)``: one Lyapunov step that costs one float32 product.
    """
    squares, v = scipy.linalg.eigh(m @ m.T, overwrite_a=True, check_finite=False, driver="evd")
    s = np.sqrt(np.maximum(squares, 0))
    keep = s > CUT * s[-1]
    s, v = s[keep], v[:, keep]
    t = v.T @ m
    s_row = np.linalg.norm(t, axis=1)
    t /= s_row[:, None]
    t32 = t.astype(np.float32)
    excess = (t32 @ t32.T).astype(np.float64) - np.eye(s.size)
    fix = excess * (s_row[None, :] / (s_row[:, None] + s_row[None, :]))
    answer = ((v - v @ fix).astype(np.float32)) @ t32
    return answer, _certify(m, answer, v, s_row, "gram_eigh", float(np.abs(excess).max()))


def _svd_route(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    u, s, vt = scipy.linalg.svd(m, full_matrices=False, check_finite=False)
    keep = s > CUT * s[0]
    u, s, vt = u[:, keep], s[keep], vt[keep]
    answer = (u @ vt).astype(np.float32)
    return answer, _certify(m, answer, u, s, "svd", 0.0)


def _certify(
    m: Float[np.ndarray, "p q"],
    t: Float[np.ndarray, "p q"],
    v: Float[np.ndarray, "p r"],
    s: Float[np.ndarray, " r"],
    solver: str,
    correction: float,
) -> dict[str, Any]:
    """What ``t`` satisfies. The gap is rigorous: ``sum(s)``, the row norms of ``v^T M`` for orthonormal ``v``, bounds
    the nuclear norm of ``v v^T M`` from above (weak duality with ``W = v diag(s) v^T``), and ``tr(T M^T)`` over the
    largest singular value of T bounds it from below."""
    squared = t @ t.T
    v32 = v.astype(np.float32)
    excess = squared - (v32 @ v32.T if s.size < m.shape[0] else np.eye(m.shape[0], dtype=np.float32))
    orthogonality = float(np.linalg.norm(excess) / np.sqrt(s.size))
    skew = m.astype(np.float32) @ t.T
    asymmetry = float(np.linalg.norm(skew - skew.T) / np.linalg.norm(skew))
    bound = float(s.sum())
    gap = (bound - float(np.einsum("pq,pq->", m, t))) / bound
    accepted = orthogonality <= ORTHOGONAL and asymmetry <= SYMMETRIC and abs(gap) <= GAP and correction <= CORRECTION
    return {
        "solver": solver,
        "rank": int(s.size),
        "cut": CUT,
        "condition": float(s.max() / s.min()),
        "orthogonality": orthogonality,
        "asymmetry": asymmetry,
        "gap": gap,
        "correction": correction,
        "accepted": bool(accepted),
    }
