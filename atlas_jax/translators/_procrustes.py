"""Orthogonal Procrustes, Eq. 2: the polar factor."""

from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from atlas_jax.translators._polar import polar
from atlas_jax.translators._polar_express import polar_express
from atlas_jax.translators._solution import Solution, cross_of, solution
from atlas_jax.types_statistics import Statistics


def procrustes(
    stats: Statistics,
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    solver: Literal["host", "device"] = "host",
) -> Solution:
    """The polar factor of ``A_s^T A_c``, the closed form given for Eq. 2.

    It maximises ``tr(T A_c^T A_s)``. For ``d_s <= d_c`` its rows are orthonormal over the range of ``A_s^T A_c``; for
    ``d_s > d_c``, where no T has orthonormal rows, its columns are. It minimises Eq. 2 when ``d_s >= d_c``; for
    ``d_s < d_c`` it does not, and ``procrustes_exact`` does. Dead features have exactly zero rows and columns.

    Args:
      stats: statistics with the need ``"unit_cross"`` (``"cross"`` without ``normalize_rows``).
      normalize_rows: use rows divided by their L2 norm, as section 3.3 does.
      centre: subtract the column means (after the normalisation), which the paper does not.
      solver: ``"host"`` diagonalises a float64 Gram matrix (relative error below 1e-6); ``"device"`` iterates matrix
        products in float32, about 2e-5 at condition 1e4 and 1e-3 at 1e6, with no duality gap in its certificate.
        When that is not accepted the host solves again, and the certificate names the solver that was used.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``; ``certificate`` with rank, orthogonality, asymmetry and duality gap.

    Raises:
      AtlasError: if the need is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import Statistics, update
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> s = procrustes(update(Statistics.init(["unit_cross"], 2, 2), x, x[:, ::-1]))
      >>> s.matrix.round(5).tolist(), s.certificate["rank"]
      ([[0.0, 1.0], [1.0, 0.0]], 2)
    """
    m = cross_of(stats, unit=normalize_rows, centre=centre)
    if solver == "device":
        t, certificate = polar_express(_scaled(m))
        if certificate["accepted"]:
            return solution(t, **certificate)
    t, certificate = polar(m)
    return solution(t, **certificate)


def _scaled(m: Float[np.ndarray, "p q"]) -> Float[jax.Array, "p q"]:
    largest = np.abs(m).max(initial=0.0)
    return jax.numpy.asarray(m / (largest or 1.0), jax.numpy.float32)
