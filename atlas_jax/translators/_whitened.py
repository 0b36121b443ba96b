"""The whitened family: powers of both Gram matrices around the cross product."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from atlas_jax.translators._solution import Solution, cross_of, gram_of, solution
from atlas_jax.types_statistics import Statistics


def whitened(
    stats: Statistics,
    *,
    alpha: float | int = 0.5,
    beta: float | int = 0.0,
    normalize_rows: bool = True,
    centre: bool = False,
    ridge: float = 0.0,
    cut: float = 1e-7,
) -> Solution:
    """``(A_s^T A_s)^-alpha A_s^T A_c (A_c^T A_c)^-beta``; not in the paper.

    (0, 0) is covariance when centred, (0, 1) least squares, (1, 0) the reverse regression, (1/2, 1/2) canonical
    correlation. Powers are of the pseudo-inverse, so dead features have exactly zero rows and columns.

    Args:
      stats: statistics with ``"cross"``, ``"subject_gram"`` unless alpha is 0 and ``"atlas_gram"`` unless beta is 0,
        each with the prefix ``unit_`` when ``normalize_rows``.
      alpha: power of the subject side.
      beta: power of the atlas side.
      normalize_rows: use rows divided by their L2 norm.
      centre: subtract the column means (after the normalisation).
      ridge: added to each Gram matrix, in units of its mean eigenvalue.
      cut: eigenvalues up to ``cut`` times the largest of the centred Gram matrix count as zero.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``.

    Raises:
      AtlasError: if a need is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import Statistics, update
      >>> x = jnp.array([[3.0], [4.0]])
      >>> stats = update(Statistics.init(["cross", "subject_gram"], 1, 1), x, x)
      >>> whitened(stats, alpha=0.5, beta=0.0, normalize_rows=False).matrix.tolist()
      [[5.0]]
    """
    options = {"normalize_rows": normalize_rows, "centre": centre, "ridge": ridge, "cut": cut}
    return whitened_family(stats, [(alpha, beta)], **options)[alpha, beta]


def whitened_family(
    stats: Statistics,
    powers: Iterable[tuple[float | int, float | int]],
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    ridge: float = 0.0,
    cut: float = 1e-7,
) -> dict[tuple[float | int, float | int], Solution]:
    """:func:`whitened` for many ``(alpha, beta)`` from one eigendecomposition a side."""
    powers = list(powers)
    m = cross_of(stats, unit=normalize_rows, centre=centre)
    sides = {}
    for side, exponents in (("subject", {a for a, _ in powers}), ("atlas", {b for _, b in powers})):
        if exponents - {0.0}:
            gram = gram_of(stats, side, unit=normalize_rows, centre=centre)
            centred = gram if centre else gram_of(stats, side, unit=normalize_rows, centre=True)
            sides[side] = _Spectrum.of(gram, centred, ridge, cut)
    left = {a: _raise(sides.get("subject"), a, m) for a in sorted({a for a, _ in powers})}
    ranks = {f"rank_{side}": spectrum.values.size for side, spectrum in sides.items()}
    return {
        (a, b): solution(
            _raise(sides.get("atlas"), b, left[a].T).T, solver="eigh", alpha=a, beta=b, ridge=ridge, **ranks
        )
        for a, b in powers
    }


class _Spectrum(NamedTuple):
    """Eigenvalues above the cut and their vectors."""

    values: Float[np.ndarray, " r"]
    vectors: Float[np.ndarray, "n r"]

    @classmethod
    def of(
        cls, gram: Float[np.ndarray, "n n"], centred: Float[np.ndarray, "n n"], ridge: float, cut: float
    ) -> "_Spectrum":
        alive = np.flatnonzero(np.diagonal(gram) > 0)
        if not alive.size:
            return cls(np.zeros(0), np.zeros((gram.shape[0], 0)))
        values, small = scipy.linalg.eigh(gram[np.ix_(alive, alive)], check_finite=False, driver="evd")
        shift = ridge * float(values.mean())
        reference = float(np.linalg.norm(centred)) / np.sqrt(alive.size)
        keep = values > max(cut * reference, np.finfo(float).eps * alive.size * values[-1])
        vectors = np.zeros((gram.shape[0], int(keep.sum())))
        vectors[alive] = small[:, keep]
        return cls(values[keep] + shift, vectors)


def _raise(spectrum: _Spectrum | None, power: float | int, m: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """``gram^-power m``."""
    if power == 0.0 or spectrum is None:
        return m
    return spectrum.vectors @ ((spectrum.values**-power)[:, None] * (spectrum.vectors.T @ m))
