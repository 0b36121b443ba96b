"""The polar factor of a matrix on the host, in float64, with a certificate."""

from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float

from atlas_jax.translators._polar_certificate import CUT, Basis, certify, nothing

NEGLIGIBLE = 1e-6  # relative size of D that need not be corrected


def polar(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """The partial isometry ``T = U V^T`` of ``M = U S V^T`` over the range of M, and its certificate.

    Zero rows and columns of ``m`` stay exactly zero, and singular values up to ``1e-7`` times the largest count as
    zero. The Gram matrix of the shorter side is diagonalised in float64 and the result refined where that shows; if the
    certificate is not accepted, a float64 SVD is used, and the certificate says so.

    Args:
      m: any real matrix.

    Returns:
      ``T`` and its certificate: solver, rank, singular value cut and condition number over the range; orthogonality
      ``|T T^T - P| / |P|``; asymmetry of ``M T^T``; duality gap to the nuclear norm, relative; error, an estimate of
      the relative distance to the exact factor; remainder, the relative size of the singular values left out.

    Example:
      >>> t, certificate = polar(np.array([[0.0, 2.0, 0.0], [1e-3, 0.0, 0.0]]))
      >>> t.round(6).tolist(), certificate["rank"], certificate["accepted"]
      ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 2, True)
    """
    rows, columns = np.flatnonzero(m.any(axis=1)), np.flatnonzero(m.any(axis=0))
    factor = np.zeros(m.shape)
    dead = {"dead_rows": m.shape[0] - rows.size, "dead_columns": m.shape[1] - columns.size}
    if not rows.size:
        return factor, nothing() | dead
    alive = np.asarray(m[np.ix_(rows, columns)], np.float64)
    alive = alive / np.abs(alive).max()
    wide = alive if alive.shape[0] <= alive.shape[1] else alive.T
    t, basis = _gram_route(wide)
    certificate = certify(wide, t, basis, solver="gram_eigh")
    if not certificate["accepted"]:
        t, basis = _svd_route(wide)
        certificate = certify(wide, t, basis, solver="svd") | {"escalated_from": "gram_eigh"}
    factor[np.ix_(rows, columns)] = t if wide is alive else t.T
    return factor, certificate | dead


def _gram_route(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], Basis]:
    """``V diag(1/s) V^T M`` from ``M M^T = V diag(s^2) V^T``, corrected to first order.

    With ``t = (I + F) t*`` in the eigenbasis and ``diag(s)(I + F)`` symmetric, the measured ``D = t t^T - I`` gives
    ``F_ij = D_ij s_j / (s_i + s_j)``: one Lyapunov step that costs one float32 product, taken where D matters.
    """
    squares, v = scipy.linalg.eigh(m @ m.T, overwrite_a=True, check_finite=False, driver="evd")
    angle = _angle(squares[::-1], CUT**2)
    keep = squares > CUT**2 * squares[-1]
    v = v if keep.all() else v[:, keep]
    t = v.T @ m
    s = np.linalg.norm(t, axis=1)
    t /= s[:, None]
    t = t.astype(np.float32)
    excess = t @ t.T
    excess[np.diag_indices_from(excess)] -= 1
    s32, size = s.astype(np.float32), float(np.linalg.norm(excess))
    basis = Basis(v, s, excess * (s32 / (s32[:, None] + s32)), size**2 + angle)
    v = v.astype(np.float32)
    if size > NEGLIGIBLE * np.sqrt(s.size):
        v = v - v @ basis.correction
    return v @ t, basis


def _svd_route(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], Basis]:
    u, s, vt = scipy.linalg.svd(m, full_matrices=False, check_finite=False)
    angle = _angle(s, CUT)
    keep = s > CUT * s[0]
    u, s, vt = u[:, keep], s[keep], vt[keep]
    return (u @ vt).astype(np.float32), Basis(u, s, np.zeros((s.size, s.size), np.float32), angle)


def _angle(values: Float[np.ndarray, " p"], cut: float) -> float:
    """Between the space of the values above the cut and what float64 found, by Davis and Kahan; values descend."""
    r = int(np.count_nonzero(values > cut * values[0]))
    if r == values.size:
        return 0.0
    rounding = np.finfo(float).eps * np.sqrt(values.size) * values[0]
    return float(min(1.0, rounding / (values[r - 1] - values[r])))
