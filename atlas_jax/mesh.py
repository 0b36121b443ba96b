"""One mesh, two axes: rows of data and columns of parameters."""

import jax
import numpy as np
from jax.sharding import Mesh


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """A ``("data", "model")`` mesh over all devices of all processes.

    Args:
      data: devices along the batch axis; all that ``model`` leaves over by default.
      model: devices along the parameter axis.

    Raises:
      ValueError: if ``data * model`` is not the number of devices.

    Example:
      >>> make_mesh().axis_names
      ('data', 'model')
    """
    devices = jax.devices()
    data = len(devices) // model if data is None else data
    if data * model != len(devices):
        raise ValueError(f"a mesh of {data} x {model} needs {data * model} devices, and there are {len(devices)}")
    return Mesh(np.array(devices).reshape(data, model), ("data", "model"))
