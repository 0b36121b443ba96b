"""The table of decoder families: one row a ``model_type`` of transformers, with all that tells it from the others.

Sizes and strengths come from a checkpoint's config (``_config.py``); the decoder branches on what a row says, never on
the name of a family.
"""

import dataclasses
from collections.abc import Mapping

_EVERY = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "bos_token_id",
    "eos_token_id", "pad_token_id", "model_type",
})  # fmt: skip
_WINDOWS = {"sliding_window", "layer_types"}
_GEMMA = _WINDOWS | {
    "hidden_activation", "attention_bias", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fused:
    """Projections that a checkpoint stores as one.

    Attributes:
      name: of the module that holds them.
      parts: the projections in their order.
    """

    name: str
    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What tells a family from the others.

    Attributes:
      reads: the attributes of a config that the model class of transformers reads. Any other changes nothing there,
        nor here.
      norm: "rms" (root mean square, scaled by the weight in the model's dtype), "rms_float32" (by the weight in
        float32) or "rms_one_plus" (by 1 + weight in float32).
      placement: of the norms in a block: "pre" (before attention and before the MLP), "post" (after each) or
        "sandwich" (before and after each).
      qk_norm: of queries and keys: None, "head" (every head by itself) or "full" (all heads together).
      scaled_embedding: whether token embeddings are multiplied by the root of their width.
      biases: projections that always have one: "qkv", "o", "mlp". Others have one where the family reads
        ``attention_bias`` or ``mlp_bias`` and the config sets it.
      partial_rotary: whether ``partial_rotary_factor`` of the rotary embedding acts: only this share of a head's
        dimensions is rotated.
      activation: the attribute of the config that names the activation function.
      names: what its checkpoints call modules, where not as the decoder does.
      fused: projections that its checkpoints store as one.
    """

    reads: frozenset[str]
    norm: str = "rms"
    placement: str = "pre"
    qk_norm: str | None = None
    scaled_embedding: bool = False
    biases: frozenset[str] = frozenset()
    partial_rotary: bool = False
    activation: str = "hidden_act"
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fused: tuple[Fused, ...] = ()


FAMILIES: dict[str, Family] = {
    "llama": Family(reads=_EVERY | {"hidden_act", "attention_bias", "mlp_bias"}),
    "mistral": Family(reads=_EVERY | {"hidden_act", "sliding_window"}),
    "qwen2": Family(
        reads=_EVERY | _WINDOWS | {"hidden_act", "use_sliding_window", "max_window_layers"},
        biases=frozenset({"qkv"}),
    ),
    "qwen3": Family(
        reads=_EVERY | _WINDOWS | {"hidden_act", "use_sliding_window", "max_window_layers", "attention_bias"},
        qk_norm="head",
    ),
    "gemma2": Family(
        reads=_EVERY | _GEMMA,
        norm="rms_one_plus",
        placement="sandwich",
        scaled_embedding=True,
        activation="hidden_activation",
    ),
    "gemma3_text": Family(
        reads=(_EVERY | _GEMMA) - {"attn_logit_softcapping"},
        norm="rms_one_plus",
        placement="sandwich",
        qk_norm="head",
        scaled_embedding=True,
        activation="hidden_activation",
    ),
    "olmo2": Family(
        reads=_EVERY | {"hidden_act", "attention_bias"}, norm="rms_float32", placement="post", qk_norm="full"
    ),
    "phi3": Family(
        reads=_EVERY | {"hidden_act", "sliding_window", "original_max_position_embeddings"},
        partial_rotary=True,
        fused=(Fused("qkv_proj", ("q_proj", "k_proj", "v_proj")), Fused("gate_up_proj", ("gate_proj", "up_proj"))),
    ),
}
