"""Every family against eager float32 transformers: logits, all sites, and twins with one fault that must fail."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers.float64 import distance
from helpers.hf_oracle import LENGTH, ZOO, hf_model, hf_run, jax_model, random_ids, saved, sites
from helpers.parity import ROW_LENGTHS, batch, errors, padded, real_tokens, with_config

from atlas_jax.models import Decoder, LanguageModel, ModelConfig, _attention, decoder_shapes, forward, run
from atlas_jax.models._config import Rope
from atlas_jax.models._families import FAMILIES, Fused
from atlas_jax.types import Tokens

TOLERANCE, FAULT = 1e-5, 1e-4


@pytest.fixture(scope="module")
def reference():
    """Logits and activations of transformers on unpadded rows, computed once a model."""
    done = {}

    def get(name: str) -> tuple:
        if name not in done:
            done[name] = hf_run(hf_model(name), random_ids())
        return done[name]

    return get


@pytest.mark.parametrize("name", ZOO)
def test_logits_and_every_site_equal_transformers_however_rows_are_padded(name, reference):
    for lengths, side in ((ROW_LENGTHS, "left"), (ROW_LENGTHS, "right"), ((LENGTH,) * 3, "right")):
        tokens, spans = padded(side, lengths)
        found = errors(run(jax_model(name), tokens, capture=sites(name)), reference(name), spans)
        assert len(found) == 1 + len(sites(name))
        assert max(found.values()) <= TOLERANCE, (lengths, side, found)


@pytest.mark.parametrize("name", ["llama31", "gemma2", "qwen2", "olmo2", "phi3", "gpt2", "pythia"])
def test_bfloat16_is_as_close_as_bfloat16_allows(name, reference):
    tokens, spans = padded("right", ROW_LENGTHS)
    found = errors(run(jax_model(name, "bfloat16"), tokens), reference(name), spans)
    assert 1e-4 < max(found.values()) <= 2e-2, found


@pytest.fixture
def chunks_of_seven(monkeypatch):
    """Attention of seven queries at once, which do not divide the texts."""
    monkeypatch.setattr(_attention, "ATTENTION_CHUNK", 7)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", ["llama31", "gemma2", "gemma3", "gpt2"])
def test_attention_in_chunks_equals_transformers(name, reference, chunks_of_seven):
    for side in ("left", "right"):
        tokens, spans = padded(side, ROW_LENGTHS)
        found = errors(run(jax_model(name), tokens, capture=sites(name)), reference(name), spans)
        assert max(found.values()) <= TOLERANCE, (side, found)


@pytest.mark.parametrize("wanted", ["logits", "gradient"])
def test_the_scores_of_a_long_text_are_never_there_together(wanted):
    config = dataclasses.replace(jax_model("llama31").config, num_layers=1, max_positions=4096)
    decoder = decoder_shapes(config)
    ids, length = jax.ShapeDtypeStruct((1, 4096), jnp.int32), 4096
    mask, row = jax.ShapeDtypeStruct((1, length), bool), jax.ShapeDtypeStruct((1,), jnp.int32)
    forms = {
        "logits": lambda decoder, tokens: forward(decoder, tokens).logits[:, -1],
        "gradient": jax.grad(lambda decoder, tokens: jnp.sum(forward(decoder, tokens).logits[:, -1])),
    }
    program = jax.jit(forms[wanted]).lower(decoder, Tokens(ids, mask, row)).compile()
    scores = 4 * config.num_heads * length**2
    logits = 4 * config.vocab_size * length
    assert program.memory_analysis().temp_size_in_bytes < scores / 2 + 2 * logits


def test_the_oracle_itself_does_not_depend_on_padding(reference):
    tokens, spans = padded("right", ROW_LENGTHS)
    logits, _ = hf_run(hf_model("gemma2"), np.asarray(tokens.ids), np.asarray(tokens.attention_mask))
    whole = [slice(0, n) for n in ROW_LENGTHS]
    assert distance(real_tokens(logits, spans), real_tokens(reference("gemma2")[0], whole)) < 1e-5


# Twins: the same parameters under one fault.


def config_fault(**changes) -> Callable:
    """A decoder of a changed config around the same parameters."""

    def twin(decoder: Decoder) -> Decoder:
        return with_config(decoder, **{k: f(decoder.config) for k, f in changes.items()})

    return twin


def rope_fault(**changes) -> Callable:
    return config_fault(ropes=lambda c: tuple(dataclasses.replace(r, **changes) for r in c.ropes))


def module_fault(name: str, **changes) -> Callable:
    """The same decoder with attributes of all its submodules of a class changed."""

    def twin(decoder: Decoder) -> Decoder:
        copy = nnx.clone(decoder)
        for _, module in nnx.iter_modules(copy):
            if type(module).__name__ == name:
                for k, v in changes.items():
                    setattr(module, k, v)
        return copy

    return twin


def swapped_norms(first: str, second: str) -> Callable:
    """The same decoder with two norms of every layer exchanged."""

    def twin(decoder: Decoder) -> Decoder:
        copy = nnx.clone(decoder)
        for layer in copy.layers:
            a, b = getattr(layer, first), getattr(layer, second)
            setattr(layer, first, b)
            setattr(layer, second, a)
        return copy

    return twin


class NormOfEachHead(nnx.Module):
    """A norm of all heads together, computed of every head by itself."""

    def __init__(self, norm: nnx.Module, head_dim: int):
        self.norm, self.head_dim = norm, head_dim

    def __call__(self, x):
        heads = x.reshape(*x.shape[:-1], -1, self.head_dim)
        size = jnp.sqrt(jnp.mean(heads**2, axis=-1, keepdims=True) + self.norm.eps)
        return (heads / size).reshape(x.shape) * self.norm.weight[...][None, None]


def norm_of_each_head(decoder: Decoder) -> Decoder:
    copy = nnx.clone(decoder)
    for layer in copy.layers:
        a = layer.self_attn
        a.q_norm, a.k_norm = (NormOfEachHead(norm, a.config.head_dim) for norm in (a.q_norm, a.k_norm))
    return copy


def without_bias(module: str) -> Callable:
    def twin(decoder: Decoder) -> Decoder:
        copy = nnx.clone(decoder)
        for path, linear in nnx.iter_modules(copy):
            if path and path[-1] == module:
                linear.bias = None
        return copy

    return twin


def constant(value) -> Callable:
    return lambda config: value


def windows(change: Callable) -> Callable:
    return config_fault(windows=lambda c: tuple(change(c.windows)))


def default_rope(config: ModelConfig) -> tuple[Rope, ...]:
    return tuple(dataclasses.replace(r, kind="default") for r in config.ropes)


def row_fault(name: str, **changes) -> Callable:
    """The checkpoint read with another row of the table."""

    def twin(decoder: Decoder) -> Decoder:
        family = decoder.config.family
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(FAMILIES, family, dataclasses.replace(FAMILIES[family], **changes))
            return LanguageModel.from_pretrained(saved(name)).decoder

    return twin


FAULTS = {
    "llama31": {
        "theta": rope_fault(theta=60.0),
        "no rope scaling": config_fault(ropes=default_rope),
        "rope factor": rope_fault(factor=8.0),
        "low frequency factor": rope_fault(low_freq_factor=2.0),
        "high frequency factor": rope_fault(high_freq_factor=3.0),
        "original context": rope_fault(original_max_positions=64),
        "eps": config_fault(norm_eps=constant(1e-6)),
        "query scale": config_fault(query_scale=constant(0.3)),
        "activation": config_fault(activation=constant("gelu_pytorch_tanh")),
        "norm offset": module_fault("Norm", kind="rms_one_plus"),
        "embedding scale": module_fault("Embedding", scale=32**0.5),
    },
    "llama": {f"no bias in {m}": without_bias(m) for m in ("q_proj", "o_proj", "gate_proj", "down_proj")},
    "r1": {"theta": rope_fault(theta=60.0), "query scale": config_fault(query_scale=constant(0.2))},
    "mistral": {
        "no window": windows(lambda w: [None] * len(w)),
        "window of one more": windows(lambda w: [x + 1 for x in w]),
    },
    "qwen2": {f"no bias in {m}": without_bias(m) for m in ("q_proj", "k_proj", "v_proj")},
    "qwen2_window": {
        "no window": windows(lambda w: [None] * len(w)),
        "window in every layer": windows(lambda w: [8] * len(w)),
    },
    "qwen3": {
        "no query norm": module_fault("Attention", q_norm=None, k_norm=None),
        "theta": rope_fault(theta=110.0),
    },
    "gemma2": {
        "no attention softcap": config_fault(attn_softcap=constant(None)),
        "attention softcap": config_fault(attn_softcap=constant(1.7)),
        "no final softcap": config_fault(final_softcap=constant(None)),
        "final softcap": config_fault(final_softcap=constant(2.2)),
        "no window": windows(lambda w: [None] * len(w)),
        "window of one less": windows(lambda w: [x and x - 1 for x in w]),
        "window in the wrong layers": windows(lambda w: [w[1], w[0], w[1]]),
        "query scale of the head dimension": config_fault(query_scale=lambda c: c.head_dim**-0.5),
        "eps": config_fault(norm_eps=constant(1e-6)),
        "theta": rope_fault(theta=110.0),
        "activation": config_fault(activation=constant("silu")),
        "norm offset": module_fault("Norm", kind="rms"),
        "no embedding scale": module_fault("Embedding", scale=None),
        "exchanged norms": swapped_norms("post_attention_layernorm", "pre_feedforward_layernorm"),
    },
    "gemma3": {
        "one rope for all layers": config_fault(ropes=lambda c: (c.ropes[0],) * 3),
        "no linear rope scaling": config_fault(ropes=default_rope),
        "global rope scaled in local layers": config_fault(ropes=lambda c: (c.ropes[1],) * 3),
        "no query norm": module_fault("Attention", q_norm=None, k_norm=None),
        "norm offset": module_fault("Norm", kind="rms"),
        "window of one more": windows(lambda w: [x and x + 1 for x in w]),
        "query scale of the head dimension": config_fault(query_scale=lambda c: c.head_dim**-0.5),
    },
    "olmo2": {
        "no norm after attention": module_fault("DecoderLayer", post_attention_layernorm=None),
        "no norm after the MLP": module_fault("DecoderLayer", post_feedforward_layernorm=None),
        "exchanged norms": swapped_norms("post_attention_layernorm", "post_feedforward_layernorm"),
        "no query norm": module_fault("Attention", q_norm=None, k_norm=None),
        "norm of each head": norm_of_each_head,
        "norm offset": module_fault("Norm", kind="rms_one_plus"),
        "eps": config_fault(norm_eps=constant(1e-6)),
        "theta": rope_fault(theta=110.0),
    },
    "phi3": {
        "all dimensions rotated": row_fault("phi3", partial_rotary=False),
        "fewer dimensions rotated": rope_fault(share=0.5),
        "gate and up exchanged": row_fault(
            "phi3", fused=(FAMILIES["phi3"].fused[0], Fused("gate_up_proj", ("up_proj", "gate_proj")))
        ),
        "values before keys": row_fault(
            "phi3", fused=(Fused("qkv_proj", ("q_proj", "v_proj", "k_proj")), FAMILIES["phi3"].fused[1])
        ),
        "no window": windows(lambda w: [None] * len(w)),
        "theta": rope_fault(theta=110.0),
    },
    "starcoder2": {
        **{f"no bias in {m}": without_bias(m) for m in ("q_proj", "o_proj", "down_proj", "norm")},
        "root mean square": module_fault("Norm", kind="rms"),
        "no window": windows(lambda w: [None] * len(w)),
        "eps": config_fault(norm_eps=constant(1e-5)),
        "exact gelu": config_fault(activation=constant("gelu")),
    },
    "gpt2": {
        **{f"no bias in {m}": without_bias(m) for m in ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")},
        **{f"no bias in {m}": without_bias(m) for m in ("input_layernorm", "post_attention_layernorm", "norm")},
        "root mean square": module_fault("Norm", kind="rms"),
        "eps": config_fault(norm_eps=constant(1e-5)),
        "exact gelu": config_fault(activation=constant("gelu")),
        "no positions": module_fault("Decoder", embed_positions=None),
        "values before keys": row_fault("gpt2", fused=(Fused("c_attn", ("q_proj", "v_proj", "k_proj")),)),
    },
    "pythia": {
        **{f"no bias in {m}": without_bias(m) for m in ("q_proj", "v_proj", "o_proj", "up_proj", "norm")},
        "MLP after attention": config_fault(placement=constant("pre")),
        "all dimensions rotated": rope_fault(share=1.0),
        "theta": rope_fault(theta=110.0),
        "tanh gelu": config_fault(activation=constant("gelu_new")),
        "eps": config_fault(norm_eps=constant(1e-5)),
        "queries of all heads before keys": row_fault(
            "pythia", fused=(Fused("query_key_value", ("q_proj", "k_proj", "v_proj")),)
        ),
    },
    "smollm3": {
        "rotation in every layer": config_fault(ropes=lambda c: (c.ropes[0],) * 3),
        "no rotation": config_fault(ropes=lambda c: (None,) * 3),
        "rotation in the wrong layers": config_fault(ropes=lambda c: (None, c.ropes[0], None)),
        "no window": windows(lambda w: [None] * len(w)),
    },
    "gpt_neox": {"MLP beside attention": config_fault(placement=constant("parallel"))},
}


@pytest.mark.parametrize(("name", "fault"), [(n, f) for n, faults in FAULTS.items() for f in faults])
def test_a_twin_with_one_fault_is_told_apart(name, fault, reference):
    decoder = FAULTS[name][fault](jax_model(name).decoder)
    logits = forward(decoder, batch(random_ids())).logits
    assert distance(logits, reference(name)[0]) > FAULT


@pytest.mark.parametrize("name", FAULTS)
def test_the_unchanged_twin_is_not(name, reference):
    decoder = config_fault()(jax_model(name).decoder)
    assert distance(forward(decoder, batch(random_ids())).logits, reference(name)[0]) <= TOLERANCE


def test_the_oracle_is_eager_and_float32():
    assert all(hf_model(n).config._attn_implementation == "eager" and hf_model(n).dtype == torch.float32 for n in ZOO)
