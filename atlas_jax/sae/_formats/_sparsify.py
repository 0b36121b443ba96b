"""EleutherAI sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

``f`` keeps the k largest (topk) or the largest of each of k groups (groupmax) of ``relu(encoder(x - b_dec))``;
transcoders do not subtract. ``W_dec[m, d]`` is stored one row per feature; ``W_skip`` as an output-by-input matrix.
"""

from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fields import FLAG, NUMBER, WHOLE, Only, ignored, read_fields
from atlas_jax.sae._formats._read import Arrays, last_match, pick, read_safetensors
from atlas_jax.types import Site

NAME = "sparsify"
_FIELDS = {"d_in": WHOLE, "num_latents": WHOLE, "k": WHOLE, "expansion_factor": NUMBER}
_FIELDS |= {"activation": Only(("topk", "groupmax")), "signed": Only((False,))}  # the latter until version 1.0
_FIELDS |= {"transcode": FLAG, "skip_connection": FLAG} | ignored("normalize_decoder multi_topk")
_POINTS = {"": "resid_post", ".mlp": "mlp_out", ".self_attn": "attn_out"}


def detect(path: Path) -> bool:
    """Test for a folder with ``cfg.json`` and ``sae.safetensors``."""
    return (path / "cfg.json").is_file() and (path / "sae.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters and description; the site comes from the folder's name."""
    del norm_scaling_factor
    file = path / "sae.safetensors"
    cfg = read_fields(read_object(path / "cfg.json"), _FIELDS, path / "cfg.json", needed=("d_in", "k"))
    tensors = read_safetensors(file)
    m = cfg.get("num_latents") or int(cfg["d_in"] * cfg.get("expansion_factor", 0))
    parameters = {
        "W_enc": pick(tensors, "encoder.weight", file, 2).T,
        "b_enc": pick(tensors, "encoder.bias", file, 1),
        "W_dec": pick(tensors, "W_dec", file, 2),
        "b_dec": pick(tensors, "b_dec", file, 1),
    }
    if bool(cfg.get("skip_connection")) != ("W_skip" in tensors):
        raise AtlasError(f"{path}: cfg.json and sae.safetensors disagree about a skip connection")
    transcoder = bool(cfg.get("transcode"))
    if "W_skip" in tensors:
        parameters["W_skip"] = pick(tensors, "W_skip", file, 2).T
    site, site_out = _sites(path, transcoder)
    return SAEConfig(
        cfg.get("activation", "topk"),
        cfg["d_in"],
        m,
        k=cfg["k"],
        transcoder=transcoder,
        apply_b_dec_to_input=not transcoder,
        site=site,
        site_out=site_out,
        format=NAME,
    ), parameters


def _sites(path: Path, transcoder: bool) -> tuple[Site | None, Site | None]:
    match = last_match(r"/layers\.(\d+)([^/]*)$", path)
    if match is None or match[2] not in _POINTS:
        return None, None
    layer, site = int(match[1]), Site(_POINTS[match[2]], int(match[1]))
    if not transcoder:
        return site, None
    return (Site("mlp_in", layer), site) if match[2] == ".mlp" else (None, site)
