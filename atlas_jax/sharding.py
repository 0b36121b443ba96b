"""One mesh of two axes (rows of data, columns of parameters), arrays on it, and the processes that share it."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Int, Num, Shaped

from atlas_jax.errors import AtlasError

AnyMesh = Mesh | AbstractMesh | None  # of devices that need not be there, where nothing is computed
BLOCK_BYTES = 64 * 2**20
_TASKS = {  # the number of processes that a launcher sets, and variables beside it
    "SLURM_NTASKS": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
    "TPU_WORKER_HOSTNAMES": ("TPU_WORKER_ID",),
}
RULES: tuple[tuple[str, P], ...] = (
    ("q_proj.weight", P(None, "model")),
    ("k_proj.weight", P(None, "model")),
    ("v_proj.weight", P(None, "model")),
    ("o_proj.weight", P("model", None)),
    ("gate_proj.weight", P(None, "model")),
    ("up_proj.weight", P(None, "model")),
    ("down_proj.weight", P("model", None)),
    ("lm_head.weight", P(None, "model")),
    ("embed_tokens.weight", P("model", None)),
)


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """A ``("data", "model")`` mesh over all devices of all processes.

    The devices of a process are neighbours, so "model" stays within a process while it can.

    Args:
      data: devices along the batch axis; all that ``model`` leaves over by default.
      model: devices along the parameter axis.

    Raises:
      ValueError: if ``data * model`` is not the number of devices.

    Example:
      >>> from atlas_jax import make_mesh
      >>> make_mesh().axis_names
      ('data', 'model')
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    data = len(devices) // model if data is None else data
    if data * model != len(devices):
        raise ValueError(f"a mesh of {data} x {model} needs {data * model} devices, and there are {len(devices)}")
    return Mesh(np.array(devices).reshape(data, model), ("data", "model"))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a pytree live on; None if they live on single devices.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import make_mesh
      >>> from atlas_jax.sharding import device_put, mesh_of
      >>> mesh = make_mesh()
      >>> mesh_of({"a": device_put(jnp.ones(3), mesh)}) == mesh, mesh_of(jnp.ones(3))
      (True, None)
    """
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)


def sharding_for(shape: tuple[int, ...], mesh: AnyMesh, *axes: str | None) -> NamedSharding | None:
    """The sharding of an array whose dimensions go over these mesh axes; None without a mesh.

    A dimension that its axis does not divide evenly, or past the last axis, is kept whole.

    Example:
      >>> from atlas_jax import make_mesh
      >>> from atlas_jax.sharding import sharding_for
      >>> sharding_for((16, 3), make_mesh(), "data", "model").spec, sharding_for((16, 3), None, "data")
      (P('data', 'model'), None)
    """
    if mesh is None:
        return None
    even = [axis if axis and n % mesh.shape[axis] == 0 else None for axis, n in zip(axes, shape, strict=False)]
    while even and even[-1] is None:
        even.pop()
    return NamedSharding(mesh, P(*even))


def device_put(x: Shaped[Array | np.ndarray, "..."], mesh: Mesh | None, *axes: str | None) -> Shaped[Array, "..."]:
    """Lay an array out by :func:`sharding_for`; every process holds it whole, or it already lies on the mesh.

    Without a mesh it goes where JAX puts it.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import make_mesh
      >>> from atlas_jax.sharding import device_put
      >>> x = device_put(jnp.ones((16, 3)), make_mesh(), "data")
      >>> x.sharding.spec, device_put(jnp.ones(2), None).tolist()
      (P('data',), [1.0, 1.0])
    """
    sharding = sharding_for(x.shape, mesh, *axes)
    if sharding is None or sharding.is_fully_addressable or mesh_of(x) is not None:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Replicate arrays on every device, inside a jitted function, so that every process can read them.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from atlas_jax import make_mesh
      >>> from atlas_jax.sharding import device_put, replicate
      >>> mesh = make_mesh()
      >>> x = device_put(jnp.arange(16.0), mesh, "data")
      >>> jax.jit(lambda x: replicate(x + 1, mesh))(x).sharding.is_fully_replicated
      True
    """
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def row_blocks(
    x: Shaped[Array | np.ndarray, "n *d"], block_bytes: int = BLOCK_BYTES
) -> Iterator[Shaped[np.ndarray, "_ *d"]]:
    """Yield the rows of an array in blocks on the host; no device and no host ever holds it whole.

    Where the array spans several processes, all of them must take every block, and all get the same.

    Args:
      x: an array of at least one axis.
      block_bytes: about how large a block may be.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sharding import row_blocks
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
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sharding import to_host
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


def join_processes(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    launcher: bool = False,
) -> None:
    """Join the other processes of the run, if there are any, before anything is computed.

    Under ``srun``, Open MPI and on TPUs of Kubernetes the environment names the others, and JAX finds them;
    elsewhere give ``launcher`` (on a TPU pod) or all three arguments. Without any of these, it does nothing.

    Args:
      coordinator: ``host:port`` of process 0, which every process can reach.
      processes: how many there are.
      process_id: which this one is, from 0.
      launcher: let JAX find the others even where the environment names none.

    Raises:
      AtlasError: if only some of the three are given, or the processes do not find each other.

    Example:
      >>> import jax
      >>> from atlas_jax.sharding import join_processes
      >>> join_processes()
      >>> jax.process_count()
      1
    """
    given = [x is not None for x in (coordinator, processes, process_id)]
    if any(given) and not all(given):
        raise AtlasError("give all of --coordinator, --processes and --process-id, or none of them under a launcher")
    if not (any(given) or launcher or _launched()):
        return
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except (RuntimeError, ValueError) as e:
        raise AtlasError(f"the processes of this run did not find each other ({e}); check the coordinator") from e


def _launched() -> bool:
    """Return true if a launcher started more than one process."""
    for name, others in _TASKS.items():
        value = os.environ.get(name, "")
        count = int(value) if value.isdigit() else len(value.split(","))
        if count > 1 and all(other in os.environ for other in others):
            return True
    return False


def is_first() -> bool:
    """Return true on process 0, which alone prints and writes files.

    Example:
      >>> from atlas_jax.sharding import is_first
      >>> is_first()
      True
    """
    return jax.process_index() == 0


class Share(NamedTuple):
    """The part of the rows of every batch that this process provides: part ``index`` of ``count`` equal ones.

    Processes whose devices hold the same rows, when "model" spans several of them, have the same share.

    Example:
      >>> from atlas_jax.sharding import Share
      >>> rows = list(range(6))
      >>> share = Share(index=1, count=3)
      >>> rows[share.index :: share.count]
      [1, 4]
    """

    index: int
    count: int

    @classmethod
    def from_mesh(cls, mesh: Mesh | None) -> "Share":
        """The share of this process on a mesh; all rows without one.

        Raises:
          ValueError: if the devices of this process are no block of the mesh; make it with ``make_mesh``.

        Example:
          >>> from atlas_jax.sharding import Share
          >>> Share.from_mesh(None)
          Share(index=0, count=1)
        """
        if mesh is None:
            return cls(0, 1)
        here = [any(d.process_index == jax.process_index() for d in row) for row in mesh.devices]
        rows = np.flatnonzero(here)
        index, rest = divmod(int(rows[0]), len(rows))
        if rest or len(here) % len(rows) or np.any(np.diff(rows) != 1):
            raise ValueError("the devices of a process are not neighbours on this mesh; make one with make_mesh")
        return cls(index, len(here) // len(rows))


def gather(x: Num[np.ndarray, "*n"]) -> Num[np.ndarray, "p *n"]:
    """A small array of every process, stacked in their order; all must call it.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sharding import gather
      >>> gather(np.array([3, 4])).tolist()
      [[3, 4]]
    """
    return np.asarray(multihost_utils.process_allgather(x)).reshape(jax.process_count(), *x.shape)


def wait_for_all(point: str) -> None:
    """Wait until all processes have come to the point of this name.

    Example:
      >>> from atlas_jax.sharding import wait_for_all
      >>> wait_for_all("the files are written")
    """
    multihost_utils.sync_global_devices(point)


def global_rows(tree: Any, mesh: Mesh) -> Any:
    """Make arrays over "data" of the mesh from arrays of which each process has its :class:`Share` of the rows.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import make_mesh
      >>> from atlas_jax.sharding import global_rows
      >>> batch = global_rows({"x": np.arange(16)}, make_mesh())
      >>> batch["x"].shape, batch["x"].sharding.spec
      ((16,), P('data',))
    """
    rows = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), tree)


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: AnyMesh) -> jax.sharding.Sharding:
    """The sharding of one parameter; axes that do not divide evenly are kept whole.

    Example:
      >>> from atlas_jax.sharding import parameter_sharding
      >>> parameter_sharding("layers.0.mlp.up_proj.weight", (8, 16), None).num_devices
      1
    """
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    spec = next((spec for suffix, spec in RULES if path.endswith(suffix)), P())
    sizes = [1 if axis is None else mesh.shape[axis] for axis in spec]
    axes = [axis if n % size == 0 else None for axis, n, size in zip(spec, shape, sizes, strict=False)]
    return NamedSharding(mesh, P(*axes))
