"""Bare parameters in one file, for SAEs that come in no known layout."""

from pathlib import Path

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import Kind, SAEConfig
from atlas_jax.sae._formats._read import Arrays, pick, read_npz, read_safetensors, read_torch
from atlas_jax.types import Site

_ALIASES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
    "w_enc": "W_enc",
    "w_dec": "W_dec",
}
_READERS = {".npz": read_npz, ".safetensors": read_safetensors, ".pt": read_torch, ".pth": read_torch}


def load_state_dict(
    file: Path, kind: Kind, apply_b_dec_to_input: bool, k: int | None, site: Site | None
) -> tuple[SAEConfig, Arrays]:
    """Read the file, name its arrays as we do, and turn the matrices by the lengths of the biases."""
    if file.suffix not in _READERS:
        raise AtlasError(f"cannot read {file}: parameters come as {', '.join(_READERS)}")
    if not file.is_file():
        raise AtlasError(f"there is no file {file}")
    arrays = {_ALIASES.get(name, name): value for name, value in _READERS[file.suffix](file).items()}
    d, m = len(pick(arrays, "b_dec", file, 1)), len(pick(arrays, "b_enc", file, 1))
    arrays["W_enc"] = _turned(arrays, "W_enc", (d, m), file)
    arrays["W_dec"] = _turned(arrays, "W_dec", (m, d), file)
    return SAEConfig(kind, d, m, k=k, apply_b_dec_to_input=apply_b_dec_to_input, site=site), arrays


def _turned(arrays: Arrays, name: str, shape: tuple[int, int], file: Path) -> np.ndarray:
    matrix = pick(arrays, name, file, 2)
    if matrix.shape not in (shape, shape[::-1]) or shape[0] == shape[1]:
        raise AtlasError(
            f"cannot tell which way round {name} of shape {matrix.shape} in {file} is, for biases of {shape}"
        )
    return matrix if matrix.shape == shape else matrix.T
