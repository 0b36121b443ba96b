"""A Gram matrix diagonalised once where the statistics are, and powers of its pseudo-inverse."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.mesh import to_host
from atlas_jax.translators._eigen_rows import GramEigen, gram_eigen
from atlas_jax.translators._regression_rows import CUT_SINGLE
from atlas_jax.translators._ring import ring_mesh, ring_of, spread_rows
from atlas_jax.translators._solution import gram_on_devices, has_double
from atlas_jax.types_statistics import Statistics


class RowsSpectrum(NamedTuple):
    """As :class:`Spectrum`, of a Gram matrix that stays spread over the devices of a mesh, in their widest float.

    Its methods run under ``jax.enable_x64`` where the devices have float64.

    Attributes:
      values: float64 ``[r]``.
      place: of these among the vectors ``[r]``.
      vectors: as rows, one for every feature and for what fills the rows up ``[p, p]``.
      alive: which features are not dead ``[1, p]``.
      unit: as in :class:`Spectrum`.
      dead: as in :class:`Spectrum`.
      width: how many features there are, d.
      certificate: how it was found.
    """

    values: Float[np.ndarray, " r"]
    place: Int[np.ndarray, " r"]
    vectors: Float[Array, "p p"]
    alive: Bool[Array, "1 p"]
    unit: float
    dead: int
    width: int
    certificate: dict[str, Any]

    @classmethod
    def of(cls, stats: Statistics, side: str, *, normalize_rows: bool, centre: bool, cut: float) -> "RowsSpectrum":
        """Diagonalise by block Jacobi where the statistics are; otherwise as :meth:`Spectrum.of`.

        Eigenvalues up to 1e-5 times the largest count as zero where there is no float64.

        Raises:
          AtlasError: if the Gram matrix is on several devices without a ``NamedSharding``.
        """
        gram, lift = gram_on_devices(stats, side, unit=normalize_rows)
        mesh, double = ring_mesh(gram), has_double(gram)
        with jax.enable_x64(double):
            found = _diagonalise(gram, lift * (not centre), mesh)
            values = to_host(found.values)[0].astype(np.float64)
            free, peak, centred = to_host(found.free)[0], float(found.peak), float(found.centred)
            off, sweeps = float(found.off), int(found.sweeps)
        count = int(free.sum())
        rounding = np.finfo(np.float64 if double else np.float32).eps * count * values.max()
        keep = free & (values > max((cut if double else max(cut, CUT_SINGLE)) * centred, rounding))
        certificate = {
            "solver": "jacobi", "precision": "float64" if double else "float32", f"sweeps_{side}": sweeps,
            f"off_diagonal_{side}": off, "accepted": off <= (1e-9 if double else 1e-4),
        }  # fmt: skip
        unit = peak * float(values[free].mean()) if count else 0.0
        place = np.flatnonzero(keep)
        place = place[np.argsort(values[place])]
        known = unit, gram.shape[0] - count, gram.shape[0], certificate
        return cls(peak * values[place], place, found.vectors, found.alive, *known)

    def raised(self, power: float | int, ridge: float | int, m: Float[Array, "d k"]) -> Float[Array, "d k"]:
        """As :meth:`Spectrum.raised`, spread over the devices."""
        factors = self._everywhere((self.values + ridge * self.unit) ** -power)
        return _raise(self.vectors, self.alive, m, factors, self._mesh)

    def turn(self, m: Float[Array, "d k"]) -> Float[Array, "p k"]:
        """As :meth:`Spectrum.turn`, with rows of zeros for eigenvalues that do not count."""
        return _turn(self.vectors, m, self._everywhere(np.ones(len(self.values))), self._mesh)

    def basis(self) -> tuple[Float[Array, "d p"], Float[Array, " p"]]:
        """As :meth:`Spectrum.basis`, where the vectors are; those of eigenvalues that do not count are zero."""
        kept = self._everywhere(np.ones(len(self.values)))
        values = np.where(kept > 0, self._everywhere(self.values) / (self.unit or 1.0), 1.0)
        return _columns(self.vectors, kept, self.width), jnp.asarray(values, jnp.float32)

    @property
    def _mesh(self) -> Mesh:
        return ring_mesh(self.vectors)

    def _everywhere(self, numbers: Float[np.ndarray, " r"]) -> Float[np.ndarray, " p"]:
        """One number for every vector, zero for those that do not count."""
        out = np.zeros(self.vectors.shape[0], self.vectors.dtype)
        out[self.place] = numbers
        return out


@partial(jax.jit, static_argnums=2)
def _diagonalise(gram: Float[Array, "d d"], lift: Float[Array, " d"], mesh: Mesh) -> GramEigen:
    ring, rows = ring_of(mesh)
    missing = -gram.shape[0] % (2 * mesh.size)
    gram = spread_rows(jnp.pad(gram.astype(float), (0, missing)), mesh)
    work = lambda gram, lift: gram_eigen(ring, gram, lift)
    solve = jax.shard_map(work, mesh=mesh, in_specs=(rows, P()), out_specs=GramEigen.layout(mesh), check_vma=False)
    return solve(gram, jnp.pad(lift, (0, missing)).astype(float))


@partial(jax.jit, static_argnums=3)
def _turn(
    vectors: Float[Array, "p p"], m: Float[Array, "d k"], factors: Float[Array, " p"], mesh: Mesh
) -> Float[Array, "p k"]:
    """``diag(factors) V^T M``."""
    ring, rows = ring_of(mesh)
    m = spread_rows(jnp.pad(m.astype(vectors.dtype), ((0, vectors.shape[0] - m.shape[0]), (0, 0))), mesh)
    work = lambda v, m, f: f[ring.rows(v.shape[0])][:, None] * ring.inner(v, m)
    turn = jax.shard_map(work, mesh=mesh, in_specs=(rows, rows, P()), out_specs=rows, check_vma=False)
    return turn(vectors, m, factors)


@partial(jax.jit, static_argnums=4)
def _raise(
    vectors: Float[Array, "p p"], alive: Bool[Array, "1 p"], m: Float[Array, "d k"], f: Float[Array, " p"], mesh: Mesh
) -> Float[Array, "d k"]:
    """``V diag(f) V^T M``."""
    ring, rows = ring_of(mesh)
    mine = lambda alive, n: alive[0, ring.rows(n)][:, None]
    work = lambda v, alive, x: jnp.where(mine(alive, len(v)), ring.inner(ring.transpose(v), x), 0.0)
    back = jax.shard_map(work, mesh=mesh, in_specs=(rows, P(), rows), out_specs=rows, check_vma=False)
    return back(vectors, alive, _turn(vectors, m, f, mesh))[: m.shape[0]]


@partial(jax.jit, static_argnums=2)
def _columns(vectors: Float[Array, "p p"], kept: Float[Array, " p"], width: int) -> Float[Array, "d p"]:
    return (vectors * kept[:, None]).astype(jnp.float32).T[:width]
