"""A Gram matrix diagonalised once, and powers of its pseudo-inverse."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from atlas_jax.statistics import Statistics, gram_matrix, gram_moments

POWER_STEPS = 30


class Spectrum(NamedTuple):
    """Eigenvalues of a Gram matrix above the cut, ascending, and their vectors, zero in the rows of dead features.

    All is float64 on one device; its methods run under ``jax.enable_x64(True)``.

    Attributes:
      values: ``[r]``, on the host.
      vectors: ``[d, r]``.
      unit: the mean eigenvalue of the features that are not dead: the unit of a ridge.
      dead: how many features are zero throughout.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import Spectrum
      >>> x = jnp.array([[3.0, 0.0], [0.0, 2.0]])
      >>> stats = update(Statistics.init(["atlas_gram"], 2, 2), x, x)
      >>> Spectrum.from_statistics(stats, "atlas", normalize_rows=False, centre=False, cut=1e-7).values.tolist()
      [4.0, 9.0]
    """

    values: Float[np.ndarray, " r"]
    vectors: Float[Array, "d r"]
    unit: float
    dead: int

    @classmethod
    def from_statistics(
        cls, stats: Statistics, side: str, *, normalize_rows: bool, centre: bool, cut: float
    ) -> "Spectrum":
        """Diagonalise ``A^T A`` of one side, ``"subject"`` or ``"atlas"``.

        Eigenvalues up to ``cut`` times the largest of the *centred* Gram matrix are rounding of float32 statistics.
        """
        with jax.enable_x64(True):
            moments = gram_moments(stats, side, unit=normalize_rows)
            gram = gram_matrix(moments, centre=centre)
            on_device, vectors = eigh(gram)
            values, nonzero = np.asarray(on_device), int(jnp.count_nonzero(jnp.diagonal(gram)))
            largest = values[-1] if centre else float(largest_eigenvalue(gram_matrix(moments, centre=True)))
            rank = int(np.sum(values > max(cut * largest, np.finfo(float).eps * nonzero * values[-1])))
            unit = float(jnp.trace(gram)) / max(nonzero, 1)
            return cls(values[len(values) - rank :], vectors[:, len(values) - rank :], unit, len(values) - nonzero)

    def apply_power(self, power: float | int, ridge: float | int, m: Float[Array, "d k"]) -> Float[Array, "d k"]:
        """Return ``(G + ridge unit)^-power M`` over the range of G."""
        return _apply(self.vectors, (self.values + ridge * self.unit) ** -power, m)

    def in_basis(self, m: Float[Array, "d k"]) -> Float[Array, "r k"]:
        """Return M in the eigenbasis, ``V^T M``."""
        return self.vectors.T @ m


@jax.jit
def eigh(gram: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, ascending, and vectors of a symmetric matrix; rows of zeros stay exactly zero in the vectors."""
    values, vectors = jnp.linalg.eigh(gram)
    return values, jnp.where((jnp.diagonal(gram) != 0)[:, None], vectors, 0.0)


@jax.jit
def largest_eigenvalue(gram: Float[Array, "d d"]) -> Float[Array, ""]:
    """The largest eigenvalue by power iteration: a lower bound, close for a Gram matrix."""

    def step(
        _: Int[Array, ""], state: tuple[Float[Array, " d"], Float[Array, ""]]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        x = state[0] / jnp.maximum(jnp.linalg.norm(state[0]), jnp.finfo(gram.dtype).tiny)
        y = gram @ x
        return y, x @ y

    start = jax.random.normal(jax.random.key(0), gram.shape[:1], gram.dtype)
    return lax.fori_loop(0, POWER_STEPS, step, (start, jnp.zeros((), gram.dtype)))[1]


@jax.jit
def _apply(vectors: Float[Array, "d r"], f: Float[Array, " r"], m: Float[Array, "d k"]) -> Float[Array, "d k"]:
    return vectors @ (f[:, None] * (vectors.T @ m))
