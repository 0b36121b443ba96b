"""A Gram matrix diagonalised once, and powers of its pseudo-inverse."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from atlas_jax.translators._regression import largest_eigenvalue
from atlas_jax.translators._solution import gram_of
from atlas_jax.types_statistics import Statistics


class Spectrum(NamedTuple):
    """Eigenvalues of a Gram matrix above the cut, ascending, and their vectors, zero in the rows of dead features.

    Attributes:
      values: float64 ``[r]``.
      vectors: float64 ``[d, r]``.
      unit: the mean eigenvalue of the features that are not dead: what a ridge is measured in.
      dead: how many features are zero throughout.
    """

    values: Float[np.ndarray, " r"]
    vectors: Float[np.ndarray, "d r"]
    unit: float
    dead: int

    @classmethod
    def of(cls, stats: Statistics, side: str, *, normalize_rows: bool, centre: bool, cut: float) -> "Spectrum":
        """Diagonalise ``A^T A`` of one side, ``"subject"`` or ``"atlas"``, in float64.

        Eigenvalues up to ``cut`` times the largest of the *centred* Gram matrix are rounding of float32 statistics.
        """
        gram = gram_of(stats, side, unit=normalize_rows, centre=centre)
        alive = np.flatnonzero(np.diagonal(gram) > 0)
        dead = gram.shape[0] - alive.size
        if not alive.size:
            return cls(np.zeros(0), np.zeros((dead, 0)), 0.0, dead)
        values, small = scipy.linalg.eigh(gram[np.ix_(alive, alive)], check_finite=False, driver="evd")
        centred = gram if centre else gram_of(stats, side, unit=normalize_rows, centre=True)
        largest = values[-1] if centre else largest_eigenvalue(centred)
        keep = values > max(cut * largest, np.finfo(float).eps * alive.size * values[-1])
        vectors = np.zeros((gram.shape[0], int(keep.sum())))
        vectors[alive] = small[:, keep]
        return cls(values[keep], vectors, float(values.mean()), dead)

    def raised(self, power: float | int, ridge: float | int, m: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
        """``(G + ridge unit)^-power M`` over the range of G."""
        return self.vectors @ ((self.values + ridge * self.unit)[:, None] ** -power * self.turn(m))

    def turn(self, m: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "r k"]:
        """M in the eigenbasis, ``V^T M``."""
        return self.vectors.T @ m

    def basis(self) -> tuple[Float[Array, "d r"], Float[Array, " r"]]:
        """The vectors, and the values in units of ``unit``, float32 on the default device."""
        return jnp.asarray(self.vectors, jnp.float32), jnp.asarray(self.values / (self.unit or 1.0), jnp.float32)

    @property
    def certificate(self) -> dict[str, Any]:
        """How it was found."""
        return {"solver": "eigh"}
