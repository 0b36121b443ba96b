"""Gemma Scope: ``params.npz``, JumpReLU, nothing subtracted and nothing normalised.

``f = relu(pre) * (pre > threshold)`` with ``pre = x @ W_enc + b_enc``. The folder's name carries layer, width and L0
(``layer_20/width_16k/average_l0_71``). The ``-mlp`` SAEs read what the MLP adds to the residual stream, after the
post-MLP norm; the ``-att`` SAEs the concatenated heads before the output projection. The SAEs of the embedding were
trained without the factor ``sqrt(d)`` that the model applies to it; it is folded in, so that they read the residual
stream.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fields import FLAG, NUMBER, SITE, TEXT, read_fields
from atlas_jax.sae._formats._parameters import as_plain_jumprelu, fold_input_scale
from atlas_jax.sae._formats._read import Arrays, last_match, pick, read_npz
from atlas_jax.types import Site

NAME = "gemma_scope"
_AXES = {"W_enc": 2, "b_enc": 1, "W_dec": 2, "b_dec": 1, "threshold": 1}
_POINTS = {"res": "resid_post", "mlp": "mlp_out_post", "att": "z", "transcoders": "mlp_in"}
_FACTS = {"model": TEXT, "site": SITE, "site_out": SITE, "transcoder": FLAG, "advertised_l0": NUMBER}
_DESCRIPTION = "sae.json"


def detect(path: Path) -> bool:
    """Test for a folder with ``params.npz``, or that file."""
    return (path / "params.npz").is_file() or (path.is_file() and last_match(r"\.npz$", path) is not None)


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters and description; the latter from arrays, path, and the file that :func:`save` writes."""
    del norm_scaling_factor
    file = path / "params.npz" if path.is_dir() else path
    arrays = read_npz(file)
    written = {name.lower(): name for name in arrays}
    if written.keys() - {name.lower() for name in _AXES}:
        raise AtlasError(f"{file} is not Gemma Scope's layout: it holds {', '.join(arrays)}")
    parameters = {name: pick(arrays, written.get(name.lower(), name), file, n) for name, n in _AXES.items()}
    d, m = parameters["W_enc"].shape
    o = parameters["W_dec"].shape[1]
    described = file.parent / _DESCRIPTION
    facts = read_fields(read_object(described), _FACTS, described) if described.is_file() else _from_names(file)
    if last_match(r"embedding/width_\w+/average_l0", file):
        parameters = fold_input_scale(parameters, d**-0.5)
    return SAEConfig("jumprelu", d, m, d_out=None if o == d else o, format=NAME, **facts), parameters


def save(config: SAEConfig, parameters: Arrays, directory: Path) -> None:
    """Write ``params.npz`` and beside it the facts that the release puts into folder names: site, model, L0."""
    config, parameters = as_plain_jumprelu(config, parameters)
    np.savez(directory / "params.npz", **parameters)
    facts = {name: getattr(config, name) for name in _FACTS}
    described = {name: str(value) if isinstance(value, Site) else value for name, value in facts.items()}
    (directory / _DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")


def _from_names(file: Path) -> dict[str, Any]:
    """Read site, model and advertised L0 from the folder names of the release, as far as they state them."""
    facts: dict[str, Any] = {}
    l0, layer = last_match(r"average_l0_(\d+)", file), last_match(r"/(?:layer_(\d+)|embedding)/", file)
    if l0 is not None:
        facts["advertised_l0"] = float(l0[1])
    release = last_match(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", file)
    if release is None:
        return facts
    facts["model"] = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
    if release[3] == "transcoders":
        facts["transcoder"] = True
    if layer is not None and layer[1] is None:
        facts["site"] = Site("resid_pre", 0)
    elif layer is not None:
        facts["site"] = Site(_POINTS[release[3]], int(layer[1]))
        if release[3] == "transcoders":
            facts["site_out"] = Site("mlp_out_post", int(layer[1]))
    return facts
