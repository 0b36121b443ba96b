"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``.

Its R1-Distill release holds ``config.json`` and ``sae_weights.safetensors``.
Training activations were multiplied by ``s = sqrt(d) / average norm``; the JumpReLU threshold,
``jump_relu_threshold * s`` for all features or ``exp(log_jumprelu_threshold)`` for each, is in units of the
pre-activation. ``s`` is folded into the weights, so the SAE reads raw activations. Nothing is subtracted.
"""

from pathlib import Path
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fold import fold_input_scale
from atlas_jax.sae._formats._hooks import site_of
from atlas_jax.sae._formats._read import Arrays, pick, read_json, read_safetensors

NAME = "llama_scope"


def detect(path: Path) -> bool:
    """A folder with ``hyperparams.json``, or with an R1-Distill pair."""
    distilled = (path / "config.json").is_file() and (path / "sae_weights.safetensors").is_file()
    return (path / "hyperparams.json").is_file() or (distilled and not (path / "cfg.json").is_file())


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Parameters for raw activations, and the description."""
    first = (path / "hyperparams.json").is_file()
    cfg = read_json(path / ("hyperparams.json" if first else "config.json"))
    file = path / ("checkpoints/final.safetensors" if first else "sae_weights.safetensors")
    tensors = read_safetensors(file)
    scale = _scale(cfg, path, norm_scaling_factor)
    parameters = {
        "W_enc": pick(tensors, "encoder.weight", file).T,
        "b_enc": pick(tensors, "encoder.bias", file),
        "W_dec": pick(tensors, "decoder.weight", file).T,
        "b_dec": pick(tensors, "decoder.bias", file),
    }
    d, m = parameters["W_enc"].shape
    if cfg.get("d_model", d) != d or cfg.get("d_sae", m) != m:
        raise AtlasError(
            f"{path} describes an SAE of {cfg.get('d_model')} x {cfg.get('d_sae')}, its tensors are {d} x {m}"
        )
    parameters["threshold"] = _threshold(cfg, tensors, scale, m, path)
    hook_in, hook_out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
    transcoder = hook_out is not None and hook_out != hook_in
    if transcoder:
        raise AtlasError(f"{path} is a Llama Scope transcoder, which is not supported")
    return SAEConfig(
        "jumprelu",
        d,
        m,
        site=site_of(hook_in),
        model="meta-llama/Llama-3.1-8B" if path.name.startswith("Llama3_1-8B-Base") else None,
        format=NAME,
        advertised_l0=50.0 if first else None,
    ), fold_input_scale(parameters, scale)


def _scale(cfg: dict[str, Any], path: Path, given: float | None) -> float:
    norms = cfg.get("dataset_average_activation_norm") or {}
    if given is not None:
        return given
    if not norms.get("in") or "d_model" not in cfg:
        raise AtlasError(f"{path} does not say what training activations were scaled by: give norm_scaling_factor")
    return cfg["d_model"] ** 0.5 / norms["in"]


def _threshold(cfg: dict[str, Any], tensors: Arrays, scale: float, m: int, path: Path) -> np.ndarray:
    if "log_jumprelu_threshold" in tensors:
        return np.exp(tensors["log_jumprelu_threshold"])
    if "jump_relu_threshold" not in cfg:
        raise AtlasError(f"{path} has no jump_relu_threshold")
    return np.full(m, cfg["jump_relu_threshold"] * scale, np.float32)
