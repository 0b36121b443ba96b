"""Gemma Scope 2: ``params.safetensors`` with lower-case names, and a ``config.json`` that some folders lack.

The JumpReLU of Gemma Scope, nothing subtracted and nothing normalised; transcoders may have an affine skip path.
``resid_post/layer_17_width_16k_l0_medium`` tells site and layer where the config is missing.
"""

import re
from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._hooks import layer_in, site_of
from atlas_jax.sae._formats._read import Arrays, pick, read_json, read_safetensors
from atlas_jax.types import Site

NAME = "gemma_scope_2"
_POINTS = {"resid_post": "resid_post", "attn_out": "z", "mlp_out": "mlp_out_post", "transcoder": "mlp_in"}
_TENSORS = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}


def detect(path: Path) -> bool:
    """A folder with ``params.safetensors``."""
    return (path / "params.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters from the tensors, description from ``config.json`` or the folder's name."""
    del norm_scaling_factor
    file = path / "params.safetensors"
    tensors = {name.lower(): value for name, value in read_safetensors(file).items()}
    parameters = {ours: pick(tensors, theirs, file) for theirs, ours in _TENSORS.items()}
    if unknown := tensors.keys() - _TENSORS.keys() - {"affine_skip_connection"}:
        raise AtlasError(f"{file} holds tensors that no Gemma Scope SAE has: {', '.join(sorted(unknown))}")
    if parameters["W_enc"].ndim != 2 or parameters["W_dec"].ndim != 2:
        raise AtlasError(f"{file} holds a cross-layer transcoder, which is not supported")
    raw = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if raw.get("architecture", "jump_relu") != "jump_relu":
        raise AtlasError(f"{path} has the architecture '{raw['architecture']}', not jump_relu")
    site, site_out = _sites(path, raw)
    skip = "affine_skip_connection" in tensors
    if bool(raw.get("affine_connection", skip)) != skip:
        raise AtlasError(f"{path}: config.json and params.safetensors disagree about an affine skip path")
    if skip:
        parameters["W_skip"] = tensors["affine_skip_connection"]
    d, m = parameters["W_enc"].shape
    o = parameters["W_dec"].shape[1]
    return SAEConfig(
        "jumprelu",
        d,
        m,
        d_out=None if o == d else o,
        transcoder=site_out is not None or skip,
        site=site,
        site_out=site_out,
        model=raw.get("model_name") or _model(path),
        format=NAME,
    ), parameters


def _sites(path: Path, raw: dict) -> tuple[Site | None, Site | None]:
    if "hf_hook_point_in" in raw:
        site, out = site_of(raw["hf_hook_point_in"]), site_of(raw.get("hf_hook_point_out"))
        return site, None if out == site else out
    folder, layer = path.parent.name.removesuffix("_all"), layer_in(path.name, r"layer_(\d+)")
    if folder not in _POINTS or layer is None:
        return None, None
    return Site(_POINTS[folder], layer), Site("mlp_out_post", layer) if folder == "transcoder" else None


def _model(path: Path) -> str | None:
    match = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", path.as_posix())
    return None if match is None else f"google/gemma-3-{match[1]}"
