"""``config.json``, read as transformers reads it, and without importing transformers where the file says everything."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from atlas_jax.errors import AtlasError
from atlas_jax.models._config import FAMILIES, ModelConfig, is_settled

_ALWAYS = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id",
}  # fmt: skip
_GEMMA = {"head_dim", "hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types", "attention_bias",
          "attn_logit_softcapping", "final_logit_softcapping"}  # fmt: skip
_REQUIRED = {
    "llama": {"hidden_act", "head_dim", "attention_bias", "mlp_bias"},
    "mistral": {"hidden_act", "head_dim", "sliding_window"},
    "qwen2": {"hidden_act", "sliding_window", "layer_types"},
    "qwen3": {"hidden_act", "head_dim", "sliding_window", "layer_types", "attention_bias"},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
}
_ROPE = {
    "default": {"rope_theta"},
    "linear": {"rope_theta", "factor"},
    "llama3": {
        "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
}  # fmt: skip
_SHARED_BY_MODALITIES = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


def load_config(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read ``config.json``; returns our config and the content of the file.

    Of a multimodal checkpoint the text part is read. End-of-text ids of ``generation_config.json`` win, as they do
    when transformers generates.

    Raises:
      AtlasError: if the file is missing, is not JSON, or describes an unsupported architecture.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise AtlasError(f"{directory} has no config.json; give a model directory in Hugging Face layout")
    raw = _text_part(_read_json(path))
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise AtlasError(f"{path} has model_type '{family}', which is not supported; supported: {', '.join(FAMILIES)}")
    generation = directory / "generation_config.json"
    eos = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    raw = raw if eos is None else raw | {"eos_token_id": eos}
    try:
        return _parse(family, raw), raw
    except AtlasError as e:
        raise AtlasError(f"{path}: {e}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise AtlasError(f"{path} is not a usable {family} configuration: {e}") from e


def _parse(family: str, raw: dict[str, Any]) -> ModelConfig:
    if _says_everything(family, raw):
        return ModelConfig.from_attributes(SimpleNamespace(**raw))
    from transformers import CONFIG_MAPPING

    return ModelConfig.from_hf(CONFIG_MAPPING[family].from_dict(raw))


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
    if raw.get("model_type") != "gemma3":
        return raw
    shared = {k: raw[k] for k in _SHARED_BY_MODALITIES if k in raw}
    named = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return raw.get("text_config", {}) | shared | named


def _says_everything(family: str, raw: dict[str, Any]) -> bool:
    """Whether no attribute is left to a default or in an old spelling, and none is unknown."""
    complete = _ALWAYS | _REQUIRED[family] <= raw.keys()
    old = raw.get("rope_scaling") is not None or raw.get("rope_local_base_freq") is not None
    return complete and not old and all(is_settled(k, v) for k, v in raw.items()) and _rope_is_complete(raw)


def _rope_is_complete(raw: dict[str, Any]) -> bool:
    p = raw["rope_parameters"]
    if not isinstance(p, dict):
        return False
    parts = list(p.values()) if raw["model_type"] == "gemma3_text" else [p]
    known = all(isinstance(x, dict) and _ROPE.get(x.get("rope_type"), {None}) <= x.keys() for x in parts)
    return known and raw.get("rope_theta") in (None, p.get("rope_theta"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as e:
        raise AtlasError(f"{path} is not valid JSON ({e}); download the file again") from e
    if not isinstance(content, dict):
        raise AtlasError(f"{path} holds no JSON object; download the file again")
    return content
