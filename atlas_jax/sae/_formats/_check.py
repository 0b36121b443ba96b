"""Is a set of parameters complete and consistent? Asked of everything that becomes an SAE."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig

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
