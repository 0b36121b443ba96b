"""LoRA adapters in the layout of PEFT, merged into a decoder's parameters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from safetensors.numpy import load_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object, reading
from atlas_jax.models._families import FAMILIES
from atlas_jax.models._language_model import LanguageModel
from atlas_jax.models._weights import HEAD, NESTED_PREFIXES, Place, layout

ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PAIR = re.compile(r"(.+)\.lora_([AB])\.weight")
# Fields of PEFT's config that change what is computed, and the values that are computed here.
_SUPPORTED = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def merge_adapter(model: LanguageModel, directory: str | Path) -> LanguageModel:
    """Merge a LoRA adapter as PEFT publishes it: ``W + (alpha / r) B A``, ``alpha / sqrt(r)`` with rsLoRA.

    Args:
      model: the base model.
      directory: directory with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
      A model with the same tokenizer; the base model's parameters stay as they are.

    Raises:
      AtlasError: if a file is missing or damaged, the adapter is of a kind that is not merged, or it does not fit the
        model: a module that the model does not have, or of another shape.

    Example:
      >>> from atlas_jax.models import LanguageModel, merge_adapter  # doctest: +SKIP
      >>> lm = merge_adapter(LanguageModel.from_pretrained("base"), "adapter")  # doctest: +SKIP
    """
    directory = Path(directory)
    config = read_object(directory / ADAPTER, remedy="download the adapter again")
    for field, known in _SUPPORTED.items():
        if (value := config.get(field, known[0])) not in known:
            raise AtlasError(
                f"the adapter {directory} has {field}={value!r}, which is not supported; merge it with PEFT "
                "(merge_and_unload) and load the result"
            )
    with reading(directory / WEIGHTS, "download the adapter again"):
        tensors = load_file(directory / WEIGHTS)
        alpha = float(config["lora_alpha"])
    pairs = _pairs(tensors, directory)
    graph, state = nnx.split(model.decoder)
    flat = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    places = layout(model.config, {name: leaf[...].shape for name, (_, leaf) in flat.items()})
    targets = _targets(model, places)
    for module, (a, b) in pairs.items():
        names = targets.get(_short(model, module), ())
        wanted = {places[name].shape for name in names}
        if not names or {(a.shape[1], b.shape[0])} != wanted or a.shape[0] != b.shape[1]:
            raise AtlasError(_misfit(directory, config, module, a, b, wanted))
        factor = alpha / (a.shape[0] ** 0.5 if config.get("use_rslora") else a.shape[0])
        delta = factor * (b.astype(np.float32) @ a.astype(np.float32)).T
        for name in names:
            path, leaf = flat[name]
            flat[name] = path, leaf.replace(_moved(leaf[...], delta, places[name]))
    decoder = nnx.merge(graph, nnx.from_flat_state(list(flat.values())))
    return model.replace(decoder=decoder)


def _pairs(tensors: Mapping[str, Any], directory: Path) -> dict[str, tuple[Any, Any]]:
    """The matrices A ``[r, in]`` and B ``[out, r]`` of each module."""
    pairs: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        match = _PAIR.fullmatch(name)
        if match is None:
            raise AtlasError(
                f"the adapter {directory} holds {name}, which is no LoRA matrix of a linear layer; merge it with PEFT "
                "(merge_and_unload) and load the result"
            )
        pairs.setdefault(match[1], {})[match[2]] = value
    if half := [module for module, pair in pairs.items() if len(pair) != 2]:
        raise AtlasError(f"the adapter {directory} has one of two LoRA matrices of {half[0]}; download it again")
    return {module: (pair["A"], pair["B"]) for module, pair in pairs.items()}


def _targets(model: LanguageModel, places: Mapping[str, Place]) -> dict[str, list[str]]:
    """The parameters by the stored name of the linear layer that holds them; a tied head is left out."""
    targets: dict[str, list[str]] = {}
    for name, place in places.items():
        if name.endswith("proj.weight") or name == HEAD:
            targets.setdefault(place.tensor.removesuffix(".weight"), []).append(name)
    return targets


def _short(model: LanguageModel, module: str) -> str:
    """Name of a module of the base model without the prefixes of PEFT and of the whole checkpoint."""
    name = module.removeprefix(_PREFIX)
    prefixes = (*NESTED_PREFIXES, FAMILIES[model.config.family].prefix)
    return name.removeprefix(next((p for p in prefixes if p and name.startswith(p)), ""))


def _moved(value: jax.Array, delta: Float[np.ndarray, "i o"], place: Place) -> jax.Array:
    delta = delta if place.columns is None else delta[:, place.columns]
    moved = value.astype("float32") + jax.device_put(delta, value.sharding)
    return moved.astype(value.dtype)


def _misfit(directory: Path, config: Mapping[str, Any], module: str, a: Any, b: Any, wanted: set) -> str:
    base = config.get("base_model_name_or_path") or "another model"
    there = f"there is {wanted.pop()}" if wanted else "the model has no such linear layer"
    return (
        f"the adapter {directory} is for {base} and does not fit this model: it changes {module} from {a.shape[1]} to "
        f"{b.shape[0]} features by ranks {a.shape[0]} and {b.shape[1]}, and {there}; give its own base model"
    )
