"""Goodfire and qresearch: one torch state dict whose file name states model and layer.

A ReLU SAE, nothing subtracted and nothing normalised. Tensors are
``encoder_linear.*`` and ``decoder_linear.*`` (Goodfire) or ``encoder.*`` and ``decoder.*`` (qresearch), weights
output by input.
"""

from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays, last_match, pick, read_torch
from atlas_jax.types import Site

NAME = "goodfire"
_FILE = r"([^/]+)-SAE-l(\d+)\.pth?$"


def detect(path: Path) -> bool:
    """Test for a file named like ``Llama-3.1-8B-Instruct-SAE-l19.pth``."""
    return path.is_file() and last_match(_FILE, path) is not None


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters, with layer and model from the file's name."""
    del norm_scaling_factor
    state, named = read_torch(path), last_match(_FILE, path)
    prefixes = {name.rpartition(".")[0] for name in state}
    suffix = "_linear" if "encoder_linear" in prefixes else ""
    if prefixes != {f"encoder{suffix}", f"decoder{suffix}"}:
        raise AtlasError(f"{path} is not in Goodfire's layout: it holds {', '.join(state)}")
    parameters = {
        "W_enc": pick(state, f"encoder{suffix}.weight", path, 2).T,
        "b_enc": pick(state, f"encoder{suffix}.bias", path, 1),
        "W_dec": pick(state, f"decoder{suffix}.weight", path, 2).T,
        "b_dec": pick(state, f"decoder{suffix}.bias", path, 1),
    }
    d, m = parameters["W_enc"].shape
    return SAEConfig(
        "relu",
        d,
        m,
        site=None if named is None else Site("resid_post", int(named[2])),
        model=None if named is None else named[1],
        format=NAME,
    ), parameters
