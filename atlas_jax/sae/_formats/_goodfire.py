"""Goodfire and qresearch: one torch state dict whose file name tells model and layer.

A ReLU SAE, nothing subtracted and nothing normalised. Tensors are
``encoder_linear.*`` and ``decoder_linear.*`` (Goodfire) or ``encoder.*`` and ``decoder.*`` (qresearch), weights
output by input.
"""

import re
from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays, read_torch
from atlas_jax.types import Site

NAME = "goodfire"
_FILE = re.compile(r"(.+)-SAE-l(\d+)\.pth?")


def detect(path: Path) -> bool:
    """A file named like ``Llama-3.1-8B-Instruct-SAE-l19.pth``."""
    return _FILE.fullmatch(path.name) is not None


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters, with layer and model from the file's name."""
    del norm_scaling_factor
    state, named = read_torch(path), _FILE.fullmatch(path.name)
    prefixes = {name.rpartition(".")[0] for name in state}
    suffix = "_linear" if "encoder_linear" in prefixes else ""
    if prefixes != {f"encoder{suffix}", f"decoder{suffix}"}:
        raise AtlasError(f"{path} is not in Goodfire's layout: it holds {', '.join(state)}")
    try:
        parameters = {
            "W_enc": state[f"encoder{suffix}.weight"].T,
            "b_enc": state[f"encoder{suffix}.bias"],
            "W_dec": state[f"decoder{suffix}.weight"].T,
            "b_dec": state[f"decoder{suffix}.bias"],
        }
    except KeyError as error:
        raise AtlasError(f"{path} has no tensor {error}") from None
    d, m = parameters["W_enc"].shape
    return SAEConfig(
        "relu",
        d,
        m,
        site=None if named is None else Site("resid_post", int(named[2])),
        model=None if named is None else named[1],
        format=NAME,
    ), parameters
