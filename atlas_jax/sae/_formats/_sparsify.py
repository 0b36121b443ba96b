"""EleutherAI sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

``f`` keeps the k largest (topk) or the largest of each of k groups (groupmax) of ``relu(encoder(x - b_dec))``;
transcoders do not subtract. ``W_dec[m, d]`` is stored one row per feature; ``W_skip`` as an output-by-input matrix.
"""

import re
from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays, pick, read_json, read_safetensors
from atlas_jax.types import Site

NAME = "sparsify"
_POINTS = {"": "resid_post", ".mlp": "mlp_out", ".self_attn": "attn_out"}


def detect(path: Path) -> bool:
    """A folder with ``cfg.json`` and ``sae.safetensors``."""
    return (path / "cfg.json").is_file() and (path / "sae.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters and description; the site comes from the folder's name."""
    del norm_scaling_factor
    cfg, file = read_json(path / "cfg.json"), path / "sae.safetensors"
    tensors = read_safetensors(file)
    kind = cfg.get("activation", "topk")
    if kind not in ("topk", "groupmax") or cfg.get("signed"):
        raise AtlasError(
            f"{path} has the activation '{'signed ' if cfg.get('signed') else ''}{kind}', not topk or groupmax"
        )
    if missing := {"d_in", "k"} - cfg.keys():
        raise AtlasError(f"{path / 'cfg.json'} has no {', '.join(sorted(missing))}")
    m = cfg.get("num_latents") or cfg["d_in"] * cfg.get("expansion_factor", 0)
    parameters = {
        "W_enc": pick(tensors, "encoder.weight", file).T,
        "b_enc": pick(tensors, "encoder.bias", file),
        "W_dec": pick(tensors, "W_dec", file),
        "b_dec": pick(tensors, "b_dec", file),
    }
    if bool(cfg.get("skip_connection")) != ("W_skip" in tensors):
        raise AtlasError(f"{path}: cfg.json and sae.safetensors disagree about a skip connection")
    transcoder = bool(cfg.get("transcode"))
    if "W_skip" in tensors:
        parameters["W_skip"] = tensors["W_skip"].T
    site, site_out = _sites(path.name, transcoder)
    return SAEConfig(
        kind,
        cfg["d_in"],
        m,
        k=cfg["k"],
        transcoder=transcoder,
        apply_b_dec_to_input=not transcoder,
        site=site,
        site_out=site_out,
        format=NAME,
    ), parameters


def _sites(hookpoint: str, transcoder: bool) -> tuple[Site | None, Site | None]:
    match = re.fullmatch(r"layers\.(\d+)(.*)", hookpoint)
    if match is None or match[2] not in _POINTS:
        return None, None
    layer, site = int(match[1]), Site(_POINTS[match[2]], int(match[1]))
    if not transcoder:
        return site, None
    return (Site("mlp_in", layer), site) if match[2] == ".mlp" else (None, site)
