"""Dense algebra on matrices whose rows are spread over every device of a mesh, none of which ever holds a whole one.

Each function runs inside ``jax.shard_map`` on its own ``n = p / devices`` rows. Blocks of rows travel in a ring.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from atlas_jax.errors import AtlasError

PANEL = 256  # rows eliminated at a time


class Ring(NamedTuple):
    """The devices that share the rows.

    Attributes:
      axes: mesh axes, major first.
      size: devices along them.
    """

    axes: tuple[str, ...]
    size: int

    @property
    def index(self) -> Int[Array, ""]:
        """This device's place."""
        return lax.axis_index(self.axes)

    def outer(self, a: Float[Array, "n k"], b: Float[Array, "m k"]) -> Float[Array, "n q"]:
        """``A B^T``."""
        m = b.shape[0]
        put = lambda j, block, out: lax.dynamic_update_slice_in_dim(out, dot(a, block.T), j * m, 1)
        return self._round(put, b, jnp.zeros((a.shape[0], m * self.size), a.dtype))

    def inner(self, a: Float[Array, "n q"], b: Float[Array, "m k"]) -> Float[Array, "n k"]:
        """``A B``."""
        m = b.shape[0]
        add = lambda j, block, out: out + dot(lax.dynamic_slice_in_dim(a, j * m, m, 1), block)
        return self._round(add, b, jnp.zeros((a.shape[0], b.shape[1]), b.dtype))

    def transpose(self, a: Float[Array, "n p"]) -> Float[Array, "n p"]:
        """``A^T`` of a square A."""
        return lax.all_to_all(a.T, self.axes, 0, 1, tiled=True)

    def norm(self, a: Float[Array, "n k"]) -> Float[Array, ""]:
        """Frobenius norm."""
        return jnp.sqrt(self.dot(a, a))

    def dot(self, a: Float[Array, "n k"], b: Float[Array, "n k"]) -> Float[Array, ""]:
        """``tr(A^T B)``."""
        return self.sum(jnp.sum(a * b))

    def sum(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Sum over the devices."""
        return lax.psum(x, self.axes)

    def whole(self, x: Shaped[Array, "n *k"]) -> Shaped[Array, "p *k"]:
        """All rows of a vector or a small matrix."""
        return lax.all_gather(x, self.axes, tiled=True)

    def diagonal(self, n: int, value: Float[Array, ""] | Float[Array, "n 1"]) -> Float[Array, "n p"]:
        """Rows of ``value * I``, or of the diagonal matrix of which these are the local entries."""
        columns = jnp.arange(n * self.size, dtype=jnp.int32)
        return jnp.where(self.rows(n)[:, None] == columns[None, :], value, jnp.zeros_like(value))

    def entries(self, a: Float[Array, "n p"]) -> Float[Array, "n 1"]:
        """The local entries of the diagonal of a square A."""
        return jnp.take_along_axis(a, self.rows(a.shape[0])[:, None], axis=1)

    def whiten(self, w: Float[Array, "n p"], b: Float[Array, "n k"], block: int) -> Float[Array, "n k"]:
        """``L^-1 B`` for ``W = L L^T``, NaN where W is not positive definite; ``block`` divides n.

        Right-looking elimination of ``[W | B]``: each panel is broadcast, factorised everywhere, and its multiples
        are subtracted from the rows below.
        """
        n, p = w.shape
        rows = self.rows(n)

        def eliminate(panel: Int[Array, ""], a: Float[Array, "n c"]) -> Float[Array, "n c"]:
            first = panel.astype(jnp.int32) * block
            pivot, keep = self._panel(a, first, block)
            pivot = dot(_inverse_root(lax.dynamic_slice_in_dim(pivot, first, block, 1)), pivot)
            multiples = lax.dynamic_slice_in_dim(pivot, self.index * n, n, 1).T
            below = jnp.where((rows >= first + block)[:, None], multiples, jnp.zeros_like(multiples))
            return keep(a - dot(below, pivot), pivot)

        return lax.fori_loop(0, p // block, eliminate, jnp.concatenate([w, b], axis=1))[:, p:]

    def inverse(self, w: Float[Array, "n p"], block: int) -> Float[Array, "n p"]:
        """``W^-1`` of a symmetric W, NaN where it is not positive definite; ``block`` divides n.

        Gauss-Jordan in place: each panel is broadcast and divided by its diagonal block P, which itself becomes
        ``P^-1``, and its multiples are subtracted from all other rows, which then hold the inverse so far.
        """

        def sweep(panel: Int[Array, ""], a: Float[Array, "n p"]) -> Float[Array, "n p"]:
            first = panel.astype(jnp.int32) * block
            pivot, keep = self._panel(a, first, block)
            root = _inverse_root(lax.dynamic_slice_in_dim(pivot, first, block, 1))
            pivot = lax.dynamic_update_slice_in_dim(pivot, jnp.eye(block, dtype=w.dtype), first, 1)
            pivot = dot(root.T, dot(root, pivot))
            column = lax.dynamic_slice_in_dim(a, first, block, 1)
            a = lax.dynamic_update_slice_in_dim(a, jnp.zeros_like(column), first, 1)
            return keep(a - dot(column, pivot), pivot)

        return lax.fori_loop(0, w.shape[1] // block, sweep, w)

    def _panel(
        self, a: Float[Array, "n c"], first: Int[Array, ""], block: int
    ) -> tuple[Float[Array, "b c"], Callable[..., Float[Array, "n c"]]]:
        """The ``block`` rows from number ``first`` on, on every device, and what puts rows back in their place."""
        n = a.shape[0]
        local = jnp.clip(first - self.index * n, 0, n - block)
        here = first // n == self.index
        mine = lax.dynamic_slice_in_dim(a, local, block)
        put = lambda a, rows: jnp.where(here, lax.dynamic_update_slice_in_dim(a, rows, local, 0), a)
        return self.sum(jnp.where(here, mine, jnp.zeros_like(mine))), put

    def rows(self, n: int) -> Int[Array, " n"]:
        """Numbers of this device's rows."""
        return self.index * n + jnp.arange(n, dtype=jnp.int32)

    def _round(
        self, use: Callable[..., Float[Array, "n c"]], b: Float[Array, "m k"], out: Float[Array, "n c"]
    ) -> Float[Array, "n c"]:
        """Let every block of rows of B pass by: ``use(its place, the block, out)``."""
        ring = [(i, (i - 1) % self.size) for i in range(self.size)]
        step = lambda i, block, out: use((self.index + jnp.asarray(i, jnp.int32)) % self.size, block, out)

        def pass_on(
            i: Int[Array, ""], state: tuple[Float[Array, "m k"], Float[Array, "n c"]]
        ) -> tuple[Float[Array, "m k"], Float[Array, "n c"]]:
            block, out = state
            return lax.ppermute(block, self.axes, ring), step(i, block, out)

        block, out = lax.fori_loop(0, self.size - 1, pass_on, (b, out))
        return step(self.size - 1, block, out)


def ring_mesh(m: Float[Array, "p q"]) -> Mesh:
    """The mesh over whose devices the rows of ``m`` are to be spread.

    Raises:
      AtlasError: if ``m`` is on several devices without a ``NamedSharding``.
    """
    if isinstance(m.sharding, NamedSharding):
        return m.sharding.mesh
    if len(m.sharding.device_set) > 1:
        raise AtlasError(f"a matrix on {len(m.sharding.device_set)} devices needs a NamedSharding, not {m.sharding}")
    return Mesh(np.array(list(m.sharding.device_set)), ("rows",))


def ring_of(mesh: Mesh) -> tuple[Ring, P]:
    """All devices of a mesh, and how a matrix lies whose rows they share."""
    return Ring(mesh.axis_names, mesh.size), P(mesh.axis_names, None)


def spread_rows(x: Float[Array, "p k"], mesh: Mesh) -> Float[Array, "p k"]:
    """Inside a jitted function: the same matrix, its rows over all devices of the mesh."""
    return lax.with_sharding_constraint(x, NamedSharding(mesh, ring_of(mesh)[1]))


def _inverse_root(w: Float[Array, "b b"]) -> Float[Array, "b b"]:
    """``L^-1`` of ``W = L L^T``."""
    return jsl.solve_triangular(jnp.linalg.cholesky(w), jnp.eye(len(w), dtype=w.dtype), lower=True)


def dot(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """``A B`` at the highest precision."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)
