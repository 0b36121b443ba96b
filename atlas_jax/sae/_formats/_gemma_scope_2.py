"""Gemma Scope 2: ``params.safetensors`` with lower-case names, and a ``config.json`` that some folders lack.

The JumpReLU of Gemma Scope, nothing subtracted and nothing normalised; transcoders may have an affine skip path.
``resid_post/layer_17_width_16k_l0_medium`` tells site and layer where the config is missing.
"""

from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fields import FLAG, NUMBER, TEXT, Only, ignored, read_fields, site_of
from atlas_jax.sae._formats._read import Arrays, last_match, pick, read_safetensors
from atlas_jax.types import Site

NAME = "gemma_scope_2"
# ``width`` and ``type`` follow from the tensors too.
_FIELDS = {"architecture": Only(("jump_relu",)), "model_name": TEXT, "l0": NUMBER, "affine_connection": FLAG}
_FIELDS |= {"hf_hook_point_in": TEXT, "hf_hook_point_out": TEXT} | ignored("width type")
_POINTS = {"resid_post": "resid_post", "attn_out": "z", "mlp_out": "mlp_out_post", "transcoder": "mlp_in"}
_TENSORS = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}


def detect(path: Path) -> bool:
    """Test for a folder with ``params.safetensors``."""
    return (path / "params.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters from the tensors, description from ``config.json`` or the folder's name."""
    del norm_scaling_factor
    file = path / "params.safetensors"
    tensors = {name.lower(): value for name, value in read_safetensors(file).items()}
    parameters = {ours: pick(tensors, theirs, file) for theirs, ours in _TENSORS.items()}
    if unknown := tensors.keys() - _TENSORS.keys() - {"affine_skip_connection"}:
        raise AtlasError(f"{file} holds tensors that no Gemma Scope SAE has: {', '.join(sorted(unknown))}")
    if parameters["W_enc"].ndim != 2 or parameters["W_dec"].ndim != 2:
        raise AtlasError(f"{file} holds a cross-layer transcoder, which is not supported")
    described = path / "config.json"
    raw = read_fields(read_object(described), _FIELDS, described) if described.is_file() else {}
    site, site_out = _sites(path, raw)
    skip = "affine_skip_connection" in tensors
    if raw.get("affine_connection", skip) != skip:
        raise AtlasError(f"{path}: config.json and params.safetensors disagree about an affine skip path")
    if skip:
        parameters["W_skip"] = pick(tensors, "affine_skip_connection", file, 2)
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
        advertised_l0=raw.get("l0"),
    ), parameters


def _sites(path: Path, raw: dict) -> tuple[Site | None, Site | None]:
    if "hf_hook_point_in" in raw:
        site, out = site_of(raw["hf_hook_point_in"]), site_of(raw.get("hf_hook_point_out"))
        return site, None if out == site else out
    named = last_match(rf"/({'|'.join(_POINTS)})(?:_all)?/[^/]*layer_(\d+)[^/]*$", path)
    if named is None:
        return None, None
    folder, layer = named[1], int(named[2])
    return Site(_POINTS[folder], layer), Site("mlp_out_post", layer) if folder == "transcoder" else None


def _model(path: Path) -> str | None:
    """Name of the model; the smallest has no suffix where it is not instruction-tuned."""
    match = last_match(r"gemma-scope-2-(\w+)-(pt|it)", path)
    if match is None:
        return None
    return f"google/gemma-3-{match[1]}" + ("" if match.groups() == ("270m", "pt") else f"-{match[2]}")
