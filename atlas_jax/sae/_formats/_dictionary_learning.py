"""dictionary_learning: ``ae.pt``, a torch state dict, and ``config.json`` with the class that wrote it.

AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE and GatedAutoEncoder subtract their decoder bias
from the input, AutoEncoderNew and JumpReluAutoEncoder do not. BatchTopK encodes by its scalar threshold, TopK by
its k. AutoEncoder is stored with decoder columns of any norm and used with unit ones, as its own loader does by
default.
"""

from pathlib import Path
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fold import fold_decoder_norm
from atlas_jax.sae._formats._hooks import layer_in
from atlas_jax.sae._formats._read import Arrays, pick, read_json, read_torch
from atlas_jax.types import Site

NAME = "dictionary_learning"
_KINDS = {
    "AutoEncoder": ("relu", True),
    "AutoEncoderNew": ("relu", False),
    "GatedAutoEncoder": ("gated", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("batchtopk", True),
    "MatryoshkaBatchTopKSAE": ("batchtopk", True),
}
_B_ENC = {"GatedAutoEncoder": "mag_bias", "JumpReluAutoEncoder": "b_enc", "MatryoshkaBatchTopKSAE": "b_enc"}
_B_DEC = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
_POINTS = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attention_out": "attn_out"}


def detect(path: Path) -> bool:
    """A folder with ``ae.pt`` and ``config.json``."""
    return (path / "ae.pt").is_file() and (path / "config.json").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters and description."""
    del norm_scaling_factor
    trainer = read_json(path / "config.json").get("trainer") or {}
    name, file = trainer.get("dict_class"), path / "ae.pt"
    if name not in _KINDS:
        raise AtlasError(f"{path} was written by the class '{name}'; supported are {', '.join(_KINDS)}")
    kind, subtract = _KINDS[name]
    state = read_torch(file)
    parameters = _matrices(state, file) | {
        "b_enc": pick(state, _B_ENC.get(name, "encoder.bias"), file),
        "b_dec": pick(state, _B_DEC.get(name, "b_dec"), file),
    }
    d, m = parameters["W_enc"].shape
    if (trainer.get("activation_dim", d), trainer.get("dict_size", m)) != (d, m):
        raise AtlasError(f"{path}: config.json and ae.pt disagree about the size, which is {d} x {m} in ae.pt")
    if kind == "gated":
        parameters |= {"b_gate": pick(state, "gate_bias", file), "r_mag": pick(state, "r_mag", file)}
    if kind in ("jumprelu", "batchtopk"):
        parameters["threshold"] = _threshold(pick(state, "threshold", file), m, file)
    if name == "AutoEncoder":
        parameters = fold_decoder_norm(parameters)
    return SAEConfig(
        kind,
        d,
        m,
        k=_k(trainer, state, path) if kind in ("topk", "batchtopk") else None,
        apply_b_dec_to_input=subtract,
        site=_site(trainer),
        model=trainer.get("lm_name"),
        format=NAME,
    ), parameters


def _matrices(state: dict[str, Any], file: Path) -> Arrays:
    if "W_enc" in state:
        return {"W_enc": state["W_enc"], "W_dec": pick(state, "W_dec", file)}
    return {"W_enc": pick(state, "encoder.weight", file).T, "W_dec": pick(state, "decoder.weight", file).T}


def _threshold(value: np.ndarray, m: int, file: Path) -> np.ndarray:
    if (np.asarray(value) < 0).any():
        raise AtlasError(f"the threshold in {file} was never set (it is negative), so its features are undefined")
    return np.full(m, value, np.float32) if np.ndim(value) == 0 else value


def _k(trainer: dict[str, Any], state: dict[str, Any], path: Path) -> int:
    k = int(pick(state, "k", path / "ae.pt"))
    if trainer.get("k", k) != k:
        raise AtlasError(f"{path}: config.json says k = {trainer['k']}, ae.pt says {k}")
    return k


def _site(trainer: dict[str, Any]) -> Site | None:
    layer, name = trainer.get("layer"), trainer.get("submodule_name")
    if layer is None:
        return None
    if name is None:
        return Site("resid_post", layer)
    found = layer_in(name, r"_layer_(\d+)$")
    point = _POINTS.get(name.rsplit("_layer_", 1)[0])
    return None if point is None or found != layer else Site(point, layer)
