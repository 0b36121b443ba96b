"""Model directories with odd content: what transformers makes of one is what is loaded, or it is refused by name."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from helpers.float64 import distance
from helpers.hf_oracle import VOCAB, jax_model, random_ids, saved
from safetensors.torch import load_file, save_file

from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel, generate, run
from atlas_jax.steering import Steer
from atlas_jax.types import Site, Tokens

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def copy(tmp_path):
    """Makes a writable copy of a checkpoint of the zoo."""
    return lambda name: shutil.copytree(saved(name), tmp_path / "model")


def change(path, **changes):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def logits(lm):
    ids = jnp.asarray(random_ids(2, 20), jnp.int32)
    return np.asarray(run(lm, Tokens(ids, jnp.ones(ids.shape, bool), jnp.arange(2))).logits)


def their_logits(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(random_ids(2, 20)).long(), use_cache=False).logits.numpy()


def assert_as_transformers(directory, **unlike):
    ours = logits(LanguageModel.from_pretrained(directory))
    assert distance(ours, their_logits(directory)) < 1e-4
    for name in unlike.get("unlike", ()):
        assert distance(ours, logits(jax_model(name))) > 1e-3, "the odd content made no difference"


# Configurations: attributes that the model class of transformers does not read.
FOREIGN = [
    ("llama31", {"sliding_window": 4}),
    ("llama31", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4, "use_sliding_window": True}),
    ("llama31", {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0, "query_pre_attn_scalar": 3}),
    ("llama31", {"is_llama_config": True, "rope_interleaved": False, "use_mrope": False, "attention_sinks": 4}),
    ("llama31", {"quantization_config": None, "logit_scale": None, "partial_rotary_factor": None}),
    ("mistral", {"attention_bias": True, "mlp_bias": True, "max_window_layers": 1, "use_sliding_window": False}),
    ("mistral", {"attn_logit_softcapping": 1.0, "partial_rotary_factor": 0.5}),
    ("qwen2", {"use_mrope": False, "attention_bias": False, "mlp_bias": True, "no_bias": True}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": False, "final_logit_softcapping": 1.0}),
    ("qwen3", {"head_dim": 8, "sliding_window": 4, "use_sliding_window": False, "query_pre_attn_scalar": 3}),
    ("gemma2", {"hidden_act": "relu", "sliding_window_size": 4, "mlp_bias": True, "use_sliding_window": False}),
    (
        "gemma3",
        {"hidden_act": "relu", "mlp_bias": True, "attn_logit_softcapping": 1.5, "use_bidirectional_attention": False},
    ),
    ("olmo2", {"sliding_window": 4, "layer_types": ["sliding_attention"] * 3, "mlp_bias": True}),
    ("phi3", {"attention_bias": True, "mlp_bias": True, "original_max_position_embeddings": 16}),
    ("gpt2", {"hidden_act": "relu", "rope_theta": 3.0, "head_dim": 16, "num_key_value_heads": 2, "n_ctx": 4}),
    ("pythia", {"num_key_value_heads": 2, "sliding_window": 4, "rms_norm_eps": 1.0, "mlp_bias": False}),
]


@pytest.mark.parametrize(("name", "changes"), FOREIGN)
def test_attributes_of_other_families_do_not_act(copy, name, changes):
    directory = copy(name)
    change(directory / "config.json", **changes)
    assert_as_transformers(directory)
    np.testing.assert_array_equal(logits(LanguageModel.from_pretrained(directory)), logits(jax_model(name)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 3}),
        ("gemma2", {"layer_types": ["full_attention"] * 3}),
        ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
        ("gemma3", {"final_logit_softcapping": 1.5}),
        ("qwen2_window", {"layer_types": None, "max_window_layers": 2}),
        ("llama31", {"rope_parameters": None, "rope_theta": 77.0}),
        ("llama31", {"hidden_act": "gelu"}),
        ("phi3", {"sliding_window": None}),
        ("phi3", {"rope_parameters": None, "rope_theta": 77.0, "partial_rotary_factor": 0.5}),
        ("gpt2", {"activation_function": "silu"}),
        ("pythia", {"use_parallel_residual": False}),
        ("pythia", {"rope_parameters": None, "rotary_emb_base": 77.0, "rotary_pct": 1.0}),
        (
            "pythia",
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 100.0,
                    "factor": 4.0,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        ("smollm3", {"no_rope_layers": [1, 1, 0]}),
    ],  # fmt: skip
)
def test_attributes_of_the_family_do(copy, name, changes):
    directory = copy(name)
    change(directory / "config.json", **changes)
    assert_as_transformers(directory, unlike=[name])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"layer_types": ["full_attention"] * 3}),
        ("llama31", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("gemma3", {"use_bidirectional_attention": True}),
        ("llama31", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0,
                                         "partial_rotary_factor": 0.5}}),
        ("llama31", {"hidden_act": "relu"}),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.75,
                                      "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"add_cross_attention": True}),
        ("pythia", {"head_dim": 16}),
        ("smollm3", {"no_rope_layers": [1, 0]}),
        ("olmo2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0}}),
        ("llama31", {"rms_norm_eps": "small"}),
        ("llama31", {"num_attention_heads": 3}),
        ("llama31", {"is_causal": False}),
    ],
)  # fmt: skip
def test_attributes_that_would_change_the_output_are_refused(copy, name, changes):
    directory = copy(name)
    change(directory / "config.json", **changes)
    with pytest.raises(AtlasError, match="config.json: "):
        LanguageModel.from_pretrained(directory)


# Weights: which file, which tensor.


def other_weights(directory, factor=3.0):
    return {k: v * factor for k, v in load_file(directory / WEIGHTS).items()}


def a_second_file(directory):
    save_file(other_weights(directory), directory / "zzz.safetensors")


def a_consolidated_file(directory):
    save_file(other_weights(directory), directory / "consolidated.safetensors")


def a_stale_index_beside_the_file(directory):
    save_file(other_weights(directory), directory / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(load_file(directory / WEIGHTS), "model-00001-of-00001.safetensors")
    change(directory / INDEX, metadata={}, weight_map=weight_map)


def a_file_named_by_the_config(directory):
    save_file(other_weights(directory), directory / "chosen.safetensors", metadata={"format": "pt"})
    change(directory / "config.json", transformers_weights="chosen.safetensors")


def an_index_and_a_file_it_does_not_list(directory):
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file({n: tensors[n] for n in part}, directory / f"model-0000{i}-of-00002.safetensors", {"format": "pt"})
    weight_map = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    save_file(other_weights(directory), directory / "model-00003-of-00003.safetensors")
    change(directory / INDEX, metadata={}, weight_map=weight_map)
    (directory / WEIGHTS).unlink()


def a_head_that_differs_though_tied(directory):
    tensors = load_file(directory / WEIGHTS)
    head = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(3))
    save_file(tensors | {"lm_head.weight": head * 0.2}, directory / WEIGHTS, {"format": "pt"})


def an_equal_head_though_tied(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, directory / WEIGHTS)


def the_tied_matrix_under_the_other_name(directory):
    tensors = load_file(directory / WEIGHTS)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def names_without_their_prefix(directory):
    tensors = {k.removeprefix("model."): v for k, v in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def rotary_buffers(directory):
    tensors = load_file(directory / WEIGHTS)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    save_file(tensors | buffers, directory / WEIGHTS, {"format": "pt"})


def attention_masks(directory):
    tensors = load_file(directory / WEIGHTS)
    attention = "transformer.h.{}.attn" if "transformer.wte.weight" in tensors else "gpt_neox.layers.{}.attention"
    buffers = {f"{attention.format(i)}.bias": torch.ones(1, 1, 128, 128).tril().bool() for i in range(3)}
    save_file(tensors | buffers, directory / WEIGHTS, {"format": "pt"})


def gpt2_names_without_their_prefix(directory):
    attention_masks(directory)
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def a_head_named_as_in_transformers(directory):
    tensors = {k.replace("embed_out", "lm_head"): v for k, v in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


CHOSEN = {
    a_second_file: [], a_consolidated_file: [], a_stale_index_beside_the_file: [], rotary_buffers: [],
    a_file_named_by_the_config: ["gemma2"], an_index_and_a_file_it_does_not_list: [], an_equal_head_though_tied: [],
    a_head_that_differs_though_tied: ["gemma2"], the_tied_matrix_under_the_other_name: [],
    names_without_their_prefix: [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gpt2", attention_masks),
        ("gpt2", gpt2_names_without_their_prefix),
        ("pythia", attention_masks),
        ("pythia", a_head_named_as_in_transformers),
    ],
)
def test_published_spellings_of_gpt2_and_pythia_are_read(copy, name, make):
    directory = copy(name)
    make(directory)
    assert_as_transformers(directory)


@pytest.mark.parametrize("make", CHOSEN, ids=lambda f: f.__name__)
def test_the_weights_are_those_transformers_loads(copy, make):
    directory = copy("gemma2")
    make(directory)
    assert_as_transformers(directory, unlike=CHOSEN[make])


def test_an_untied_head_stays_untied_when_saved(copy, tmp_path):
    directory = copy("gemma2")
    a_head_that_differs_though_tied(directory)
    lm = LanguageModel.from_pretrained(directory)
    assert not lm.config.tie_embeddings
    lm.save_pretrained(tmp_path / "again")
    assert_as_transformers(tmp_path / "again", unlike=["gemma2"])


def numbered_shards(directory, lose=()):
    an_index_and_a_file_it_does_not_list(directory)
    (directory / INDEX).unlink()
    for name in ("model-00003-of-00003.safetensors", *lose):
        (directory / name).unlink()


def test_what_transformers_does_not_find_is_loaded_where_there_is_one_candidate(copy):
    directory = copy("gemma2")
    numbered_shards(directory)
    np.testing.assert_array_equal(logits(LanguageModel.from_pretrained(directory)), logits(jax_model("gemma2")))


def two_candidates(directory):
    a_second_file(directory)
    (directory / WEIGHTS).rename(directory / "weights.safetensors")


def an_index_of_a_lost_file(directory):
    an_index_and_a_file_it_does_not_list(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def an_index_without_files(directory):
    (directory / WEIGHTS).unlink()
    change(directory / INDEX, weight_map=["model.safetensors"])


def a_broken_index(directory):
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text('{"weight_map": {')


def a_tensor_in_two_files(directory):
    an_index_and_a_file_it_does_not_list(directory)
    first = load_file(directory / "model-00001-of-00002.safetensors")
    second = directory / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.norm.weight": torch.ones(32)} | first, second)


def an_adapter_beside_the_weights(directory):
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, directory / "adapter_model.safetensors")
    change(directory / "adapter_config.json", peft_type="LORA", base_model_name_or_path="x")


def an_adapter_alone(directory):
    an_adapter_beside_the_weights(directory)
    (directory / WEIGHTS).unlink()
    (directory / "config.json").unlink()


def float8(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in tensors.items()}, directory / WEIGHTS)


def integers(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, directory / WEIGHTS)


def one_name_with_and_without_prefix(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file(tensors | {"norm.weight": torch.ones(32)}, directory / WEIGHTS)


def torch_weights_alone(directory):
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


REFUSED = {
    two_candidates: "several candidates: weights.safetensors, zzz.safetensors",
    lambda d: numbered_shards(d, ["model-00001-of-00002.safetensors"]): "several candidates: model-00002-of-00002",
    an_index_of_a_lost_file: "index.json lists model-00002-of-00002.safetensors, which cannot be read",
    an_index_without_files: "index.json has no weight_map",
    a_broken_index: "index.json' is damaged",
    a_tensor_in_two_files: r"is in .*model-00001-of-00002.safetensors and in .*model-00002-of-00002.safetensors",
    an_adapter_beside_the_weights: r"holds weights \(model.safetensors\) and a LoRA adapter",
    an_adapter_alone: "holds a LoRA adapter alone; merge it",
    float8: "as F8_E4M3, which is not supported",
    integers: "stores model.norm.weight as I8, which is not supported",
    one_name_with_and_without_prefix: "holds norm.weight twice, as model.norm.weight and norm.weight",
    torch_weights_alone: r"has no \*.safetensors; convert",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda f: f.__name__)
def test_weights_that_leave_a_choice_or_are_damaged_are_refused_by_name(copy, make):
    directory = copy("gemma2")
    make(directory)
    with pytest.raises(AtlasError, match=REFUSED[make]):
        LanguageModel.from_pretrained(directory)


def test_tensors_of_no_part_of_the_language_model_are_named(copy):
    directory = copy("gemma2")
    save_file(load_file(directory / WEIGHTS) | {"v_head.summary.weight": torch.ones(1, 32)}, directory / WEIGHTS)
    with pytest.warns(UserWarning, match="no part of the language model, not used: v_head.summary.weight"):
        lm = LanguageModel.from_pretrained(directory)
    np.testing.assert_array_equal(logits(lm), logits(jax_model("gemma2")))


# Tokens: ids and text.
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} w9 {{ m.content }} <eos>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %} w8{% endif %}"


@pytest.fixture
def chatty(copy):
    """A checkpoint whose tokenizer adds BOS, has a chat template, and lists a special token in its config alone."""
    directory = copy("llama31")
    words = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, VOCAB))])}
    words["user"], words["assistant"] = words.pop("w90"), words.pop("w91")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    change(directory / "tokenizer_config.json", **settings, extra_special_tokens=["w7"])
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    change(directory / "generation_config.json", eos_token_id=[2, 3], temperature=0.7)
    return directory


MESSAGES = [{"role": "user", "content": "w11 w12"}, {"role": "assistant", "content": "w13"}]


def test_special_tokens_of_the_config_alone_are_single_and_masked(chatty):
    lm = LanguageModel.from_pretrained(chatty)
    theirs = transformers.AutoTokenizer.from_pretrained(chatty)
    texts = ["w5 w7 w9", "w5w7w9", "<eos>w5", ""]
    assert lm.tokenizer.encode(texts) == theirs(texts)["input_ids"]
    tokens = lm.tokenize("w5w7w9")
    assert tokens.ids[0].tolist() == [1, 5, 7, 9]
    assert tokens.mask[0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("text", ["<bos> w5 w6", "<bos>w5 w6", "w5 w6"])
def test_bos_is_never_doubled(chatty, text):
    lm = LanguageModel.from_pretrained(chatty)
    assert lm.tokenize(text).ids[0].tolist() == [1, 5, 6]
    start, end = lm.tokenizer.span(text, 2)
    assert text[start:end] == "w6"


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_chat_is_that_of_the_model_s_own_template(chatty, generation_prompt):
    lm = LanguageModel.from_pretrained(chatty)
    theirs = transformers.AutoTokenizer.from_pretrained(chatty)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=generation_prompt)["input_ids"]
    assert lm.chat(MESSAGES, add_generation_prompt=generation_prompt) == expected
    assert expected.count(1) == 1
    rendered = theirs.apply_chat_template(MESSAGES, add_generation_prompt=generation_prompt, tokenize=False)
    assert lm.tokenize(rendered).ids[0].tolist() == expected
    if generation_prompt:
        assert lm.tokenize(messages=MESSAGES).ids[0].tolist() == expected
        out = generate(lm, [lm.chat(MESSAGES)], max_new_tokens=3)
        np.testing.assert_array_equal(out.ids, generate(lm, rendered, max_new_tokens=3).ids)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "a conversation is a list of messages"),
        ([], "a conversation is a list of messages"),
        ([{"content": "w5"}], "a conversation is a list of messages"),
        (["w5"], "a conversation is a list of messages"),
    ],
)
def test_what_is_no_conversation_is_refused(chatty, messages, message):
    with pytest.raises(AtlasError, match=message):
        LanguageModel.from_pretrained(chatty).chat(messages)


def test_a_template_that_refuses_and_a_missing_one_are_one_sentence(chatty):
    (chatty / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(AtlasError, match="refuses this conversation: roles must alternate"):
        LanguageModel.from_pretrained(chatty).chat(MESSAGES)
    (chatty / "chat_template.jinja").unlink()
    with pytest.raises(AtlasError, match="has no chat template"):
        LanguageModel.from_pretrained(chatty).chat(MESSAGES)


def test_what_came_with_a_model_is_saved_with_it(chatty, tmp_path):
    lm = LanguageModel.from_pretrained(chatty)
    lm.save_pretrained(tmp_path / "again")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert theirs.apply_chat_template(MESSAGES)["input_ids"] == lm.chat(MESSAGES, add_generation_prompt=False)
    assert theirs("w5w7 w9")["input_ids"] == lm.tokenizer.encode(["w5w7 w9"])[0]
    assert 7 in theirs.all_special_ids
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert (generation.eos_token_id, generation.temperature) == ([2, 3], 0.7)
    again = LanguageModel.from_pretrained(tmp_path / "again")
    assert (again.config, again.chat(MESSAGES)) == (lm.config, lm.chat(MESSAGES))


def test_saving_deletes_nothing_it_did_not_write(copy, tmp_path):
    directory = copy("llama31")
    (directory / "notes").mkdir()
    (directory / "notes" / "mine.txt").write_text("kept")
    (directory / "README.md").write_text("kept")
    jax_model("llama31").save_pretrained(directory)
    assert (directory / "notes" / "mine.txt").read_text() == (directory / "README.md").read_text() == "kept"
    assert_as_transformers(directory)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("place", ["file", "file/below", "adapter"])
def test_where_a_model_cannot_be_saved_is_one_sentence(tmp_path, place):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(AtlasError, match="is a file|cannot be written|holds a LoRA adapter"):
        jax_model("llama31").save_pretrained(tmp_path / place)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json' is damaged"),
        ({"tokenizer_config.json": "[]"}, r"tokenizer_config.json' is damaged \(it holds no JSON object\)"),
        ({"special_tokens_map.json": "nonsense"}, "special_tokens_map.json' is damaged"),
        ({"generation_config.json": "{"}, "generation_config.json' is damaged"),
        ({"generation_config.json": '{"eos_token_id": "2"}'}, "generation_config.json has eos_token_id '2'"),
        ({"tokenizer.json": "{}"}, "the tokenizer of .* cannot be read"),
        ({"config.json": "[1]"}, r"config.json' is damaged \(it holds no JSON object\)"),
        ({"config.json": "\x00"}, "config.json' is damaged"),
    ],
)
def test_damaged_json_is_one_sentence_that_names_the_file(copy, change_of, message):
    directory = copy("llama31")
    change(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    for name, content in change_of.items():
        (directory / name).write_text(content)
    with pytest.raises(AtlasError, match=message):
        LanguageModel.from_pretrained(directory)


def with_vocabulary(directory, added=0, plain=0):
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, VOCAB + plain))]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([f"<extra{i}>" for i in range(added)])
    backend.save(str(directory / "tokenizer.json"))
    change(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def test_a_tokenizer_of_another_model_is_refused(copy):
    directory = copy("llama31")
    with_vocabulary(directory, plain=1)
    with pytest.raises(AtlasError, match="has 97 tokens and the model's embedding 96 rows"):
        LanguageModel.from_pretrained(directory)


def test_a_token_added_without_resizing_raises_where_it_is_used(copy):
    directory = copy("llama31")
    with_vocabulary(directory, added=1)
    lm = LanguageModel.from_pretrained(directory)
    assert lm.tokenize("w5 w6").ids.tolist() == [[5, 6]]
    for use in (lm.tokenize, lambda t: generate(lm, t, max_new_tokens=2), lambda t: lm.tokenizer.encode([t])):
        with pytest.raises(AtlasError, match="token '<extra0>' has the id 96, and the model's embedding 96 rows"):
            use("w5 <extra0>")


@pytest.mark.parametrize("wrong", [-1, VOCAB, 2**31 - 1])
def test_ids_outside_the_embedding_raise(wrong):
    lm = jax_model("llama31")
    with pytest.raises(AtlasError, match=f"token id {wrong} does not exist; this model has 0 to 95"):
        generate(lm, [[5, wrong]], max_new_tokens=2)
    ids = np.array([[5, wrong]], np.int32)
    for array in (ids, jnp.asarray(ids)):
        with pytest.raises(AtlasError, match=f"token id {wrong} does not exist"):
            run(lm, Tokens(array, np.ones((1, 2), bool), np.arange(1)))


def test_one_string_is_one_text_and_one_site_one_site():
    lm = jax_model("llama31")
    np.testing.assert_array_equal(lm.tokenize("w5 w6").ids, lm.tokenize(["w5 w6"]).ids)
    one, several = (generate(lm, p, max_new_tokens=3) for p in ("w5 w6", ["w5 w6"]))
    assert one.texts == several.texts
    out = run(lm, lm.tokenize("w5"), capture="mlp_act.1")
    assert list(out.acts) == list(run(lm, lm.tokenize("w5"), capture=[Site("mlp_act", 1), "mlp_act.1"]).acts)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["w5", [5, 6]], "prompts are ids and texts at once"),
        ([[5], np.ones((2, 32), np.float32)], "prompts are embeddings and ids at once"),
        ([[5.5, 6.0]], "a prompt is a text, a row of token ids or an array"),
        ([5, 6], "a prompt is a text, a row of token ids or an array"),
        ([None], "a prompt is a text, a row of token ids or an array"),
        ([np.full((2, 32), np.nan, np.float32)], "a prompt is .* of finite numbers"),
        ([["w5", "w6"]], "a prompt is a text, a row of token ids or an array"),
    ],
)
def test_prompts_of_other_kinds_are_refused(prompts, message):
    with pytest.raises(AtlasError, match=message):
        generate(jax_model("llama31"), prompts, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": float("nan")}, "temperature nan must be finite and not negative"),
        ({"temperature": -1.0}, "temperature -1.0 must be finite and not negative"),
        ({"temperature": [0.5, float("inf")]}, "temperature .* must be finite"),
        ({"top_p": 0.0}, "top_p 0.0 must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p nan must be above 0"),
        ({"top_k": -3}, "top_k -3 must be not negative"),
        ({"edits": [5]}, "edits are a mapping from sites to edits"),
        ({"edits": {"z.1": 5.0}}, "the edit at z.1 must be Steer"),
        (
            {"edits": {"z.1": Steer(np.ones(32), 1.0), Site("z", 1): Steer(np.ones(32), 1.0)}},
            "z.1 is named twice among the edits",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(AtlasError, match=message):
        generate(jax_model("llama31"), ["w5", "w6"], max_new_tokens=2, **options)


@pytest.mark.parametrize("text", ["Return the value of", " leading", "naïve café", "日本"])
def test_prompt_and_continuation_make_the_whole(text):
    from atlas_jax.bundled import ATLAS, SUBJECT
    from atlas_jax.models._tokenizer import Tokenizer

    for directory in (SUBJECT, ATLAS / "model"):
        tokenizer = Tokenizer.load(directory)
        ids = tokenizer.encode([text])[0]
        whole = tokenizer.decode(ids)
        for cut in range(1, len(ids)):
            before, after = tokenizer.decode(ids[:cut]), tokenizer.continuation(ids[:cut], ids[cut:])
            assert whole.endswith(after)
            assert before.rstrip("\ufffd") + after == whole


def test_special_tokens_are_the_caller_s_choice(chatty):
    lm = LanguageModel.from_pretrained(chatty)
    ids = [1, 5, 2]
    assert lm.tokenizer.decode(ids) == "w5"
    assert lm.tokenizer.decode(ids, skip_special_tokens=False) == "<bos> w5 <eos>"
    texts = [generate(lm, [[1, 7]], max_new_tokens=4, skip_special_tokens=skip).texts[0] for skip in (True, False)]
    assert len(texts[0]) <= len(texts[1])
