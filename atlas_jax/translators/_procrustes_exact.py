"""The minimiser of Eq. 2 itself, which for ``d_s < d_c`` is not the polar factor."""

import jax
import jax.numpy as jnp

from atlas_jax.checks import as_count, as_number
from atlas_jax.mesh import mesh_of
from atlas_jax.statistics import Statistics, cross_product, gram_matrix, gram_moments
from atlas_jax.translators._procrustes import procrustes
from atlas_jax.translators._solution import Solution, solution
from atlas_jax.translators._stiefel import minimise


def procrustes_exact(
    stats: Statistics,
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    tolerance: float = 1e-6,
    max_steps: int = 100,
) -> Solution:
    """The minimiser of ``|A_s - A_c T^T|^2`` over ``T T^T = I``, Eq. 2 as written.

    For ``d_s < d_c`` the norm of ``A_c T^T`` depends on T and there is no closed form: Newton's method in a trust
    region finds a stationary point whose loss is at most the polar factor's, and the certificate bounds how far it can
    be above the global minimum, which it usually is. For ``d_s >= d_c`` the polar factor is the minimiser (over
    ``T^T T = I`` when ``d_s > d_c``, where ``T T^T = I`` has no solution), and :func:`procrustes` finds it. Dead
    features have exactly zero rows and columns. All is computed in float64 on one device.

    Args:
      stats: statistics with the needs ``"unit_cross"`` and ``"unit_atlas_gram"`` (``"cross"`` and ``"atlas_gram"``
        without ``normalize_rows``), in numpy, on one device or sharded over a mesh, be it of several processes (which
        must all call).
      normalize_rows: use rows divided by their L2 norm, as section 3.3 does.
      centre: subtract the column means (after the normalisation).
      tolerance: stop when the gradient on the manifold is this small relative to the gradient in all directions.
      max_steps: Newton steps at most; the certificate says whether it converged.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, on the mesh of the statistics; ``certificate`` with solver, precision, rank,
      steps, stationarity, whether it converged, orthogonality, gap (to the global minimum at most, relative to
      ``2 tr(T A_c^T A_s)``), the change of Eq. 2's loss from the polar factor, and whether it is accepted.

    Raises:
      AtlasError: if a need is missing, there are no rows, an option is out of range, or the Gram matrix is too large.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import Statistics, update
      >>> a_c = jnp.array([[2.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 2), a_c[:, 1:], a_c)
      >>> abs(procrustes_exact(stats, normalize_rows=False).matrix).round(3).tolist()
      [[0.0, 1.0]]
    """
    as_number(tolerance, "tolerance", least=0)
    as_count(max_steps, "max_steps")
    with jax.enable_x64(True):
        cross = cross_product(stats, unit=normalize_rows, centre=centre, one_device=True)
        gram = gram_matrix(gram_moments(stats, "atlas", unit=normalize_rows), centre=centre)
        rows, columns = int(jnp.sum(jnp.any(cross != 0, axis=1))), int(jnp.count_nonzero(jnp.diagonal(gram)))
        if rows < columns:
            t, certificate = minimise(cross, gram, tolerance=tolerance, max_steps=max_steps)
            return solution(t, mesh_of(stats), **certificate)
    found = procrustes(stats, normalize_rows=normalize_rows, centre=centre)
    return found._replace(certificate=found.certificate | {"steps": 0, "converged": True, "loss_change": 0.0})
