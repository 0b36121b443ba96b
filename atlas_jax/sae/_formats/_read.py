"""Reading the files that SAEs are stored in, with one clear sentence when they cannot be read."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from atlas_jax.errors import AtlasError

Arrays = dict[str, np.ndarray]


def read_npz(path: Path) -> Arrays:
    """The float32 arrays of an npz file; pickled objects are refused."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with archive:
            return {name: _float32(archive[name]) for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise AtlasError(f"cannot read {path}: {error}") from None


def read_safetensors(path: Path) -> Arrays:
    """The arrays of a safetensors file, floats of any width as float32."""
    try:
        with safe_open(path, framework="flax") as archive:
            return {name: _float32(np.asarray(archive.get_tensor(name))) for name in archive.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise AtlasError(f"cannot read {path}: {error}") from None


def read_torch(path: Path) -> dict[str, Any]:
    """The state dict in a torch file, tensors as arrays, read with ``weights_only`` so that no code in it can run."""
    try:
        import torch
    except ImportError:
        raise AtlasError(f"{path} is a torch file: install torch to read it (pip install torch)") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a bad file, none documented
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AtlasError(f"cannot read {path} as plain torch weights: {reason}") from None
    if not isinstance(state, dict):
        raise AtlasError(f"{path} should hold a state dict, it holds a {type(state).__name__}")
    return {name: _from_torch(value) for name, value in state.items()}


def _from_torch(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    return (value.float() if value.is_floating_point() else value).detach().numpy()


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind in "fV" and array.dtype != np.float32 else array


def pick(arrays: Mapping[str, Any], name: str, where: Path, ndim: int | None = None) -> np.ndarray:
    """One array by name, or a sentence naming what the file has instead or what is wrong with it."""
    if name not in arrays:
        raise AtlasError(f"{where} has no tensor '{name}'; it has {', '.join(map(str, arrays))}")
    array = np.asarray(arrays[name]) if isinstance(arrays[name], int | float) else arrays[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise AtlasError(f"'{name}' in {where} should be an array of numbers")
    if ndim is not None and array.ndim != ndim:
        raise AtlasError(f"'{name}' in {where} should have {ndim} axes, its shape is {array.shape}")
    if not np.isfinite(array).all():
        raise AtlasError(f"'{name}' in {where} holds numbers that are not finite; the file is damaged")
    return array
