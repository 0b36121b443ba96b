"""Gemma Scope: ``params.npz``, JumpReLU, nothing subtracted and nothing normalised.

``f = relu(pre) * (pre > threshold)`` with ``pre = x @ W_enc + b_enc``. The folder's name carries layer, width and L0
(``layer_20/width_16k/average_l0_71``). The ``-mlp`` SAEs read what the MLP adds to the residual stream, after the
post-MLP norm; the ``-att`` SAEs the concatenated heads before the output projection. The SAEs of the embedding were
trained without the factor ``sqrt(d)`` that the model applies to it; it is folded in, so that they read the residual
stream.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fold import as_plain_jumprelu, fold_input_scale
from atlas_jax.sae._formats._hooks import layer_in
from atlas_jax.sae._formats._read import Arrays, pick, read_json, read_npz
from atlas_jax.types import Site

NAME = "gemma_scope"
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_POINTS = {"res": "resid_post", "mlp": "mlp_out_post", "att": "z", "transcoders": "mlp_in"}
_TOLD = ("model", "site", "site_out", "transcoder", "advertised_l0")
_DESCRIPTION = "sae.json"


def detect(path: Path) -> bool:
    """A folder with ``params.npz``, or that file."""
    return (path / "params.npz").is_file() or path.suffix == ".npz"


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters and description, the latter from the arrays, the path, and the description we write beside them."""
    del norm_scaling_factor
    file = path / "params.npz" if path.is_dir() else path
    arrays = read_npz(file)
    by_name = {name.lower(): value for name, value in arrays.items()}
    if by_name.keys() - {name.lower() for name in _NAMES}:
        raise AtlasError(f"{file} is not Gemma Scope's layout: it holds {', '.join(arrays)}")
    parameters = {name: pick(by_name, name.lower(), file) for name in _NAMES}
    if parameters["W_enc"].ndim != 2 or parameters["W_dec"].ndim != 2:
        raise AtlasError(f"W_enc and W_dec in {file} should be matrices")
    d, m = parameters["W_enc"].shape
    o = parameters["W_dec"].shape[1]
    if (file.parent / _DESCRIPTION).is_file():
        told = _from_description(read_json(file.parent / _DESCRIPTION))
    else:
        told = _from_path(file.resolve().parent.as_posix())
    if re.search(r"embedding/width_\w+/average_l0", file.resolve().as_posix()):
        parameters = fold_input_scale(parameters, d**-0.5)
    return SAEConfig("jumprelu", d, m, d_out=None if o == d else o, format=NAME, **told), parameters


def save(config: SAEConfig, parameters: Arrays, directory: Path) -> None:
    """Write ``params.npz`` and beside it what the release tells by folder names: site, model, L0."""
    config, parameters = as_plain_jumprelu(config, parameters)
    np.savez(directory / "params.npz", **parameters)
    told = {name: getattr(config, name) for name in _TOLD}
    described = {name: str(value) if isinstance(value, Site) else value for name, value in told.items()}
    (directory / _DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")


def _from_path(folder: str) -> dict[str, Any]:
    """Site, model and advertised L0 as far as the folder names of the release tell them."""
    told: dict[str, Any] = {}
    l0, layer = layer_in(folder, r"average_l0_(\d+)"), layer_in(folder, r"layer_(\d+)")
    if l0 is not None:
        told["advertised_l0"] = float(l0)
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", folder)
    if release is None:
        return told
    told["model"] = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
    if release[3] == "transcoders":
        told["transcoder"] = True
    if layer is not None:
        told["site"] = Site(_POINTS[release[3]], layer)
        if release[3] == "transcoders":
            told["site_out"] = Site("mlp_out_post", layer)
    elif "/embedding/" in folder:
        told["site"] = Site("resid_pre", 0)
    return told


def _from_description(described: dict[str, Any]) -> dict[str, Any]:
    told = {name: described[name] for name in _TOLD if described.get(name) is not None}
    return {name: Site.parse(value) if name.startswith("site") else value for name, value in told.items()}
