"""One mesh, two axes: rows of data and columns of parameters; and what lies on it, read back block by block."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Int, Shaped

BLOCK_BYTES = 64 * 2**20


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """A ``("data", "model")`` mesh over all devices of all processes.

    The devices of a process are neighbours, so "model" stays within a process while it can.

    Args:
      data: devices along the batch axis; all that ``model`` leaves over by default.
      model: devices along the parameter axis.

    Raises:
      ValueError: if ``data * model`` is not the number of devices.

    Example:
      >>> make_mesh().axis_names
      ('data', 'model')
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    data = len(devices) // model if data is None else data
    if data * model != len(devices):
        raise ValueError(f"a mesh of {data} x {model} needs {data * model} devices, and there are {len(devices)}")
    return Mesh(np.array(devices).reshape(data, model), ("data", "model"))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a pytree live on; None if they live on single devices."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)


def spread(shape: tuple[int, ...], mesh: Mesh | None, *axes: str | None) -> NamedSharding | None:
    """The sharding of an array whose dimensions go over these mesh axes; None without a mesh.

    A dimension that its axis does not divide evenly, or past the last axis, is kept whole.

    Example:
      >>> spread((16, 3), make_mesh(), "data", "model").spec, spread((7,), make_mesh(), "data").spec
      (P('data', 'model'), P())
    """
    if mesh is None:
        return None
    even = [axis if axis and n % mesh.shape[axis] == 0 else None for axis, n in zip(axes, shape, strict=False)]
    while even and even[-1] is None:
        even.pop()
    return NamedSharding(mesh, P(*even))


def place(x: Shaped[Array | np.ndarray, "..."], mesh: Mesh | None, *axes: str | None) -> Shaped[Array, "..."]:
    """An array that every process holds whole, or that already lies on the mesh, laid out by :func:`spread`.

    Without a mesh it goes where JAX puts it.
    """
    sharding = spread(x.shape, mesh, *axes)
    if sharding is None or sharding.is_fully_addressable or mesh_of(x) is not None:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a jitted function: the same arrays, whole on every device, so that every process can read them."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def row_blocks(
    x: Shaped[Array | np.ndarray, "n *d"], block_bytes: int = BLOCK_BYTES
) -> Iterator[Shaped[np.ndarray, "_ *d"]]:
    """The rows of an array in blocks on the host, wherever it lies; no device and no host ever holds it whole.

    Where the array spans several processes, all of them must take every block, and all get the same.

    Args:
      x: an array of at least one axis.
      block_bytes: about how large a block may be.

    Example:
      >>> [block.tolist() for block in row_blocks(jnp.arange(5), block_bytes=8)]
      [[0, 1], [2, 3], [4]]
    """
    height = max(1, block_bytes * len(x) // max(1, x.nbytes))
    for start in range(0, len(x), height):
        size = min(height, len(x) - start)
        yield x[start : start + size] if isinstance(x, np.ndarray) else np.asarray(_block(x, start, size, mesh_of(x)))


def to_host(x: Shaped[Array | np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """An array as NumPy on every process; one that spans several is fetched block by block, and all must take part.

    Example:
      >>> to_host(jnp.arange(3)).tolist()
      [0, 1, 2]
    """
    if isinstance(x, np.ndarray) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    out = np.empty(x.shape, x.dtype)
    start = 0
    for block in row_blocks(x):
        out[start : start + len(block)] = block
        start += len(block)
    return out


@partial(jax.jit, static_argnames=("size", "mesh"))
def _block(
    x: Shaped[Array, "n *d"], start: int | Int[Array, ""], size: int, mesh: Mesh | None
) -> Shaped[Array, "_ *d"]:
    block = jax.lax.dynamic_slice_in_dim(x, start, size)
    return block if mesh is None else jax.lax.with_sharding_constraint(block, NamedSharding(mesh, P()))
