"""Configs, weights and tokenizers: from disk, back to transformers bit for bit, and what is refused."""

import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from helpers.hf_oracle import SHAPE, ZOO, hf_model, jax_model, random_ids, save_tokenizer, saved
from safetensors.numpy import load_file, save_file

from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel, ModelConfig, decoder_shapes, run
from atlas_jax.models._config import load_config
from atlas_jax.types import Tokens


def logits(lm: LanguageModel) -> np.ndarray:
    ids = jnp.asarray(random_ids(2, 16), jnp.int32)
    return np.asarray(run(lm, Tokens(ids, jnp.ones(ids.shape, bool), jnp.arange(2))).logits)


@pytest.fixture
def copy(tmp_path):
    """A writable copy of the llama31 checkpoint."""
    return shutil.copytree(saved("llama31"), tmp_path / "model")


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Configuration.


@pytest.mark.parametrize("name", ZOO)
def test_a_config_on_disk_is_that_of_the_model(name):
    assert load_config(saved(name))[0] == ModelConfig.from_hf(hf_model(name).config)


# Configurations in the spellings of published checkpoints, with what the decoder must make of them.
PUBLISHED = {
    "llama 3.2": (
        {
            "model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 64, "num_hidden_layers": 16, "rope_theta": 500000.0, "tie_word_embeddings": True,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "eos_token_id": [128001, 128008, 128009],
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        },
        lambda c: (c.ropes[0].theta, c.ropes[0].kind, c.ropes[0].factor, c.ropes[0].original_max_positions, c.eos_ids)
        == (500000.0, "llama3", 32.0, 8192, (128001, 128008, 128009)) and c.tie_embeddings and c.norm_eps == 1e-5,
    ),
    "gemma 2 27b": (
        {
            "model_type": "gemma2", "num_hidden_layers": 4, "query_pre_attn_scalar": 144, "head_dim": 128,
            "sliding_window": 4096, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0,
            "sliding_window_size": 4096, "hidden_activation": "gelu_pytorch_tanh",
        },
        lambda c: (c.windows, c.query_scale, c.head_dim, c.activation)
        == ((4096, None, 4096, None), 144**-0.5, 128, "gelu_pytorch_tanh"),
    ),
    "gemma 2 9b": (
        {"model_type": "gemma2", "num_hidden_layers": 4, "rope_theta": 10000.0, "cache_implementation": "hybrid"},
        lambda c: (c.windows, c.attn_softcap, c.final_softcap, c.query_scale)
        == ((4096, None, 4096, None), 50.0, 30.0, 256**-0.5),
    ),
    "gemma 3 4b": (
        {
            "model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"hidden_size": 1152},
            "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 7,
                            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        },
        lambda c: c.windows == (1024,) * 5 + (None, 1024)
        and [(r.theta, r.kind, r.factor) for r in c.ropes[4:6]] == [(1e4, "default", 1.0), (1e6, "linear", 8.0)]
        and c.eos_ids == (1, 106) and c.attn_softcap is None and c.qk_norm,
    ),
    "qwen 2.5": (
        {
            "model_type": "qwen2", "num_hidden_layers": 2, "sliding_window": 131072, "use_sliding_window": False,
            "max_window_layers": 28, "rope_theta": 1000000.0,
        },
        lambda c: c.windows == (None, None) and c.ropes[0].theta == 1e6 and c.qkv_bias and not c.o_bias,
    ),
    "qwen 3": (
        {"model_type": "qwen3", "num_hidden_layers": 2, "head_dim": 128, "rope_theta": 1000000},
        lambda c: c.qk_norm and not c.qkv_bias and c.head_dim == 128,
    ),
    "gpt2": (
        {
            "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "vocab_size": 50257,
            "summary_type": "cls_index", "task_specific_params": {"text-generation": {"do_sample": True}},
        },
        lambda c: (c.hidden_size, c.intermediate_size, c.num_layers, c.num_kv_heads, c.head_dim, c.max_positions)
        == (768, 3072, 12, 12, 64, 1024) and c.tie_embeddings and c.ropes == (None,) * 12,
    ),
    "pythia": (
        {
            "model_type": "gpt_neox", "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 6,
            "intermediate_size": 2048, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "use_parallel_residual": True,
            "tie_word_embeddings": False, "vocab_size": 50304,
        },
        lambda c: (c.ropes[5].share, c.ropes[5].theta, c.placement, c.head_dim, c.activation)
        == (0.25, 10000.0, "parallel", 64, "gelu") and c.qkv_bias and c.o_bias and c.mlp_bias,
    ),
    "phi 3 mini": (
        {
            "model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
            "num_hidden_layers": 2, "sliding_window": 2047, "rope_scaling": None, "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096, "attention_bias": False, "eos_token_id": 32000,
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        },
        lambda c: (c.windows, c.head_dim, c.ropes[0].share, c.ropes[0].theta) == ((2047, 2047), 96, 1.0, 1e4),
    ),
    "olmo 2": (
        {
            "model_type": "olmo2", "hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32,
            "rope_scaling": None, "rope_theta": 500000, "attention_bias": False, "rms_norm_eps": 1e-6,
        },
        lambda c: (c.placement, c.qk_norm, c.num_kv_heads, c.ropes[0].theta, c.norm_eps)
        == ("post", "full", 32, 5e5, 1e-6),
    ),
    "smollm 2": (
        {
            "model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
            "num_hidden_layers": 30, "intermediate_size": 1536, "is_llama_config": True, "rope_interleaved": False,
            "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
        },
        lambda c: (c.head_dim, c.num_kv_heads, c.ropes[0].theta, c.ropes[0].kind) == (64, 3, 1e5, "default")
        and c.tie_embeddings,
    ),
    "smollm 3": (
        {"model_type": "smollm3", "num_hidden_layers": 8, "rope_theta": 5000000.0, "no_rope_layer_interval": 4},
        lambda c: [r and r.theta for r in c.ropes] == [5e6, 5e6, 5e6, None] * 2 and c.windows == (None,) * 8,
    ),
    "mistral 0.1": (
        {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 4096, "rope_theta": 10000.0},
        lambda c: c.windows == (4096, 4096),
    ),
    "mistral 0.3": (
        {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": None, "rope_theta": 1000000.0},
        lambda c: c.windows == (None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_spellings(name, tmp_path):
    raw, correct = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert correct(load_config(tmp_path)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config=.*fp8.* is not handled"),
        ({"is_causal": False}, "is_causal=False is not handled"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'yarn' is not supp"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"model_type": "bloom"}, "model_type 'bloom', which is not supported"),
        ({"num_hidden_layers": "three"}, "config.json: transformers cannot read this configuration"),
        ({"hidden_size": None}, "config.json: transformers cannot read this configuration"),
        ({"model_type": ["llama"]}, "model_type \\['llama'\\], which is not supported"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(copy, changes, message):
    change_config(copy, **changes)
    with pytest.raises(AtlasError, match=message):
        LanguageModel.from_pretrained(copy)


def test_bidirectional_gemma_is_refused():
    config = transformers.Gemma3TextConfig(**SHAPE, use_bidirectional_attention=True)
    with pytest.raises(AtlasError, match="use_bidirectional_attention=True is not handled"):
        ModelConfig.from_hf(config)


def test_generation_config_decides_where_text_ends(copy):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert load_config(copy)[0].eos_ids == (2, 9)


# Weights.


@pytest.mark.parametrize("name", ZOO)
def test_a_saved_model_is_the_same_to_the_bit_in_transformers(name, tmp_path):
    jax_model(name).save_pretrained(tmp_path / "again")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(theirs) is type(hf_model(name))
    expected, found = hf_model(name).state_dict(), theirs.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    assert LanguageModel.from_pretrained(tmp_path / "again").config == jax_model(name).config


def test_a_bfloat16_model_is_saved_as_it_is(tmp_path):
    jax_model("gemma2", "bfloat16").save_pretrained(tmp_path / "half")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half").state_dict()
    expected = hf_model("gemma2").state_dict()
    assert all(torch.equal(theirs[k], expected[k].to(torch.bfloat16)) for k in expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_any_stored_precision_is_read(dtype, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen2"), dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    lm = LanguageModel.from_pretrained(tmp_path)
    ours = np.asarray(lm.decoder.layers[1].mlp.up_proj.weight[...])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.T, model.model.layers[1].mlp.up_proj.weight.detach().float().numpy())


def test_shards_with_an_index(tmp_path):
    hf_model("gemma2").save_pretrained(tmp_path, max_shard_size="20KB")
    save_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    np.testing.assert_array_equal(logits(LanguageModel.from_pretrained(tmp_path)), logits(jax_model("gemma2")))
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(AtlasError, match="cannot be read .*; download it again"):
        LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_text_model_nested_in_a_multimodal_checkpoint(prefix, tmp_path):
    tensors = {k.replace("model.", prefix, 1): v for k, v in load_file(saved("gemma3") / "model.safetensors").items()}
    extra = {"vision_tower.x.weight": np.ones((2, 2)), "multi_modal_projector.y.weight": np.ones(3)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    text = json.loads((saved("gemma3") / "config.json").read_text())
    raw = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "mm_tokens_per_image": 4}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_tokenizer(tmp_path)
    lm = LanguageModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(logits(lm), logits(jax_model("gemma3")))
    lm.save_pretrained(tmp_path / "text")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert all(torch.equal(v, hf_model("gemma3").state_dict()[k]) for k, v in theirs.state_dict().items())


def test_missing_unexpected_and_misshapen_tensors_are_reported_together(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 16), np.float32)
    tensors["model.layers.0.self_attn.sinks"] = np.zeros(4, np.float32)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(AtlasError) as error:
        LanguageModel.from_pretrained(copy)
    for part in (
        "missing layers.1.mlp.up_proj.weight",
        "unexpected layers.0.self_attn.sinks",
        "layers.0.self_attn.q_proj.weight has shape (32, 16) where the config asks for (32, 32)",
    ):
        assert part in str(error.value)


def test_parameters_go_straight_to_the_devices_that_hold_them(copy):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    lm = LanguageModel.from_pretrained(copy, mesh=mesh)
    up = lm.decoder.layers[0].mlp.up_proj.weight[...]
    assert {s.data.shape for s in up.addressable_shards} == {(32, 28)}
    np.testing.assert_array_equal(up, jax_model("llama31").decoder.layers[0].mlp.up_proj.weight[...])


# What a user may get wrong.


def test_a_truncated_file_is_named(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(AtlasError, match="model.safetensors cannot be read"):
        LanguageModel.from_pretrained(copy)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", r"has no \*.safetensors"),
    ],
)
def test_an_incomplete_directory_is_refused(copy, missing, message):
    (copy / missing).unlink()
    with pytest.raises(AtlasError, match=message):
        LanguageModel.from_pretrained(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_broken_json_file_is_refused(copy, file):
    (copy / file).write_text("{")
    with pytest.raises(AtlasError, match="config.json' is damaged" if "config" in file else "tokenizer of .* cannot"):
        LanguageModel.from_pretrained(copy)


def test_a_missing_directory_never_reaches_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("went to the hub"))
    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere"):
        with pytest.raises(AtlasError, match="is not a directory"):
            LanguageModel.from_pretrained(name)


def test_a_gated_or_missing_repository_is_one_sentence(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(AtlasError, match="could not be fetched from the hub .* gated repositories"):
        LanguageModel.from_pretrained("owner/model")


def test_an_unsupported_dtype_is_refused(copy):
    with pytest.raises(AtlasError, match="dtype 'float16' is not supported"):
        LanguageModel.from_pretrained(copy, dtype="float16")


# Tokens.


def test_the_saved_tokenizer_is_the_same_in_transformers(tmp_path):
    lm = jax_model("llama31")
    lm.save_pretrained(tmp_path / "again")
    text = "w5 w7 w90 w11"
    ids = lm.tokenizer.encode([text])[0]
    assert ids == [5, 7, 90, 11]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")(text)["input_ids"] == ids
    assert lm.tokenizer.decode([5, 2, 7]) == "w5 w7"


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenize_pads_and_masks(side):
    tokens = jax_model("llama31").tokenize(["w5 <eos> w7", "w9"], index=[4, 8], side=side)
    real = [[True] * 3, [False, False, True] if side == "left" else [True, False, False]]
    assert tokens.attention_mask.tolist() == real
    assert tokens.mask[0].tolist() == [True, False, True]
    assert tokens.index.tolist() == [4, 8]
    assert tokens.ids[tokens.attention_mask].tolist() == [5, 2, 7, 9]


def test_long_texts_are_cut_only_when_asked_and_no_text_is_refused():
    lm = jax_model("llama31")
    with pytest.raises(AtlasError, match="a text of 300 tokens exceeds the model's context of 128"):
        lm.tokenize(["w5 " * 300])
    assert lm.tokenize(["w5 " * 300], max_length=7).ids.shape == (1, 7)
    with pytest.raises(AtlasError, match="no text"):
        lm.tokenize([])


def test_models_of_one_config_share_shapes_and_nothing_else():
    first, second = (LanguageModel.from_pretrained(saved("llama31")) for _ in range(2))
    changed = nnx.state(first.decoder)
    nnx.update(first.decoder, jax.tree.map(lambda x: x + 1, changed))
    third = LanguageModel.from_pretrained(saved("llama31"))
    for a, b, shape in zip(*map(jax.tree.leaves, (second, third, decoder_shapes(third.config))), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        np.testing.assert_array_equal(a, b)
