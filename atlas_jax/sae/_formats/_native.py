"""Our own layout: ``sae.json``, the whole description, and ``sae.safetensors``, the parameters as they are in memory.

It holds every kind of SAE exactly; nothing depends on its path.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors.numpy import save_file

from atlas_jax.files import read_object
from atlas_jax.sae._config import Kind, Normalization, SAEConfig
from atlas_jax.sae._formats._fields import FLAG, NUMBER, SITE, TEXT, WHOLE, Only, read_fields
from atlas_jax.sae._formats._read import Arrays, read_safetensors

NAME = "native"
_SITES = ("site", "site_out")
_FIELDS = {"kind": Only(get_args(Kind)), "normalization": Only(get_args(Normalization))}
_FIELDS |= dict.fromkeys(_SITES, SITE) | {"model": TEXT, "format": TEXT}
_FIELDS |= dict.fromkeys(("d_in", "d_sae", "d_out", "k"), WHOLE)
_FIELDS |= dict.fromkeys(("transcoder", "apply_b_dec_to_input"), FLAG)
_FIELDS |= dict.fromkeys(("advertised_l0", "advertised_fvu", "advertised_dead"), NUMBER)


def detect(path: Path) -> bool:
    """Test for a folder with ``sae.json`` and ``sae.safetensors``."""
    return (path / "sae.json").is_file() and (path / "sae.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters and description."""
    del norm_scaling_factor
    file = path / "sae.json"
    facts = read_fields(read_object(file), _FIELDS, file, needed=("kind", "d_in", "d_sae"))
    return SAEConfig(**facts), read_safetensors(path / "sae.safetensors")


def save(config: SAEConfig, parameters: Arrays, directory: Path) -> None:
    """Write both files."""
    facts: dict[str, Any] = dataclasses.asdict(config) | {
        name: str(site) for name in _SITES if (site := getattr(config, name)) is not None
    }
    (directory / "sae.json").write_text(json.dumps(facts, indent=1) + "\n")
    save_file({k: np.ascontiguousarray(v) for k, v in parameters.items()}, directory / "sae.safetensors")
