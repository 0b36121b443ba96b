"""The certificate of a polar factor computed on the host, and its tolerances."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from atlas_jax.translators._polar_blas import lower_product, product, smallest_eigenvalue

CUT = 1e-7  # singular values up to CUT * the largest are zero
LIMITS = {"orthogonality": 1e-5, "asymmetry": 1e-4, "gap": 1e-6, "error": 1e-4, "remainder": 3e-7}
LIMITS_SINGLE = LIMITS | {"remainder": 1e-5}  # evaluated in float32
PROBES = 16  # Gaussian vectors that a norm is estimated from, to about a fifth


class Factor(NamedTuple):
    """The polar factor of M as a solver gives it.

    Attributes:
      t: the polar factor ``[p, q]``.
      largest: singular value of M.
      basis: of the range of M, orthonormal ``[p, r]``, or None where M has full row rank.
      angle: by how much that range, in Frobenius norm, may be off.
    """

    t: Float[np.ndarray, "p q"]
    largest: float
    basis: Float[np.ndarray, "p r"] | None = None
    angle: float = 0.0


def certify(m: Float[np.ndarray, "p q"], factor: Factor) -> dict[str, Any]:
    """Return how well ``factor.t`` is the polar factor of ``m`` over the range, ``p <= q``, in float64.

    In a basis of the range let W be the symmetric matrix with the lower triangle of ``M T^T``. It is ``L L^T`` only if
    T turns no direction round; then ``|M|_* <= (tr W + tr W^-1 M M^T) / 2`` by weak duality, and ``gap`` is how far
    ``tr M T^T`` stays below that, relative to it. Being quadratic in the error the gap is blind in the directions of
    small singular values; ``error``, ``|L^-1 K L^-T| / 2`` for ``K = M T^T - T M^T``, is not: it bounds, to first
    order, the distance to the exact factor, at condition 1e6 by up to a hundred times. Traces and Frobenius norms are
    estimated from products with Gaussian vectors.

    Args:
      m: any real matrix in C order.
      factor: the claimed factor. W is computed in the precision of ``factor.t``, all else in float64.

    Returns:
      rank; condition over the range, within a tenth; orthogonality ``|T T^T - P| / |P|``; asymmetry of ``M T^T``,
      relative; gap; error, relative; remainder, the root mean square of the singular values left out, relative to the
      largest; within_tolerance, of all of them. A number is None where W is not positive definite.
    """
    m_in, t_in, leak = _in_basis(m, factor)
    numbers = dict.fromkeys(LIMITS) | {"remainder": _remainder(m, factor)}
    condition, dtype = None, factor.t.dtype
    weight = lower_product(m_in.astype(dtype, copy=False), t_in.astype(dtype, copy=False))
    trace = float(np.trace(weight))
    (potrf,) = get_lapack_funcs(("potrf",), (weight,))
    root, failed = potrf(weight, lower=1, clean=0, overwrite_a=1)
    if not failed:
        condition = float(factor.largest / smallest_eigenvalue(root))
        numbers |= _weigh(m_in, t_in.astype(np.float64, copy=False), root, trace)
        numbers["orthogonality"] = float(np.hypot(numbers["orthogonality"], leak))
        numbers["error"] += float(factor.angle / np.sqrt(len(m_in)))
    numbers = {name: value if value is not None and np.isfinite(value) else None for name, value in numbers.items()}
    return {"rank": len(m_in), "condition": condition} | numbers | {"within_tolerance": within_limits(numbers)}


def _weigh(
    m: Float[np.ndarray, "r q"], t: Float[np.ndarray, "r q"], root: Float[np.ndarray, "r r"], trace: float
) -> dict[str, float]:
    """Orthogonality, asymmetry, gap and error of T for M of full row rank, from ``W = L L^T``, L = root, and its trace.

    The gap is ``(|L^-1 (M - W T)|^2 + tr W (I - T T^T)) / 2``.
    """
    trsm, trmm = get_blas_funcs(("trsm", "trmm"), (root,))
    size = lambda x: float(np.sqrt(np.square(x).sum()))
    unit = float(np.sqrt(len(m)))
    y = np.random.default_rng(0).standard_normal((len(m), PROBES)) / np.sqrt(PROBES)
    z, ly = trsm(1.0, root, y, lower=1, trans_a=1), trmm(1.0, root, y, lower=1)
    (mt_y, mt_z), (tt_y, tt_z, tt_ly) = (_columns(x.T, *of) for x, of in ((m, (y, z)), (t, (y, z, ly))))
    (m_tt_y, m_tt_z), (t_mt_y, t_mt_z, t_tt_y) = _columns(m, tt_y, tt_z), _columns(t, mt_y, mt_z, tt_y)
    gap = (size(mt_z - tt_ly) ** 2 + size(ly) ** 2 - size(tt_ly) ** 2) / 2
    return {
        "orthogonality": size(t_tt_y - y) / unit,
        "asymmetry": size(m_tt_y - t_mt_y) / size(m_tt_y),
        "gap": gap / (trace + gap),
        "error": size(trsm(1.0, root, m_tt_z - t_mt_z, lower=1)) / 2 / unit,
    }


def _columns(a: Float[np.ndarray, "m k"], *blocks: Float[np.ndarray, "k n"]) -> list[Float[np.ndarray, "m n"]]:
    """A times each block, in one product."""
    return np.hsplit(product(a, np.hstack(blocks)), len(blocks))


def _in_basis(
    m: Float[np.ndarray, "p q"], factor: Factor
) -> tuple[Float[np.ndarray, "r q"], Float[np.ndarray, "r q"], float]:
    """M and T in the basis of the range, and the relative size of the part of T outside it."""
    t, v = factor.t, factor.basis
    if v is None:
        return m, t, 0.0
    inside = v.T @ t
    return v.T @ m, inside, float(np.linalg.norm(t - v @ inside) / np.sqrt(v.shape[1]))


def _remainder(m: Float[np.ndarray, "p q"], factor: Factor) -> float:
    v = factor.basis
    if v is None:
        return 0.0
    mx = m @ np.random.default_rng(1).standard_normal((m.shape[1], PROBES)) / np.sqrt(PROBES)
    return float(np.linalg.norm(mx - v @ (v.T @ mx)) / np.sqrt(max(m.shape[0] - v.shape[1], 1)) / factor.largest)


def within_limits(numbers: dict[str, float | None], limits: dict[str, float] = LIMITS) -> bool:
    """Return true if every number exists and is within its limit.

    Example:
      >>> from atlas_jax.translators._certificate import within_limits
      >>> within_limits({"gap": 1e-9, "asymmetry": 1e-6}), within_limits({"gap": None}), within_limits({"gap": 1e-3})
      (True, False, False)
    """
    return all(value is not None and abs(value) <= limits[name] for name, value in numbers.items())


def nothing() -> dict[str, Any]:
    """The certificate of the zero matrix, whose factor is zero."""
    known = {"solver": "zero", "precision": "float64", "rank": 0, "cut": CUT, "condition": 1.0}
    return known | dict.fromkeys(LIMITS, 0.0) | {"within_tolerance": True}
