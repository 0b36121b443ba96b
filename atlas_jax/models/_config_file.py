"""``config.json``, read by transformers."""

from pathlib import Path
from typing import Any

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.models._config import ModelConfig
from atlas_jax.models._families import FAMILIES
from atlas_jax.models._transformers import transformers

_SHARED_BY_MODALITIES = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


def load_config(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read ``config.json`` with ``transformers.AutoConfig``; returns our config and the content of the file.

    Of a multimodal checkpoint the text part is read. End-of-text ids of ``generation_config.json`` win, as they do
    when transformers generates.

    Raises:
      AtlasError: if the file is missing, is not JSON, or describes an unsupported architecture.
    """
    path = directory / "config.json"
    if not path.is_file():
        adapter = (directory / "adapter_config.json").is_file()
        raise AtlasError(
            f"{directory} holds a LoRA adapter alone; merge it into its base model (merge_and_unload) and save that"
            if adapter
            else f"{directory} has no config.json; give a model directory in Hugging Face layout"
        )
    raw = read_object(path)
    family = raw.get("model_type")
    if family not in (*FAMILIES, "gemma3"):
        raise AtlasError(f"{path} has model_type {family!r}, which is not supported; supported: {', '.join(FAMILIES)}")
    eos = _end_of_text(directory / "generation_config.json")
    try:
        hf, raw = _text_part(_auto_config(directory), raw)
        if eos is not None:
            hf.eos_token_id, raw = eos, raw | {"eos_token_id": eos}
        return ModelConfig.from_hf(hf), raw
    except AtlasError as e:
        raise AtlasError(f"{path}: {e}") from e


def _auto_config(directory: Path) -> Any:
    try:
        return transformers().AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as e:  # noqa: BLE001 - transformers raises whatever a value made it stumble on
        reason = " ".join(str(e).split()) or type(e).__name__
        raise AtlasError(f"transformers cannot read this configuration ({reason}); correct it") from e


def _text_part(hf: Any, raw: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The language model of a multimodal configuration, with what belongs to the whole."""
    text = hf.get_text_config(decoder=True)
    if text is hf:
        return hf, raw
    shared = {k: getattr(hf, k) for k in _SHARED_BY_MODALITIES if k in raw}
    for name, value in shared.items():
        setattr(text, name, value)
    named = {"model_type": text.model_type, "architectures": ["Gemma3ForCausalLM"]}
    return text, raw.get("text_config", {}) | shared | named


def _end_of_text(path: Path) -> int | list[int] | None:
    """The end-of-text ids a ``generation_config.json`` states, None where it states none."""
    eos = read_object(path, missing={}).get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise AtlasError(f"{path} has eos_token_id {eos!r}, which is no token id nor a list of them; correct it")
    return eos
