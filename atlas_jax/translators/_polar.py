"""The polar factor on the host, by Zolotarev's rational functions in BLAS."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float
from scipy.special import ellipj, ellipkm1

from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.translators._certificate import CUT, Factor, certify, nothing
from atlas_jax.translators._polar_blas import (
    add_to_diagonal,
    gram,
    inverse,
    inverse_times,
    largest_eigenvalue,
    symmetric_times,
)

MARGIN = 1.2  # the largest singular value is estimated from below
POLES = 2, 2, 1  # in float64, then twice in float32
NEGLIGIBLE = 1e-6  # relative size of D that need not be corrected


def polar(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """The partial isometry ``T = U V^T`` of ``M = U S V^T`` over the range of M, and its certificate.

    Zero rows and columns of ``m`` stay exactly zero, and singular values up to ``1e-7`` times the largest count as
    zero. Rational functions of the Gram matrix of the shorter side give T where that leaves out nothing; otherwise, or
    if the certificate is not within tolerance, the Gram matrix is diagonalised in float64; if that is not either, a
    float64 SVD is used. The certificate names the solver.

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
      >>> import numpy as np
      >>> from atlas_jax.translators import polar
      >>> t, certificate = polar(np.array([[0.0, 2.0, 0.0], [1e-3, 0.0, 0.0]]))
      >>> t.round(5).tolist(), certificate["rank"], certificate["within_tolerance"]
      ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 2, True)
    """
    if np.ndim(finite_numbers(m, "the matrix")) != 2:
        raise AtlasError(f"the polar factor is of a matrix, not of an array of shape {np.shape(m)}")
    rows, columns = np.flatnonzero(m.any(axis=1)), np.flatnonzero(m.any(axis=0))
    dead = {"dead_rows": m.shape[0] - rows.size, "dead_columns": m.shape[1] - columns.size}
    if not rows.size:
        return np.zeros(m.shape, np.float32), nothing() | dead
    nonzero = m[np.ix_(rows, columns)] if any(dead.values()) else m
    nonzero = nonzero if nonzero.shape[0] <= nonzero.shape[1] else nonzero.T
    wide = np.divide(nonzero, max(nonzero.max(), -nonzero.min()), dtype=np.float64, order="C")
    t, certificate = _solve(wide)
    t = t.astype(np.float32, copy=False)
    t = t if rows.size <= columns.size else t.T
    if not any(dead.values()):
        return t, certificate | dead
    factor = np.zeros(m.shape, np.float32)
    factor[np.ix_(rows, columns)] = t
    return factor, certificate | dead


def _solve(m: Float[np.ndarray, "p q"]) -> tuple[Float[np.ndarray, "p q"], dict[str, Any]]:
    """The first result within tolerance, or the last; each names the solver tried before it."""
    tried: dict[str, str] = {}
    for solver, route in ROUTES.items():
        factor = route(m)
        if factor is not None:
            certificate = {"solver": solver, "precision": "float64", "cut": CUT} | certify(m, factor) | tried
            if certificate["within_tolerance"]:
                break
        tried = {"escalated_from": solver}
    return factor.t, certificate


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
    basis32 = v.astype(np.float32)
    if np.linalg.norm(excess) > NEGLIGIBLE * np.sqrt(s.size):
        s32 = s.astype(np.float32)
        basis32 -= basis32 @ (excess * (s32 / (s32[:, None] + s32)))
    return Factor((basis32 @ t).astype(np.float64), s.max(), None if keep.all() else v, angle)


def _svd_route(m: Float[np.ndarray, "p q"]) -> Factor:
    u, s, vt = scipy.linalg.svd(m, full_matrices=False, check_finite=False)
    angle = _angle(s, CUT)
    keep = s > CUT * s[0]
    u, s, vt = np.ascontiguousarray(u[:, keep]), s[keep], vt[keep]
    return Factor(u @ vt, s[0], None if keep.all() else u, angle)


def _angle(values: Float[np.ndarray, " p"], cut: float) -> float:
    """Bound the angle between the space of the values above the cut and its float64 estimate (Davis and Kahan)."""
    r = int(np.count_nonzero(values > cut * values[0]))
    if r == values.size:
        return 0.0
    rounding = np.finfo(float).eps * np.sqrt(values.size) * values[0]
    return float(min(1.0, rounding / (values[r - 1] - values[r])))


class Rational(NamedTuple):
    """``Z(x) = x (constant + sum_k weights_k / (x^2 + poles_k))``.

    Attributes:
      constant: so that the maximum on [low, 1] is one.
      weights: one for each pole.
      poles: ascending.
      bottom: the minimum on [low, 1].
    """

    constant: float
    weights: tuple[float, ...]
    poles: tuple[float, ...]
    bottom: float

    def gain(self, x: float) -> float:
        """``Z(x) / x``, which falls with x."""
        return self.constant + sum(w / (x * x + c) for w, c in zip(self.weights, self.poles, strict=True))

    def gains(self, squares: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
        """``Z(H) H^-1`` of symmetric ``H^2``, whose memory it uses up: fresh memory takes as long as arithmetic."""
        total, terms = None, zip(self.weights, self.poles, strict=True)
        for k, (weight, pole) in enumerate(terms, start=1):
            term = np.divide(squares, weight, out=squares if k == len(self.poles) else None)
            add_to_diagonal(term, pole / weight)
            term = inverse(term)
            total = term if total is None else np.add(total, term, out=total)
        add_to_diagonal(total, self.constant)
        return total

    def times(
        self, squares: Float[np.ndarray, "p p"], x: Float[np.ndarray, "p q"], scale: float
    ) -> Float[np.ndarray, "p q"]:
        """``scale Z(H) H^-1 X`` for the only pole, by two triangular solves, in the memory of both arguments."""
        add_to_diagonal(squares, self.poles[0])
        term = inverse_times(squares, x, scale * self.weights[0])
        x *= x.dtype.type(scale * self.constant)
        return np.add(x, term, out=x)


def zolotarev_route(m: Float[np.ndarray, "p q"]) -> Factor | None:
    """``T = F_3 F_2 F_1 M`` with positive functions F of ``M M^T``, or None where M has not full row rank.

    Each is Zolotarev's function for what the one before leaves. ``F_1``, with two poles and in float64, brings singular
    values between ``CUT`` and one to [0.12, 1]. Such a matrix is in float32 what it is in float64: ``F_2``, with two
    poles, brings its values within 8e-3 of one, and ``F_3``, with one, to one.
    """
    squares = gram(m)
    top = MARGIN * np.sqrt(largest_eigenvalue(squares))
    squares /= top**2
    first = zolotarev(CUT / MARGIN, POLES[0])
    second = zolotarev(first.bottom, POLES[1])
    third = zolotarev(second.bottom, POLES[2])
    gains = first.gains(squares)
    if largest_eigenvalue(gains) >= first.gain(CUT / MARGIN):
        return None
    x = symmetric_times(gains, m, 1 / top).astype(np.float32)
    x = symmetric_times(second.gains(gram(x)), x)
    return Factor(third.times(gram(x), x, 2 / (1 + third.bottom)), top / MARGIN)


@lru_cache
def zolotarev(low: float, count: int) -> Rational:
    """The odd rational function of degree ``2 count + 1`` that is relatively closest to a constant on [low, 1].

    With ``c_j = (low sn / cn)^2`` at ``j K / (2 count + 1)``, of modulus ``sqrt(1 - low^2)``, it is
    ``Z(x) ~ x prod_k (x^2 + c_2k) / (x^2 + c_2k-1)`` (Nakatsukasa and Freund, 2016).

    Example:
      >>> import numpy as np
      >>> from atlas_jax.translators._polar import zolotarev
      >>> z = zolotarev(1e-3, 2)
      >>> values = [x * z.gain(x) for x in np.geomspace(1e-3, 1, 1000)]
      >>> bool(abs(max(values) - 1) < 1e-9), bool(abs(min(values) - z.bottom) < 1e-9), bool(z.bottom > 0.6)
      (True, True, True)
    """
    steps = np.arange(1, 2 * count + 1) / (2 * count + 1)
    sn, cn, _, _ = ellipj(steps * ellipkm1(low**2), 1 - low**2)
    poles, zeros = ((low * sn / cn) ** 2).reshape(count, 2).T
    others = ~np.eye(count, dtype=bool)
    weights = [np.prod(zeros - c) / np.prod(poles[row] - c) for c, row in zip(poles, others, strict=True)]
    z = Rational(1.0, tuple(map(float, weights)), tuple(map(float, poles)), 0.0)
    scale = 1 / z.gain(1.0)
    return Rational(scale, tuple(scale * w for w in z.weights), z.poles, scale * low * z.gain(low))


ROUTES = {"zolotarev": zolotarev_route, "gram_eigh": _gram_route, "svd": _svd_route}
