"""Eigenvectors of symmetric and of Gram matrices whose rows are spread over a ring of devices, by block Jacobi."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Shaped

from atlas_jax.translators._polar_iteration import largest_singular_value
from atlas_jax.translators._ring import Ring, dot, ring_of

MOST_SWEEPS = 60
ROUNDING = 4.0  # times the precision and the root of the size: what of the norm may be left off the diagonal


class Eigen(NamedTuple):
    """``G = V diag(values) V^T``.

    Attributes:
      values: this device's, ascending over the ring.
      vectors: their vectors, as rows: ``V^T``.
      off: norm of what the last sweep found off the diagonal, relative to that of G.
      sweeps: how many there were.
    """

    values: Float[Array, " n"]
    vectors: Float[Array, "n p"]
    off: Float[Array, ""]
    sweeps: Int[Array, ""]


class GramEigen(NamedTuple):
    """Of a Gram matrix, in units of its largest entry.

    Attributes:
      values: all of them, on every device; zero for dead features.
      free: which of them belong to features that are not dead.
      vectors: this device's, as rows, in the order of ``values``.
      alive: which features are not dead, on every device.
      peak: its largest entry.
      centred: the largest eigenvalue of the centred matrix, which the mean is not in.
      off: as in :class:`Eigen`.
      sweeps: as in :class:`Eigen`.
    """

    values: Float[Array, "1 p"]
    free: Bool[Array, "1 p"]
    vectors: Float[Array, "n p"]
    alive: Bool[Array, "1 p"]
    peak: Float[Array, ""]
    centred: Float[Array, ""]
    off: Float[Array, ""]
    sweeps: Int[Array, ""]

    @classmethod
    def layout(cls, mesh: Mesh) -> "GramEigen":
        """How one lies on a mesh, for ``shard_map``."""
        rows = ring_of(mesh)[1]
        return cls(P(), P(), rows, P(), P(), P(), P(), P())


class _Blocks(NamedTuple):
    """Two blocks of rows on every device: their places, ``V^T`` and ``V^T G``."""

    place: Int[Array, "2"]
    v: Float[Array, "2 b p"]
    vg: Float[Array, "2 b p"]


def eigen(ring: Ring, gram: Float[Array, "n p"]) -> Eigen:
    """All eigenvalues and eigenvectors of a symmetric G; n is even, except on one device, which needs no ring.

    Every device diagonalises ``V^T G V`` on its two blocks of columns of V and turns them by that; then blocks move on
    as in a round-robin tournament, so that in a sweep every block meets every other. Of a pair the block with the lower
    place takes the smaller eigenvalues, so that all end in order. The number of sweeps grows with the number of
    devices, to about 14 for eight.

    Example:
      >>> import jax
      >>> from jax.sharding import Mesh, PartitionSpec as P
      >>> mesh = Mesh(jax.devices()[:1], ("rows",))
      >>> work = lambda g: eigen(Ring(("rows",), 1), g).values
      >>> jax.shard_map(work, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))(jnp.diag(jnp.array([4.0, 1.0])))
      Array([1., 4.], dtype=float32)
    """
    n, p = gram.shape
    if ring.size == 1:
        values, vectors = jnp.linalg.eigh(gram)
        return Eigen(values, vectors.T, jnp.zeros((), gram.dtype), jnp.int32(1))
    whole = ring.norm(gram)
    whole = jnp.where(whole > 0, whole, 1.0)
    enough = ROUNDING * jnp.finfo(gram.dtype).eps * p**0.5
    halves = lambda x: x.reshape(2, n // 2, p)
    places = 2 * ring.index + jnp.arange(2, dtype=jnp.int32)
    start = _Blocks(places, halves(ring.diagonal(n, jnp.ones((), gram.dtype))), halves(gram))

    def one_round(_: Int[Array, ""], state: tuple[_Blocks, Float[Array, ""]]) -> tuple[_Blocks, Float[Array, ""]]:
        blocks, square = _turn(state[0])
        return _move_on(ring, blocks), state[1] + square

    def sweep(
        state: tuple[_Blocks, Float[Array, ""], Int[Array, ""]],
    ) -> tuple[_Blocks, Float[Array, ""], Int[Array, ""]]:
        blocks, square = lax.fori_loop(0, 2 * ring.size - 1, one_round, (state[0], jnp.zeros((), gram.dtype)))
        return blocks, jnp.sqrt(ring.sum(square)) / whole, state[2] + 1

    unfinished = lambda state: (state[1] > enough) & (state[2] < MOST_SWEEPS)
    blocks, off, sweeps = lax.while_loop(unfinished, sweep, (start, jnp.ones((), gram.dtype), jnp.int32(0)))
    v, vg = blocks.v.reshape(n, p), blocks.vg.reshape(n, p)
    return Eigen(jnp.sum(v * vg, axis=1), v, off, sweeps)


def gram_eigen(ring: Ring, gram: Float[Array, "n p"], lift: Float[Array, " p"]) -> GramEigen:
    """Of ``G + v v^T`` for a centred Gram matrix G and v = ``lift``; rows of zeros are dead features.

    These are marked on the diagonal by an eigenvalue that no Gram matrix has, so that they mix with no null space.
    """
    n = gram.shape[0]
    gram = (gram + ring.transpose(gram)) / 2
    top = largest_singular_value(ring, gram)
    gram = gram + jnp.outer(lift[ring.rows(n)], lift)
    diagonal = ring.entries(gram)
    peak = lax.pmax(jnp.max(diagonal), ring.axes)
    peak = jnp.where(peak > 0, peak, 1.0)
    found = eigen(ring, gram / peak + ring.diagonal(n, jnp.where(diagonal > 0, 0.0, -1.0)))
    values, diagonal = ring.whole(jnp.stack([found.values, diagonal[:, 0]], axis=1)).T[:, None]
    free = values > -0.5
    values = jnp.where(free, jnp.maximum(values, 0.0), 0.0)
    return GramEigen(values, free, found.vectors, diagonal > 0, peak, top / peak, found.off, found.sweeps)


def _turn(blocks: _Blocks) -> tuple[_Blocks, Float[Array, ""]]:
    """Diagonalise on a pair of blocks; and the square of what was between them."""
    b, p = blocks.v.shape[1:]
    swap = blocks.place[0] > blocks.place[1]
    ordered = lambda x: jnp.where(swap, x[::-1], x)
    v, vg = (ordered(x).reshape(2 * b, p) for x in (blocks.v, blocks.vg))
    inner = dot(vg, v.T)
    inner = (inner + inner.T) / 2
    turn = jnp.linalg.eigh(inner)[1].T
    v, vg = (ordered(dot(turn, x).reshape(2, b, p)) for x in (v, vg))
    return _Blocks(blocks.place, v, vg), 2 * jnp.sum(inner[:b, b:] ** 2)


def _move_on(ring: Ring, blocks: _Blocks) -> _Blocks:
    """The next round of the tournament: the first block stays, all others go round the two rows of blocks."""
    first, last = ring.index == 0, ring.index == ring.size - 1
    right = [(i, i + 1) for i in range(ring.size - 1)]
    left = [(i + 1, i) for i in range(ring.size - 1)]

    def move(x: Shaped[Array, "2 *c"]) -> Shaped[Array, "2 *c"]:
        upper, lower = x
        from_left = lax.ppermute(jnp.where(first, lower, upper), ring.axes, right)
        from_right = lax.ppermute(lower, ring.axes, left)
        return jnp.stack([jnp.where(first, upper, from_left), jnp.where(last, upper, from_right)])

    return _Blocks(*map(move, blocks))
