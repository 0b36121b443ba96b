"""The polar factor of a matrix on the host, with a certificate evaluated in float64."""

from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float

from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.translators._polar_certificate import CUT, Factor, certify, nothing
from atlas_jax.translators._polar_zolotarev import zolotarev_route

NEGLIGIBLE = 1e-6  # relative size of D that need not be corrected


def polar(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """The partial isometry ``T = U V^T`` of ``M = U S V^T`` over the range of M, and its certificate.

    Zero rows and columns of ``m`` stay exactly zero, and singular values up to ``1e-7`` times the largest count as
    zero. Rational functions of the Gram matrix of the shorter side give T where that leaves out nothing; otherwise, or
    if the certificate is not accepted, the Gram matrix is diagonalised in float64; if that is not accepted either, a
    float64 SVD is used. The certificate says so.

    Args:
      m: any real matrix.

    Returns:
      ``T`` in float32 and its certificate: solver, rank, singular value cut and condition number over the range (within
      a tenth); orthogonality ``|T T^T - P| / |P|``; asymmetry of ``M T^T``; duality gap to the nuclear norm, relative;
      error, an upper estimate of the relative distance to the exact factor; remainder, the relative size of the
      singular values left out.

    Raises:
      AtlasError: for what is no matrix of finite numbers.

    Example:
      >>> t, certificate = polar(np.array([[0.0, 2.0, 0.0], [1e-3, 0.0, 0.0]]))
      >>> t.round(5).tolist(), certificate["rank"], certificate["accepted"]
      ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 2, True)
    """
    if np.ndim(finite_numbers(m, "the matrix")) != 2:
        raise AtlasError(f"the polar factor is of a matrix, not of an array of shape {np.shape(m)}")
    rows, columns = np.flatnonzero(m.any(axis=1)), np.flatnonzero(m.any(axis=0))
    dead = {"dead_rows": m.shape[0] - rows.size, "dead_columns": m.shape[1] - columns.size}
    if not rows.size:
        return np.zeros(m.shape, np.float32), nothing() | dead
    alive = m[np.ix_(rows, columns)] if any(dead.values()) else m
    alive = alive if alive.shape[0] <= alive.shape[1] else alive.T
    wide = np.divide(alive, max(alive.max(), -alive.min()), dtype=np.float64, order="C")
    t, certificate = _solve(wide)
    t = t.astype(np.float32, copy=False)
    t = t if rows.size <= columns.size else t.T
    if not any(dead.values()):
        return t, certificate | dead
    factor = np.zeros(m.shape, np.float32)
    factor[np.ix_(rows, columns)] = t
    return factor, certificate | dead


def _solve(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """The first result that is accepted, or the last; each names the solver tried before it."""
    tried: dict[str, str] = {}
    for solver, route in ROUTES.items():
        found = route(m)
        if found is not None:
            certificate = {"solver": solver, "precision": "float64", "cut": CUT} | certify(m, found) | tried
            if certificate["accepted"]:
                break
        tried = {"escalated_from": solver}
    return found.t, certificate


def _gram_route(m: Float[np.ndarray, "p q"]) -> Factor:
    """``V diag(1/s) V^T M`` from ``M M^T = V diag(s^2) V^T``, corrected to first order.

    With ``t = (I + F) t*`` in the eigenbasis and ``diag(s)(I + F)`` symmetric, the measured ``D = t t^T - I`` gives
    ``F_ij = D_ij s_j / (s_i + s_j)``: one Lyapunov step that costs one float32 product, taken where D matters.
    """
    squares, v = scipy.linalg.eigh(m @ m.T, overwrite_a=True, check_finite=False, driver="evd")
    angle = _angle(squares[::-1], CUT**2)
    keep = squares > CUT**2 * squares[-1]
    v = np.ascontiguousarray(v[:, keep])
    t = v.T @ m
    s = np.linalg.norm(t, axis=1)
    t = (t / s[:, None]).astype(np.float32)
    excess = t @ t.T
    excess[np.diag_indices_from(excess)] -= 1
    turned = v.astype(np.float32)
    if np.linalg.norm(excess) > NEGLIGIBLE * np.sqrt(s.size):
        s32 = s.astype(np.float32)
        turned -= turned @ (excess * (s32 / (s32[:, None] + s32)))
    return Factor((turned @ t).astype(np.float64), s.max(), None if keep.all() else v, angle)


def _svd_route(m: Float[np.ndarray, "p q"]) -> Factor:
    u, s, vt = scipy.linalg.svd(m, full_matrices=False, check_finite=False)
    angle = _angle(s, CUT)
    keep = s > CUT * s[0]
    u, s, vt = np.ascontiguousarray(u[:, keep]), s[keep], vt[keep]
    return Factor(u @ vt, s[0], None if keep.all() else u, angle)


def _angle(values: Float[np.ndarray, " p"], cut: float) -> float:
    """Between the space of the values above the cut and what float64 found, by Davis and Kahan; values descend."""
    r = int(np.count_nonzero(values > cut * values[0]))
    if r == values.size:
        return 0.0
    rounding = np.finfo(float).eps * np.sqrt(values.size) * values[0]
    return float(min(1.0, rounding / (values[r - 1] - values[r])))


ROUTES = {"zolotarev": zolotarev_route, "gram_eigh": _gram_route, "svd": _svd_route}
