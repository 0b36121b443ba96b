"""Tiny transformers models whose every detail shows in the output, and their activations and edits by PyTorch hooks."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

from atlas_jax.models import LanguageModel
from atlas_jax.types import POINTS, Site

torch.set_num_threads(1)  # the models are tiny
VOCAB, LAYERS, LENGTH = 96, 3, 36
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def _theta(theta: float, **more) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


# name: model_type and the fields that differ from SHAPE
ZOO: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama31": ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "r1": ("llama", {"num_key_value_heads": 1, "rope_parameters": LLAMA3, "head_dim": 16}),
    "smollm3": (
        "smollm3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 8} | _theta(100.0),
    ),
    "mistral": ("mistral", {"sliding_window": 8, "tie_word_embeddings": False} | _theta(100.0)),
    "qwen2": ("qwen2", {"tie_word_embeddings": False} | _theta(100.0)),
    "qwen2_window": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "num_key_value_heads": 4,
        },
    ),
    "qwen3": ("qwen3", {"tie_word_embeddings": True} | _theta(100.0)),
    "gemma2": (
        "gemma2",
        {
            "tie_word_embeddings": True,
            "sliding_window": 8,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        }
        | _theta(100.0),
    ),
    "gemma3": (
        "gemma3_text",
        {
            "tie_word_embeddings": True,
            "sliding_window": 8,
            "query_pre_attn_scalar": 5,
            "layer_types": MIXED,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    "olmo2": ("olmo2", {"tie_word_embeddings": False} | _theta(100.0)),
    "phi3": ("phi3", {"sliding_window": 8} | _theta(100.0, partial_rotary_factor=0.75)),
    "starcoder2": ("starcoder2", {"sliding_window": 8, "norm_epsilon": 1e-2} | _theta(100.0)),
    "gpt2": (
        "gpt2",
        {"n_embd": 32, "n_inner": 56, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "layer_norm_epsilon": 1e-2},
    ),
    "pythia": ("gpt_neox", {"layer_norm_eps": 1e-2} | _theta(100.0, partial_rotary_factor=0.5)),
    "gpt_neox": (
        "gpt_neox",
        {
            "tie_word_embeddings": True,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
        },
    ),
}  # fmt: skip

# Where each point lives in the modules of transformers, and whether it is the module's input or output. An edit of an
# input changes what this module sees alone, so points read by several modules are given as the output before them.
_COMMON = {
    "resid_pre": ("", "in"),
    "attn_in": ("input_layernorm", "out"),
    "z": ("self_attn.o_proj", "in"),
    "head_norm": ("self_attn.o_proj", "in"),
    "attn_out": ("self_attn.o_proj", "out"),
    "mlp_gate_act": ("mlp.act_fn", "out"),
    "mlp_act": ("mlp.down_proj", "in"),
    "mlp_out": ("mlp.down_proj", "out"),
    "resid_post": ("", "out"),
}
_PLAIN = _COMMON | {
    "attn_out_post": ("self_attn.o_proj", "out"),
    "resid_mid": ("post_attention_layernorm", "in"),
    "mlp_in": ("post_attention_layernorm", "out"),
    "mlp_out_post": ("mlp.down_proj", "out"),
}
_GEMMA = _COMMON | {
    "attn_out_post": ("post_attention_layernorm", "out"),
    "resid_mid": ("pre_feedforward_layernorm", "in"),
    "mlp_in": ("pre_feedforward_layernorm", "out"),
    "mlp_out_post": ("post_feedforward_layernorm", "out"),
}
# Without a norm before attention and MLP, their inputs can be read at their first projections, but not edited there.
_OLMO2 = _GEMMA | {
    "attn_in": ("self_attn.q_proj", "in"),
    "resid_mid": ("mlp", "in"),
    "mlp_in": ("mlp.up_proj", "in"),
}


def _ungated(before_attention: str, z: str, before_mlp: str, mlp_act: str) -> dict[str, tuple[str, str]]:
    """Points of a block without gate and post-norms: its norms, and the modules that read z and mlp_act."""
    return {
        "resid_pre": ("", "in"),
        "attn_in": (before_attention, "out"),
        **dict.fromkeys(("z", "head_norm"), (z, "in")),
        **dict.fromkeys(("attn_out", "attn_out_post"), (z, "out")),
        "resid_mid": (before_mlp, "in"),
        "mlp_in": (before_mlp, "out"),
        "mlp_act": (mlp_act, "in"),
        **dict.fromkeys(("mlp_out", "mlp_out_post"), (mlp_act, "out")),
        "resid_post": ("", "out"),
    }


_GPT2 = _ungated("ln_1", "attn.c_proj", "ln_2", "mlp.c_proj")
_NEOX = _ungated("input_layernorm", "attention.dense", "post_attention_layernorm", "mlp.dense_4h_to_h")
_STARCODER2 = _ungated("input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "mlp.c_proj")
_PHI3 = _PLAIN | {"mlp_gate_act": ("mlp.activation_fn", "out")}
PLACES = {"gemma2": _GEMMA, "gemma3_text": _GEMMA, "olmo2": _OLMO2, "phi3": _PHI3, "gpt2": _GPT2, "gpt_neox": _NEOX}
PLACES |= {"starcoder2": _STARCODER2}


def places(config: transformers.PreTrainedConfig) -> dict[str, tuple[str, str]]:
    """The points that blocks of a model have."""
    points = PLACES.get(config.model_type, _PLAIN)
    parallel = getattr(config, "use_parallel_residual", False)
    return {point: place for point, place in points.items() if not (parallel and point == "resid_mid")}


def sites(name: str) -> list[Site]:
    """All sites of a model of the zoo."""
    points = places(hf_model(name).config)
    return [Site(point, layer) for layer in range(LAYERS) for point in POINTS if point in points]


@functools.cache
def hf_model(name: str) -> transformers.PreTrainedModel:
    """A float32 eager model of the zoo, at unit gain and with jittered norms."""
    family, changes = ZOO[name]
    kind = transformers.CONFIG_MAPPING[family]
    declared = {field.name for field in dataclasses.fields(kind)}
    shape = {k: v for k, v in (SHAPE | changes).items() if k in declared}
    config = kind(**shape, attn_implementation="eager")
    return unit_gain(transformers.AutoModelForCausalLM.from_config(config).eval())


def unit_gain(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Redraw matrices at variance 1 / fan-in, and move norm weights and biases well away from their defaults."""
    generator = torch.Generator().manual_seed(0)
    conv = transformers.pytorch_utils.Conv1D
    inputs_first = {id(m.weight) for m in model.modules() if isinstance(m, conv)}
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(draw * parameter.shape[0 if id(parameter) in inputs_first else 1] ** -0.5)
            else:
                parameter.add_(0.3 * draw)
    return model


@functools.cache
def saved(name: str) -> Path:
    """A directory with the model of the zoo and a tokenizer; it goes away with the process."""
    directory = tempfile.TemporaryDirectory(prefix=f"atlas-jax-{name}-")
    _keep_alive.append(directory)
    hf_model(name).save_pretrained(directory.name)
    save_tokenizer(Path(directory.name))
    return Path(directory.name)


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of words ``w3 w4 ...`` with the three special tokens of the zoo."""
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, VOCAB))]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(words[:3])
    backend.save(str(directory / "tokenizer.json"))


_keep_alive: list[tempfile.TemporaryDirectory] = []


@functools.cache
def jax_model(name: str, dtype: str = "float32") -> LanguageModel:
    """Our model of the same checkpoint."""
    return LanguageModel.from_pretrained(saved(name), dtype=dtype)


def random_ids(rows: int = 3, length: int = LENGTH) -> np.ndarray:
    """Content tokens, no special one among them."""
    return np.random.default_rng(1).integers(3, VOCAB, (rows, length))


@contextlib.contextmanager
def hooks(model: transformers.PreTrainedModel, at: dict[Site, Callable]) -> Iterator[None]:
    """While open, ``at[site](x)`` is called on activations; what it returns, unless None, replaces them."""
    handles = [_hook(model, site, f) for site, f in at.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(model: transformers.PreTrainedModel, site: Site, f: Callable) -> torch.utils.hooks.RemovableHandle:
    block = (model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers)[site.layer]
    path, side = places(model.config)[site.point]
    module = block.get_submodule(path)

    def before(_module: torch.nn.Module, args: tuple) -> tuple | None:
        new = f(args[0])
        return None if new is None else (new, *args[1:])

    def after(_module: torch.nn.Module, _args: tuple, out: torch.Tensor) -> torch.Tensor | None:
        return f(out)

    return module.register_forward_pre_hook(before) if side == "in" else module.register_forward_hook(after)


def hf_run(
    model: transformers.PreTrainedModel, ids: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, dict[Site, np.ndarray]]:
    """Logits and the activations of all sites."""
    acts: dict[Site, np.ndarray] = {}

    def keep(site: Site) -> Callable:
        heads = lambda x: x.unflatten(-1, (model.config.num_attention_heads, -1)).norm(dim=-1)
        value = heads if site.point == "head_norm" else lambda x: x
        return lambda x: acts.__setitem__(site, value(x.detach().float()).numpy().copy())

    mask = None if mask is None else torch.tensor(mask).long()
    everywhere = [Site(point, layer) for layer in range(LAYERS) for point in places(model.config)]
    with torch.no_grad(), hooks(model, {site: keep(site) for site in everywhere}):
        out = model(torch.tensor(ids).long(), attention_mask=mask, use_cache=False)
    return out.logits.float().numpy(), acts
