"""Rewriting an SAE's parameters into an equal SAE of a plainer form."""

import dataclasses

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays


def fold_b_dec(config: SAEConfig, parameters: Arrays) -> tuple[SAEConfig, Arrays]:
    """Move the subtraction of ``b_dec`` from the input into ``b_enc``: ``(x - b) @ W + c = x @ W + (c - b @ W)``."""
    if not config.apply_b_dec_to_input:
        return config, parameters
    shift = parameters["b_dec"].astype(np.float64) @ parameters["W_enc"].astype(np.float64)
    b_enc = (parameters["b_enc"] - shift).astype(np.float32)
    return dataclasses.replace(config, apply_b_dec_to_input=False), parameters | {"b_enc": b_enc}


def fold_input_scale(parameters: Arrays, scale: float) -> Arrays:
    """The SAE of raw activations, given one of activations multiplied by ``scale``; features keep their units."""
    p = parameters
    return p | {"W_enc": p["W_enc"] * scale, "W_dec": p["W_dec"] / scale, "b_dec": p["b_dec"] / scale}


def as_plain_jumprelu(config: SAEConfig, parameters: Arrays) -> tuple[SAEConfig, Arrays]:
    """The same map as a JumpReLU SAE that neither normalises nor subtracts; relu becomes a threshold of 0.

    Raises:
      AtlasError: if there is none: topk, groupmax and gated SAEs, normalised rows, skip paths.
    """
    if config.kind not in ("jumprelu", "batchtopk", "relu") or config.normalization != "none" or "W_skip" in parameters:
        raise AtlasError(
            f"Gemma Scope's layout holds JumpReLU SAEs without normalisation or skip path, this is a {config.kind} SAE "
            f"with normalization '{config.normalization}'; save it as format 'saelens'"
        )
    config, parameters = fold_b_dec(config, parameters)
    threshold = parameters.get("threshold", np.zeros_like(parameters["b_enc"]))
    return dataclasses.replace(config, kind="jumprelu"), parameters | {"threshold": threshold}


def fold_decoder_norm(parameters: Arrays) -> Arrays:
    """The SAE with unit decoder rows whose pre-activations were multiplied by the norms before features were
    chosen.
    """
    p = parameters
    norm = np.linalg.norm(p["W_dec"].astype(np.float64), axis=1)
    safe = np.where(norm > 0, norm, 1.0)
    scaled = {"W_enc": p["W_enc"] * norm, "b_enc": p["b_enc"] * norm, "W_dec": p["W_dec"] / safe[:, None]}
    return p | {name: value.astype(np.float32) for name, value in scaled.items()}
