"""Training states on disk: one file each, complete or not there, the last two kept."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from atlas_jax.sae._train_config import TrainConfig
from atlas_jax.sae._train_step import TrainState, init_state

KEPT = 2


class Saved(NamedTuple):
    """A training state, and what belongs to it.

    Attributes:
      state: the state.
      about: plain values, such as where the activations stood.
    """

    state: TrainState
    about: Mapping[str, Any]


def save_state(directory: Path, saved: Saved) -> None:
    """Add a state to a directory and drop all but the last two; a crash at any moment leaves a complete one.

    Example:
      >>> config = TrainConfig(d_sae=4, k=1, steps=2)
      >>> save_state(tmp, Saved(init_state(config, jnp.eye(3)), {"chunk": 7}))
      >>> load_state(tmp, config, 3).about
      {'chunk': 7}
    """
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _named(jax.device_get(saved.state)).items()}
    target = directory / f"state-{int(saved.state.step):09d}.safetensors"
    partial = target.with_suffix(".partial")
    save_file(arrays, partial, metadata={"about": json.dumps(saved.about)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    for old in _files(directory)[:-KEPT]:
        old.unlink()


def load_state(directory: Path, config: TrainConfig, width: int) -> Saved | None:
    """The latest state of a directory that is whole, None where there is none.

    Args:
      directory: where :func:`save_state` wrote.
      config: of the run.
      width: of its activations.
    """
    shape = jax.ShapeDtypeStruct((config.calibration_rows, width), jnp.float32)
    like = jax.eval_shape(lambda x: init_state(config, x), shape)
    for file in reversed(_files(directory)):
        try:
            with safe_open(file, "numpy") as tensors:
                about = json.loads(tensors.metadata()["about"])
                arrays = {name: jnp.asarray(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            continue
        leaves = [arrays[name] for name in _named(like)]
        return Saved(jax.tree.unflatten(jax.tree.structure(like), leaves), about)
    return None


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("state-*.safetensors"))


def _named(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
