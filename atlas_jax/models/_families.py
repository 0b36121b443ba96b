"""The table of decoder families: one row a ``model_type`` of transformers, with all that sets it apart.

Sizes and strengths come from a checkpoint's config (``_config.py``); the decoder branches on the columns of a row,
never on the name of a family.
"""

import dataclasses
from collections.abc import Mapping

_EVERY = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "bos_token_id",
    "eos_token_id", "pad_token_id", "model_type",
})  # fmt: skip
_GPT2 = frozenset({
    "vocab_size", "n_embd", "n_inner", "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "activation_function",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "model_type",
})  # fmt: skip
_NEOX = _EVERY - {"num_key_value_heads", "rms_norm_eps"}
_NEOX_NAMES = {
    "embed_tokens": "embed_in", "norm": "final_layer_norm", "self_attn": "attention", "o_proj": "dense",
    "up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h", "lm_head": "embed_out",
}  # fmt: skip
_GPT2_NAMES = {
    "embed_tokens": "wte", "embed_positions": "wpe", "layers": "h", "norm": "ln_f", "self_attn": "attn",
    "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "o_proj": "c_proj", "up_proj": "c_fc",
    "down_proj": "c_proj",
}  # fmt: skip
_WINDOWS = {"sliding_window", "layer_types"}
_GEMMA = _WINDOWS | {
    "hidden_activation", "attention_bias", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fused:
    """Projections that a checkpoint stores as one.

    Attributes:
      name: name of the module that holds them.
      parts: the projections in their order.
      by_head: true where they follow one another for every head, instead of all heads of one before those of the next.
    """

    name: str
    parts: tuple[str, ...]
    by_head: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Row of a family in the table.

    Attributes:
      reads: the attributes of a config that the model class of transformers reads. Any other changes nothing there,
        nor here.
      norm: "rms" (root mean square, scaled by the weight in the model's dtype), "rms_float32" (by the weight in
        float32), "rms_one_plus" (by 1 + weight in float32) or "layer" (mean and variance, with a bias).
      norm_eps: the attribute of the config that names the norms' epsilon.
      placement: of the norms in a block: "pre" (before attention and before the MLP), "post" (after each), "sandwich"
        (before and after each) or "parallel" (as "pre", but the MLP reads what attention reads, unless
        ``use_parallel_residual`` is off in the config).
      qk_norm: of queries and keys: None, "head" (every head by itself) or "full" (all heads together).
      position: "rotary" (of queries and keys, except in layers where ``no_rope_layers`` of the config is 0) or
        "learned" (an embedding of each position, added to the token's).
      scaled_embedding: true where token embeddings are multiplied by the root of their width.
      biases: projections that always have one: "qkv", "o", "mlp". Others have one where the family reads
        ``attention_bias`` or ``mlp_bias`` and the config sets it.
      partial_rotary: true where ``partial_rotary_factor`` of the rotary embedding acts: only this share of a head's
        dimensions is rotated.
      gated: true where the MLP is ``act(gate x) * up x``, else ``act(up x)``.
      activation: the attribute of the config that names the activation function.
      intermediate_size: the attribute that gives the MLP's width; four times the model's where it is None.
      prefix: of the names of all tensors but the head's.
      names: names of modules in its checkpoints, where they differ from the decoder's.
      fused: projections that its checkpoints store as one.
      conv1d: true where projections are stored ``[in, out]``.
      buffers: endings of tensors that are no parameters.
    """

    reads: frozenset[str]
    norm: str = "rms"
    norm_eps: str = "rms_norm_eps"
    placement: str = "pre"
    qk_norm: str | None = None
    position: str = "rotary"
    scaled_embedding: bool = False
    biases: frozenset[str] = frozenset()
    partial_rotary: bool = False
    gated: bool = True
    activation: str = "hidden_act"
    intermediate_size: str = "intermediate_size"
    prefix: str = "model."
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    conv1d: bool = False
    buffers: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "llama": Family(reads=_EVERY | {"hidden_act", "attention_bias", "mlp_bias"}),
    "smollm3": Family(
        reads=_EVERY
        | _WINDOWS
        | {"hidden_act", "use_sliding_window", "no_rope_layers", "no_rope_layer_interval", "attention_bias", "mlp_bias"}
    ),
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
    "starcoder2": Family(
        reads=(_EVERY - {"rms_norm_eps"}) | {"hidden_act", "norm_epsilon", "sliding_window", "use_bias"},
        norm="layer",
        norm_eps="norm_epsilon",
        biases=frozenset({"qkv", "o", "mlp"}),
        gated=False,
        names={"up_proj": "c_fc", "down_proj": "c_proj"},
    ),
    "gpt2": Family(
        reads=_GPT2,
        norm="layer",
        norm_eps="layer_norm_epsilon",
        position="learned",
        biases=frozenset({"qkv", "o", "mlp"}),
        gated=False,
        activation="activation_function",
        intermediate_size="n_inner",
        prefix="transformer.",
        names=_GPT2_NAMES,
        fused=(Fused("c_attn", ("q_proj", "k_proj", "v_proj")),),
        conv1d=True,
        buffers=(".attn.bias", ".attn.masked_bias"),
    ),
    "gpt_neox": Family(
        reads=_NEOX | {"hidden_act", "layer_norm_eps", "attention_bias", "use_parallel_residual"},
        norm="layer",
        norm_eps="layer_norm_eps",
        placement="parallel",
        biases=frozenset({"mlp"}),
        partial_rotary=True,
        gated=False,
        prefix="gpt_neox.",
        names=_NEOX_NAMES,
        fused=(Fused("query_key_value", ("q_proj", "k_proj", "v_proj"), by_head=True),),
        buffers=(".attention.bias", ".attention.masked_bias"),
    ),
}
