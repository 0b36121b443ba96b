"""Several processes of one run: how they start, which rows each reads, and what they must agree on."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Num

from atlas_jax.errors import AtlasError

_TASKS = {  # what a launcher of several processes sets, and where it says how many
    "SLURM_NTASKS": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
    "TPU_WORKER_HOSTNAMES": ("TPU_WORKER_ID",),
}


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    launcher: bool = False,
) -> None:
    """Join the other processes of the run, if there are any; to be called before anything is computed.

    Under ``srun``, Open MPI and on TPUs of Kubernetes the environment says that there are others, and JAX finds them;
    elsewhere say so by ``launcher`` (on a TPU pod) or by all three arguments. Without any of these, it does nothing.

    Args:
      coordinator: ``host:port`` of process 0, which every process can reach.
      processes: how many there are.
      process_id: which this one is, from 0.
      launcher: let JAX find the others even where the environment does not say that there are any.

    Raises:
      AtlasError: if only some of the three are given, or the processes do not find each other.

    Example:
      >>> start()
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
    """Whether a launcher started more than one process."""
    for name, others in _TASKS.items():
        value = os.environ.get(name, "")
        count = int(value) if value.isdigit() else len(value.split(","))
        if count > 1 and all(other in os.environ for other in others):
            return True
    return False


def count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, which alone prints and writes files."""
    return jax.process_index() == 0


class Share(NamedTuple):
    """Which of the rows of every batch this process provides: part ``index`` of ``count`` equal ones.

    Processes whose devices hold the same rows, when "model" spans several of them, have the same share.
    """

    index: int
    count: int

    @classmethod
    def of(cls, mesh: Mesh | None) -> "Share":
        """The share of this process on a mesh; all rows without one.

        Raises:
          ValueError: if the devices of this process are no block of the mesh; make it with ``make_mesh``.

        Example:
          >>> Share.of(None)
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
      >>> gather(np.array([3, 4])).tolist()
      [[3, 4]]
    """
    return np.asarray(multihost_utils.process_allgather(x)).reshape(jax.process_count(), *x.shape)


def wait(point: str) -> None:
    """Go on when all processes have come to the point of this name."""
    multihost_utils.sync_global_devices(point)


def global_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays of which each process has its :class:`Share` of the rows, as arrays over "data" of the mesh."""
    rows = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), tree)
