"""What a polar factor found on the host satisfies, and when that is good enough."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

CUT = 1e-7  # singular values up to CUT * the largest are zero
LIMITS = {"orthogonality": 1e-5, "asymmetry": 1e-4, "gap": 1e-6, "error": 1e-4, "remainder": 3e-7}
LIMITS_SINGLE = LIMITS | {"remainder": 1e-5}  # evaluated in float32
PROBES = 16


class Basis(NamedTuple):
    """An orthonormal basis of the range of M in which the rows of M are nearly orthogonal.

    Attributes:
      v: the basis ``[p, r]``, float64.
      s: norms of the rows of ``v^T M``.
      correction: F of ``t = (I + F) t*`` to first order, for the unit rows t of ``v^T M`` and their polar factor.
      doubt: by how much, in Frobenius norm, the factor in the basis may be off: the second order of ``t t^T - I``, and
        the angle to the range where singular values continue below the cut.
    """

    v: Float[np.ndarray, "p r"]
    s: Float[np.ndarray, " r"]
    correction: Float[np.ndarray, "r r"]
    doubt: float

    def factor_times(self, mx: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "p k"]:
        """The polar factor of M times x, from ``mx = M x``."""
        y = (self.v.T @ mx) / self.s[:, None]
        return self.v @ (y - self.correction @ y)


def certify(m: Float[np.ndarray, "p q"], t: Float[np.ndarray, "p q"], basis: Basis, *, solver: str) -> dict[str, Any]:
    """What ``t`` satisfies as the polar factor of ``m``, ``p <= q``, in float64.

    The gap is rigorous: ``sum(s)``, the row norms of ``v^T M`` for orthonormal ``v``, bounds the nuclear norm of
    ``v v^T M`` from above (weak duality with ``W = v diag(s) v^T``), and ``tr(T M^T)`` over the largest singular value
    of T bounds it from below. Being quadratic in the error it is blind in the directions of small singular values;
    ``error`` is not: it is the distance of T to the factor in the basis. Other norms than the gap's are estimated from
    products with Gaussian vectors, to about a fifth. ``remainder`` is the root mean square of the singular values that
    T leaves out, relative to the largest.
    """
    v, s = basis.v, basis.s
    r, missing = s.size, max(m.shape[0] - s.size, 1)
    t = np.asarray(t, np.float64)
    probes = np.random.default_rng(0)
    y, x = (probes.standard_normal((d, PROBES)) / np.sqrt(PROBES) for d in m.shape)
    ty, mx = t.T @ y, m @ x
    project = lambda z: z if r == m.shape[0] else v @ (v.T @ z)
    bound = float(s.sum())
    numbers = {
        "orthogonality": float(np.linalg.norm(t @ ty - project(y)) / np.sqrt(r)),
        "asymmetry": float(np.linalg.norm(m @ ty - t @ (m.T @ y)) / np.linalg.norm(s)),
        "gap": (bound - float(np.vdot(m, t))) / bound,
        "error": float((np.linalg.norm(t @ x - basis.factor_times(mx)) + basis.doubt) / np.sqrt(r)),
        "remainder": float(np.linalg.norm(mx - project(mx)) / np.sqrt(missing) / s.max()),
    }
    known = {"solver": solver, "precision": "float64", "rank": r, "cut": CUT, "condition": float(s.max() / s.min())}
    return known | numbers | {"accepted": acceptable(numbers)}


def acceptable(numbers: dict[str, float | None], limits: dict[str, float] = LIMITS) -> bool:
    """Whether every number was found and is within its limit.

    Example:
      >>> acceptable({"gap": 1e-9, "asymmetry": 1e-6}), acceptable({"gap": None}), acceptable({"gap": 1e-3})
      (True, False, False)
    """
    return all(value is not None and abs(value) <= limits[name] for name, value in numbers.items())


def nothing() -> dict[str, Any]:
    """The certificate of the zero matrix, whose factor is zero."""
    known = {"solver": "zero", "precision": "float64", "rank": 0, "cut": CUT, "condition": 1.0}
    return known | dict.fromkeys(LIMITS, 0.0) | {"accepted": True}
