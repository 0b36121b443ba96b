"""Checks of the parameters of an SAE, and rewriting them in a plainer form."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays

_OWN = {
    "jumprelu": {"threshold"},
    "batchtopk": {"threshold"},
    "gated": {"b_gate", "r_mag"},
    "topk": set(),
    "groupmax": set(),
    "relu": set(),
}


def check(config: SAEConfig, parameters: Mapping[str, Any]) -> None:
    """Raise AtlasError unless ``parameters`` are exactly what ``config`` calls for, in shape and finite.

    Example:
      >>> from atlas_jax.sae import SAEConfig
      >>> from atlas_jax.sae._formats._parameters import check
      >>> check(SAEConfig("relu", 1, 1), {})
      Traceback (most recent call last):
      ...
      atlas_jax.errors.AtlasError: the SAE has no W_dec, W_enc, b_dec, b_enc
    """
    if config.kind not in _OWN:
        raise AtlasError(f"unknown kind of SAE '{config.kind}'; known are {', '.join(_OWN)}")
    needed = {"W_enc", "b_enc", "W_dec", "b_dec"} | _OWN[config.kind]
    if missing := needed - parameters.keys():
        raise AtlasError(f"the SAE has no {', '.join(sorted(missing))}")
    if unknown := parameters.keys() - needed - {"W_skip"}:
        raise AtlasError(f"a {config.kind} SAE has no place for {', '.join(sorted(unknown))}")
    for name, value in parameters.items():
        _check_one(config, name, value)
    if config.kind in ("topk", "groupmax") and not (config.k and 0 < config.k <= config.d_sae):
        raise AtlasError(f"a {config.kind} SAE needs 1 <= k <= {config.d_sae}, got k = {config.k}")
    if config.kind == "groupmax" and config.d_sae % config.k:
        raise AtlasError(f"a groupmax SAE needs k to divide its {config.d_sae} features, got k = {config.k}")
    if config.transcoder and (config.apply_b_dec_to_input or config.normalization != "none"):
        raise AtlasError("a transcoder that subtracts b_dec from its input or normalises it is not supported")
    if not config.transcoder and (config.width_out != config.d_in or "W_skip" in parameters):
        raise AtlasError(f"only a transcoder can map width {config.d_in} to {config.width_out} or have a skip path")


def _check_one(config: SAEConfig, name: str, value: Any) -> None:
    d, m, o = config.d_in, config.d_sae, config.width_out
    shapes = {"W_enc": (d, m), "W_dec": (m, o), "b_dec": (o,), "W_skip": (d, o)}
    expected = shapes.get(name, (m,))
    if tuple(value.shape) != expected:
        raise AtlasError(f"{name} of the SAE has shape {tuple(value.shape)}, its description calls for {expected}")
    if np.asarray(value).dtype.kind not in "fiuV" or not np.isfinite(np.asarray(value)).all():
        raise AtlasError(f"{name} of the SAE holds numbers that are not finite")


def fold_b_dec(config: SAEConfig, parameters: Arrays) -> tuple[SAEConfig, Arrays]:
    """Move the subtraction of ``b_dec`` from the input into ``b_enc``: ``(x - b) @ W + c = x @ W + (c - b @ W)``."""
    if not config.apply_b_dec_to_input:
        return config, parameters
    shift = parameters["b_dec"].astype(np.float64) @ parameters["W_enc"].astype(np.float64)
    b_enc = (parameters["b_enc"] - shift).astype(np.float32)
    return dataclasses.replace(config, apply_b_dec_to_input=False), parameters | {"b_enc": b_enc}


def fold_input_scale(parameters: Arrays, scale: float) -> Arrays:
    """Rewrite an SAE of activations multiplied by ``scale`` for raw ones; features keep their units."""
    p = parameters
    return p | {"W_enc": p["W_enc"] * scale, "W_dec": p["W_dec"] / scale, "b_dec": p["b_dec"] / scale}


def as_plain_jumprelu(config: SAEConfig, parameters: Arrays) -> tuple[SAEConfig, Arrays]:
    """Rewrite as a JumpReLU SAE that neither normalises nor subtracts; relu becomes a threshold of 0.

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
    """Rewrite with unit decoder rows an SAE whose pre-activations are multiplied by their norms."""
    p = parameters
    norm = np.linalg.norm(p["W_dec"].astype(np.float64), axis=1)
    safe = np.where(norm > 0, norm, 1.0)
    scaled = {"W_enc": p["W_enc"] * norm, "b_enc": p["b_enc"] * norm, "W_dec": p["W_dec"] / safe[:, None]}
    return p | {name: value.astype(np.float32) for name, value in scaled.items()}
