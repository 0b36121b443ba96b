"""The polar factor by Zolotarev's rational functions: Cholesky factors and products, without eigenvectors."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ellipj, ellipkm1

from atlas_jax.translators._polar_blas import (
    add_to_diagonal,
    gram,
    inverse,
    inverse_times,
    largest_eigenvalue,
    symmetric_times,
)
from atlas_jax.translators._polar_certificate import CUT, Factor

MARGIN = 1.2  # the largest singular value is found from below
POLES = 2, 2, 1  # in float64, then twice in float32


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
