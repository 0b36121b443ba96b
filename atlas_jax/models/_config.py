"""One description for every decoder family, read from a Hugging Face config with nothing assumed."""

import dataclasses
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.models._families import FAMILIES, Family
from atlas_jax.types import Site

# Declared by the configuration classes; of training, of bookkeeping, already read into another attribute, or (the soft
# cap of Gemma 3) read by no one.
IRRELEVANT = {
    "transformers_version", "architectures", "output_hidden_states", "output_attentions", "return_dict", "dtype",
    "id2label", "label2id", "problem_type", "initializer_range", "use_cache", "attention_dropout", "_name_or_path",
    "pretraining_tp", "rope_scaling", "attn_logit_softcapping", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
    "summary_first_dropout", "hidden_dropout", "classifier_dropout", "is_decoder",
}  # fmt: skip
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
# What transformers reads for every family, and the values that this decoder computes.
ONLY = {
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "is_encoder_decoder": (None, False),
    "chunk_size_feed_forward": (None, 0),
    "is_heterogeneous": (None, False),
    "quantization_config": (None,),
    "compression_config": (None,),
}


def transformers() -> ModuleType:
    """Import transformers without its advice to install PyTorch, which nothing here needs.

    The import takes seconds, so it happens only where a model is loaded.

    Example:
      >>> from atlas_jax.models._config import transformers
      >>> transformers().AutoConfig.__name__
      'AutoConfig'
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of one layer type.

    Attributes:
      theta: base of the geometric progression of wavelengths.
      kind: "default", "linear" (all frequencies divided by ``factor``) or "llama3" (long wavelengths only).
      share: the share of a head's dimensions that is rotated, the first ones.
    """

    theta: float
    kind: str
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int
    share: float

    @classmethod
    def from_hf(cls, p: dict[str, Any], partial: bool) -> "Rope":
        """Read one ``rope_parameters`` entry of transformers 5; ``partial`` is as in the table of families.

        Raises:
          AtlasError: for a rope type or a partial rotary factor this decoder does not compute.
        """
        kind = p["rope_type"]
        if kind not in ("default", "linear", "llama3"):
            raise AtlasError(f"rope_type '{kind}' is not supported; supported are default, linear and llama3")
        share = p.get("partial_rotary_factor", 1.0)
        if not partial and kind != "default" and share != 1.0:  # ignored by the default rotary embedding
            raise AtlasError(f"partial_rotary_factor {share} is not supported; only 1.0 is")
        llama3 = kind == "llama3"
        return cls(
            theta=float(p["rope_theta"]),
            kind=kind,
            factor=float(p["factor"]) if kind != "default" else 1.0,
            low_freq_factor=float(p["low_freq_factor"]) if llama3 else 1.0,
            high_freq_factor=float(p["high_freq_factor"]) if llama3 else 1.0,
            original_max_positions=int(p["original_max_position_embeddings"]) if llama3 else 1,
            share=float(share) if partial else 1.0,
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the decoder computes with. Hashable, so it is static under ``jax.jit``.

    ``windows`` and ``ropes`` have one entry a layer; a window of ``None`` is full attention, a rope of ``None``
    rotates nothing. ``norm``, ``placement``, ``qk_norm`` and ``gated`` are as in the table of families
    (``_families.py``). ``attention`` is the kernel that computes it: "xla", "tokamax" or "cudnn".

    Example:
      >>> import transformers
      >>> from atlas_jax.models import ModelConfig
      >>> config = ModelConfig.from_hf(transformers.LlamaConfig(num_hidden_layers=2))
      >>> config.width("mlp_act"), config.has_post_norms, config.absent("mlp_gate_act")
      (11008, False, None)
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: str
    norm_eps: float
    placement: str
    embedding_scale: float | None
    gated: bool
    activation: str
    query_scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[Rope | None, ...]
    learned_positions: bool
    attn_softcap: float | None
    final_softcap: float | None
    qk_norm: str | None
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    attention: str = "xla"

    @property
    def has_post_norms(self) -> bool:
        """True if the outputs of attention and MLP are normalised before they are added to the residual stream."""
        return self.placement in ("post", "sandwich")

    def absent(self, point: str) -> str | None:
        """The reason why the model has no such point; None where it has one."""
        if point == "mlp_gate_act" and not self.gated:
            return "its MLP has no gate, and mlp_act is what its activation function gives"
        if point == "resid_mid" and self.placement == "parallel":
            return "attention and MLP read the same residual stream, resid_pre, and none lies between them"
        return None

    def width(self, at: Site | str) -> int:
        """Number of features of a site, or at a point.

        Heads * head_dim for ``z``, head_dim for one of its heads, heads for ``head_norm``, the MLP's hidden size for
        ``mlp_*act``, else the model's.
        """
        point, head = (at, None) if isinstance(at, str) else (at.point, at.head)
        if point in ("z", "head_norm"):
            return (self.num_heads if head is None else 1) * (self.head_dim if point == "z" else 1)
        return self.intermediate_size if point in ("mlp_act", "mlp_gate_act") else self.hidden_size

    @classmethod
    def from_hf(cls, hf: Any) -> "ModelConfig":
        """Read a ``transformers`` config object of a supported family.

        Raises:
          AtlasError: for an unsupported family, or any attribute that is neither handled, known to be irrelevant,
            nor at its default (named in the message).

        Example:
          >>> from atlas_jax.models import ModelConfig
          >>> import transformers
          >>> ModelConfig.from_hf(transformers.LlamaConfig(num_hidden_layers=2)).num_layers
          2
        """
        hf = hf.get_text_config(decoder=True)
        _check_attributes(hf)
        row = FAMILIES[hf.model_type]
        read = lambda name, otherwise: getattr(hf, name, otherwise) if name in row.reads else otherwise
        activation = getattr(hf, row.activation)
        if activation not in ACTIVATIONS:
            raise AtlasError(f"activation '{activation}' is not supported; supported are {', '.join(ACTIVATIONS)}")
        head_dim = read("head_dim", None) or hf.hidden_size // hf.num_attention_heads
        types = _layer_types(hf.num_hidden_layers, read("layer_types", None), read("sliding_window", None))
        return cls(
            family=hf.model_type,
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            intermediate_size=getattr(hf, row.intermediate_size) or 4 * hf.hidden_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            num_kv_heads=read("num_key_value_heads", None) or hf.num_attention_heads,
            head_dim=head_dim,
            max_positions=hf.max_position_embeddings,
            norm=row.norm,
            norm_eps=getattr(hf, row.norm_eps),
            placement=row.placement if read("use_parallel_residual", True) else "pre",
            embedding_scale=hf.hidden_size**0.5 if row.scaled_embedding else None,
            gated=row.gated,
            activation=activation,
            query_scale=read("query_pre_attn_scalar", head_dim) ** -0.5,
            windows=tuple(hf.sliding_window if t == "sliding_attention" else None for t in types),
            ropes=_ropes(hf, row, types),
            learned_positions=row.position == "learned",
            attn_softcap=read("attn_logit_softcapping", None),
            final_softcap=read("final_logit_softcapping", None),
            qk_norm=row.qk_norm,
            qkv_bias="qkv" in row.biases or read("attention_bias", False),
            o_bias="o" in row.biases or read("attention_bias", False),
            mlp_bias="mlp" in row.biases or read("mlp_bias", False),
            tie_embeddings=hf.tie_word_embeddings,
            bos_id=hf.bos_token_id,
            eos_ids=_as_tuple(hf.eos_token_id),
        )


def _check_attributes(hf: Any) -> None:
    """Refuse what transformers computes and this decoder does not: new attributes of a family, and a few of all."""
    if hf.model_type not in FAMILIES:
        raise AtlasError(f"model_type '{hf.model_type}' is not supported; supported are {', '.join(FAMILIES)}")
    handled = FAMILIES[hf.model_type].reads | IRRELEVANT
    for field in dataclasses.fields(hf):
        name, value = field.name, getattr(hf, field.name)
        if name not in handled | ONLY.keys() and value != field.default:
            raise AtlasError(f"config attribute {name}={value!r} is not handled; the outputs could be wrong without it")
    for name, values in ONLY.items():
        if (value := getattr(hf, name, values[0])) not in values:
            raise AtlasError(f"config attribute {name}={value!r} is not handled; the outputs would be wrong without it")


def _layer_types(layers: int, types: list[str] | None, window: int | None) -> list[str]:
    types = types or ["full_attention" if window is None else "sliding_attention"] * layers
    if len(types) != layers or not set(types) <= {"sliding_attention", "full_attention"}:
        raise AtlasError(
            f"layer_types {types} must name sliding_attention or full_attention for each of {layers} layers"
        )
    return types


def _ropes(hf: Any, row: Family, types: list[str]) -> tuple[Rope | None, ...]:
    if row.position != "rotary":
        return (None,) * len(types)
    rotates = hf.no_rope_layers if "no_rope_layers" in row.reads else [1] * len(types)
    if len(rotates) < len(types):
        raise AtlasError(f"no_rope_layers {rotates} must have an entry for each of {len(types)} layers")
    parameters = [hf.rope_parameters.get(t, hf.rope_parameters) for t in types]
    read = lambda p: Rope.from_hf(p, row.partial_rotary)
    return tuple(read(p) if on else None for p, on in zip(parameters, rotates, strict=False))


def _as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def frequencies(rope: Rope, head_dim: int) -> list[float]:
    """Inverse frequencies of the rotary embedding, one for each pair of a head's dimensions that is rotated.

    "llama3" leaves wavelengths below ``original / high`` alone, divides those above ``original / low`` by ``factor``
    and interpolates linearly in frequency between the two.
    """
    rotated = int(head_dim * rope.share)
    base = [rope.theta ** (-i / rotated) for i in range(0, rotated, 2)]
    if rope.kind == "linear":
        return [f / rope.factor for f in base]
    return [_llama3(f, rope) for f in base] if rope.kind == "llama3" else base


def _llama3(f: float, rope: Rope) -> float:
    turns = rope.original_max_positions * f / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = min(max(smooth, 0.0), 1.0)
    return (1 - smooth) * f / rope.factor + smooth * f


_SHARED_BY_MODALITIES = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


def load_config(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read ``config.json`` with ``transformers.AutoConfig``; return our config and the content of the file.

    The text part of a multimodal checkpoint is read. End-of-text ids of ``generation_config.json`` win, as they do
    when transformers generates.

    Raises:
      AtlasError: if the file is missing, is not JSON, or describes an unsupported architecture.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import load_config
      >>> load_config(SUBJECT)[0].num_layers
      4
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
