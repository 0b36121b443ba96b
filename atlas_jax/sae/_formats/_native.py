"""Our own layout: ``sae.json``, the whole description, and ``sae.safetensors``, the parameters as they are in memory.

It holds every kind of SAE exactly; nothing is told by a path.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays, read_json, read_safetensors
from atlas_jax.types import Site

NAME = "native"
_SITES = ("site", "site_out")


def detect(path: Path) -> bool:
    """A folder with ``sae.json`` and ``sae.safetensors``."""
    return (path / "sae.json").is_file() and (path / "sae.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters and description."""
    del norm_scaling_factor
    told = read_json(path / "sae.json")
    try:
        config = SAEConfig(**told | {name: Site.parse(told[name]) for name in _SITES if told.get(name)})
    except TypeError as error:
        raise AtlasError(f"{path / 'sae.json'} does not describe an SAE: {error}") from None
    return config, read_safetensors(path / "sae.safetensors")


def save(config: SAEConfig, parameters: Arrays, directory: Path) -> None:
    """Write both files."""
    told: dict[str, Any] = dataclasses.asdict(config) | {
        name: str(site) for name in _SITES if (site := getattr(config, name)) is not None
    }
    (directory / "sae.json").write_text(json.dumps(told, indent=1) + "\n")
    save_file({k: np.ascontiguousarray(v) for k, v in parameters.items()}, directory / "sae.safetensors")
