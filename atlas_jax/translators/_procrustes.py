"""Orthogonal Procrustes, Eq. 2: the polar factor."""

from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.statistics import Statistics, cross_product
from atlas_jax.translators._polar import polar
from atlas_jax.translators._polar_express import polar_express
from atlas_jax.translators._solution import Solution, solution

Solver = Literal["auto", "host", "device"]


def procrustes(
    stats: Statistics,
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    solver: Solver = "auto",
) -> Solution:
    """The polar factor of ``A_s^T A_c``, the closed form given for Eq. 2.

    It maximises ``tr(T A_c^T A_s)``. For ``d_s <= d_c`` its rows are orthonormal over the range of ``A_s^T A_c``; for
    ``d_s > d_c``, where no T has orthonormal rows, its columns are. It minimises Eq. 2 when ``d_s >= d_c``; for
    ``d_s < d_c`` it does not, and ``procrustes_exact`` does. Dead features have exactly zero rows and columns, and
    directions of singular values up to ``1e-7`` times the largest are left out: the factor is unique on the rest only.

    Args:
      stats: statistics with the need ``"unit_cross"`` (``"cross"`` without ``normalize_rows``), in numpy, on one device
        or sharded over a mesh, also one of several processes (which must all call).
      normalize_rows: use rows divided by their L2 norm, as section 3.3 does.
      centre: subtract the column means (after the normalisation), which the paper does not.
      solver: ``"host"`` gathers them and solves by :func:`polar`; ``"device"`` iterates matrix products where the
        statistics are; ``"auto"`` is the device for sharded statistics and
        accelerators, the host otherwise. Both are within 2e-6 of a float64 SVD up to condition 1e6, except on devices
        without float64: see the certificate. A device result that misses its tolerances is solved again on
        the host if one process holds it all; the certificate then names what it escalated from.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, sharded as the statistics where the device solved; ``certificate`` with
      solver, precision, rank, orthogonality, asymmetry, duality gap, error, remainder, and whether all are
      within tolerance.

    Raises:
      AtlasError: if the need is missing, there are no rows, or the solver is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import procrustes
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> s = procrustes(update(Statistics.init(["unit_cross"], 2, 2), x, x[:, ::-1]))
      >>> s.matrix.round(5).tolist(), s.certificate["rank"]
      ([[0.0, 1.0], [1.0, 0.0]], 2)
    """
    options = {"unit": normalize_rows, "centre": centre}
    if not _on_devices(solver, stats.cross.unit if normalize_rows else stats.cross.raw):
        return _on_host(stats, **options)
    t, certificate = polar_express(cross_product(stats, **options))
    if certificate["within_tolerance"] or not t.is_fully_addressable:
        return solution(t, **certificate)
    on_host = _on_host(stats, **options)
    return on_host._replace(certificate=on_host.certificate | {"escalated_from": certificate["solver"]})


def _on_host(stats: Statistics, *, unit: bool, centre: bool) -> Solution:
    t, certificate = polar(np.asarray(cross_product(stats, unit=unit, centre=centre, one_device=True)))
    return solution(t, **certificate)


def _on_devices(solver: Solver, m: Float[Array | np.ndarray, "p q"] | None) -> bool:
    """Return true if ``solver`` is the devices; "auto" is for an array that spans several or is on an accelerator."""
    if solver not in (known := get_args(Solver)):
        raise AtlasError(f"unknown solver '{solver}'; use {', '.join(known)}")
    if solver != "auto":
        return solver == "device"
    if not isinstance(m, jax.Array):
        return False
    return {device.platform for device in m.sharding.device_set} != {"cpu"} or not m.sharding.is_fully_replicated
