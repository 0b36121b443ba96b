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
from atlas_jax.files import read_object
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fields import OBJECT, TEXT, WHOLE, ignored, read_fields
from atlas_jax.sae._formats._parameters import fold_decoder_norm
from atlas_jax.sae._formats._read import Arrays, pick, read_torch
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
# The ``config`` of every trainer; the classes themselves read only the fields that are used here.
_FIELDS = {"dict_class": TEXT, "lm_name": TEXT, "submodule_name": TEXT}
_FIELDS |= dict.fromkeys(("activation_dim", "dict_size", "layer", "k"), WHOLE)
_FIELDS |= ignored(
    "trainer_class lr steps seed device wandb_name warmup_steps decay_start l1_penalty resample_steps auxk_alpha "
    "top_k_aux sparsity_warmup_steps sparsity_penalty sparsity_function sparsity_queue_length n_sparsity_updates "
    "p_start p_end anneal_start anneal_end threshold_beta threshold_start_step bandwidth target_l0 group_fractions "
    "group_sizes group_weights"
)
_POINTS = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attention_out": "attn_out"}


def detect(path: Path) -> bool:
    """Test for a folder with ``ae.pt`` and ``config.json``."""
    return (path / "ae.pt").is_file() and (path / "config.json").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters and description."""
    del norm_scaling_factor
    described, file = path / "config.json", path / "ae.pt"
    trainer = read_fields(read_object(described), {"trainer": OBJECT}, described, others=True).get("trainer", {})
    trainer = read_fields(trainer, _FIELDS, described, others=True)
    name = trainer.get("dict_class")
    if name not in _KINDS:
        raise AtlasError(f"{path} was written by the class '{name}'; supported are {', '.join(_KINDS)}")
    kind, subtract = _KINDS[name]
    state = read_torch(file)
    parameters = _matrices(state, file) | {
        "b_enc": pick(state, _B_ENC.get(name, "encoder.bias"), file, 1),
        "b_dec": pick(state, _B_DEC.get(name, "b_dec"), file, 1),
    }
    d, m = parameters["W_enc"].shape
    if (trainer.get("activation_dim", d), trainer.get("dict_size", m)) != (d, m):
        raise AtlasError(f"{path}: config.json and ae.pt disagree about the size, which is {d} x {m} in ae.pt")
    if kind == "gated":
        parameters |= {"b_gate": pick(state, "gate_bias", file, 1), "r_mag": pick(state, "r_mag", file, 1)}
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
        return {"W_enc": pick(state, "W_enc", file, 2), "W_dec": pick(state, "W_dec", file, 2)}
    return {"W_enc": pick(state, "encoder.weight", file, 2).T, "W_dec": pick(state, "decoder.weight", file, 2).T}


def _threshold(value: np.ndarray, m: int, file: Path) -> np.ndarray:
    if (value < 0).any():
        raise AtlasError(f"the threshold in {file} was never set (it is negative), so its features are undefined")
    return np.full(m, value, np.float32) if value.ndim == 0 else value


def _k(trainer: dict[str, Any], state: dict[str, Any], path: Path) -> int:
    k = int(pick(state, "k", path / "ae.pt", 0))
    if trainer.get("k", k) != k:
        raise AtlasError(f"{path}: config.json says k = {trainer['k']}, ae.pt says {k}")
    return k


def _site(trainer: dict[str, Any]) -> Site | None:
    layer, name = trainer.get("layer"), trainer.get("submodule_name")
    if layer is None:
        return None
    if name is None:
        return Site("resid_post", layer)
    point = {f"{theirs}_layer_{layer}": ours for theirs, ours in _POINTS.items()}.get(name)
    return None if point is None else Site(point, layer)
