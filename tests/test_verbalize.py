"""Verbalizers: injection against transformers, chunks and seeds, sidecars and LoRA adapters, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from helpers.hf_oracle import LAYERS, VOCAB, hf_model, hooks, saved
from safetensors.numpy import save_file

import atlas_jax as aj
from atlas_jax import AtlasError, Contract, LanguageModel, Site, load_verbalizer, verbalize
from atlas_jax.bundled import SUBJECT
from atlas_jax.models import Tokenizer, merge_adapter, run
from atlas_jax.models._decode import complete
from atlas_jax.verbalizers import SIDECAR, verbalize_texts
from atlas_jax.verbalizers._verbalize import _checked, _edits, _scaled

CHAR, D = "w40", 32
TEMPLATE = "w5 w6 {injection_char} w7 w8 w9"
NEW = 10
CHAT = "<bos>{% for m in messages %} {{ m.content }}{% endfor %} w11"
PROMPT = [1, 5, 6, 40, 7, 8, 9, 11]
P = 3


def contract(**changes) -> Contract:
    return Contract(**({"template": TEMPLATE, "placeholder": CHAR, "placeholder_id": 40, "neighbours": (6, 7),
                        "scale": 12.0, "d_model": D, "layer": 1} | changes))  # fmt: skip


def chatty(lm: LanguageModel) -> LanguageModel:
    """The model with a chat template, and without an end of text."""
    from flax import nnx

    from atlas_jax.models import decoder_shapes

    config = dataclasses.replace(lm.config, eos_ids=())
    graph = nnx.graphdef(decoder_shapes(config))
    lm.tokenizer.hf.chat_template = CHAT
    return LanguageModel(config, lm.tokenizer, nnx.merge(graph, nnx.state(lm.decoder)), lm.hf_config)


MODELS: dict[str, LanguageModel] = {}


def model(name: str) -> LanguageModel:
    if name not in MODELS:
        MODELS[name] = chatty(LanguageModel.from_pretrained(saved(name)))
    return MODELS[name]


@pytest.fixture
def vectors(rng):
    return (3 * rng.normal(size=(5, D))).astype(np.float32)


# The oracle: embeddings or hooks of transformers, in float32.


def scaled(vectors, how: float | None) -> torch.Tensor:
    v = torch.tensor(vectors)
    return v if how is None else v * (how / v.norm(dim=-1, keepdim=True))


def by_embeddings(name, vectors, scale, place=P, root=None):
    """``inputs_embeds`` with the vector at the placeholder, after Gemma's scaling; ``root`` leaves this out."""
    hf = hf_model(name)
    x = hf.get_input_embeddings()(torch.tensor([PROMPT] * len(vectors))).detach()
    x = x if root is None else x / root
    x[:, place] = scaled(vectors, scale)
    return continued(hf, inputs_embeds=x)


def by_hook(name, vectors, scale, how, block, place=P):
    v = scaled(vectors, 1.0 if how == "norm_matched_add" else scale)

    def put(h: torch.Tensor) -> torch.Tensor | None:
        if h.shape[1] == 1:  # prompt only
            return None
        h = h.clone()
        size = scale * h[:, place].norm(dim=-1, keepdim=True) if how == "norm_matched_add" else 1.0
        h[:, place] = v if how == "replace" else h[:, place] + size * v
        return h

    hf = hf_model(name)
    with hooks(hf, {Site("resid_post", block): put}):
        return continued(hf, input_ids=torch.tensor([PROMPT] * len(vectors)))


def continued(hf, **prompt):
    """Logits at the prompt's last token, and greedy tokens."""
    with torch.no_grad():
        logits = hf(**prompt, use_cache=False).logits[:, -1].float().numpy()
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        rows = len(next(iter(prompt.values())))
        mask = torch.ones((rows, len(PROMPT)), dtype=torch.long)
        ids = hf.generate(**prompt, attention_mask=mask, **options)
    return logits, ids[:, -NEW:].tolist()


def ours(name, vectors, how):
    lm = model(name)
    ids, place = how.prompt(lm)
    assert (ids, place) == (PROMPT, P)
    edits = _edits(lm, how, _scaled(_checked(vectors, how), how), place)
    tokens = lm.tokenizer.pad([ids] * len(vectors), len(ids), range(len(vectors)))
    logits = np.asarray(run(lm, tokens, edits=edits).logits)[:, -1]
    said = verbalize(lm, vectors, how, max_new_tokens=NEW)
    return logits, said.texts


def words(ids) -> list[str]:
    return ["".join(f" w{i}" for i in row if i > 2) for row in ids]


def agree(found, expected) -> bool:
    close = np.abs(found[0] - expected[0]).max() < 1e-5 * max(1.0, np.abs(expected[0]).max())
    return bool(close) and found[1] == words(expected[1])


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "llama31", "gpt2"])
@pytest.mark.parametrize(("scale", "norm"), [(12.0, 12.0), ("sqrt_d_model", D**0.5), ("raw", None)])
def test_a_vector_at_the_embedding_is_inputs_embeds_in_transformers(name, scale, norm, vectors):
    found = ours(name, vectors, contract(scale=scale))
    assert agree(found, by_embeddings(name, vectors, norm))
    assert len(set(found[1])) > 1


@pytest.mark.parametrize(
    ("name", "how", "block", "scale"),
    [
        ("qwen2", "replace", 1, 12.0),
        ("qwen2", "norm_matched_add", 1, 1.5),
        ("gemma2", "add", 0, 9.0),
        ("gemma2", "norm_matched_add", 1, 2.0),
        ("llama31", "add", 1, 20.0),
        ("llama31", "replace", 0, 30.0),
    ],
)
def test_a_vector_at_a_block_is_a_hook_on_its_output_in_transformers(name, how, block, scale, vectors):
    found = ours(name, vectors, contract(how=how, where=block, scale=scale))
    assert agree(found, by_hook(name, vectors, scale, how, block))
    assert not agree(found, by_hook(name, vectors, scale, how, (block + 1) % LAYERS))  # hidden_states[K]
    assert not agree(found, by_hook(name, vectors, 2 * scale, how, block))
    assert not agree(found, by_hook(name, vectors, scale, how, block, place=P + 1))


def test_twins_with_another_scale_place_or_root_differ(vectors):
    found = ours("gemma3", vectors, contract())
    assert agree(found, by_embeddings("gemma3", vectors, 12.0))
    for twin in ({"scale": 12.0 * 2}, {"place": P - 1}, {"place": P + 1}, {"root": D**0.5}, {"scale": None}):
        assert not agree(found, by_embeddings("gemma3", vectors, **({"scale": 12.0} | twin)))
    times = _scaled(_checked(vectors, contract()), contract())
    np.testing.assert_allclose(np.linalg.norm(times, axis=1), 12.0, rtol=1e-6)  # to 12, not 12 times


def test_the_depth_tag_is_in_the_prompt():
    tagged = contract(template="w{layer} w6 {injection_char} w7", layer=9)
    assert tagged.prompt(model("qwen2")) == ([1, 9, 6, 40, 7, 11], 3)
    with pytest.raises(AtlasError, match="states {layer}, and the contract has no extraction_layer_index"):
        contract(template="w{layer} w6 {injection_char} w7", layer=None)


def test_the_beginning_of_text_is_never_doubled():
    lm = LanguageModel.from_pretrained(saved("gemma3"))
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=lm.tokenizer.backend, bos_token="<bos>")
    hf.chat_template = "{{ bos_token }}" + CHAT
    lm.tokenizer.hf = hf
    bos = Tokenizer(hf)
    bos.bos_id = 1
    lm.tokenizer = bos
    assert contract().prompt(lm)[0] == PROMPT


# Many vectors.


def test_chunks_of_one_program_give_the_texts_of_each_vector_alone(vectors):
    lm, many = model("qwen2"), np.concatenate([vectors, -vectors, 2 * vectors[::-1] + 1])
    before = complete._cache_size()
    texts = verbalize(lm, many, contract(), max_new_tokens=NEW, rows=4).texts
    assert complete._cache_size() == before + 1
    assert len(texts) == 15
    assert len(set(texts)) > 8
    assert texts == verbalize(lm, many, contract(), max_new_tokens=NEW).texts
    for i in (0, 6, 14):
        assert verbalize(lm, many[i], contract(), max_new_tokens=NEW).texts == texts[i : i + 1]


def test_a_sampled_text_depends_on_its_own_seed(vectors):
    options = {"max_new_tokens": NEW, "temperature": 1.0}
    together = verbalize(model("qwen2"), vectors, contract(), seed=5, rows=2, **options).texts
    alone = verbalize(model("qwen2"), vectors[3], contract(), seed=[8], **options).texts
    assert alone == together[3:4]
    assert verbalize(model("qwen2"), vectors[3], contract(), seed=[9], **options).texts != alone


def test_explanations_are_what_stands_in_the_tags():
    said = aj.Verbalization.of(["a <explanation>\n dogs,\ncats </explanation> b", " no tags "])
    assert said.explanations == ["dogs,\ncats", "no tags"]


def test_texts_in_the_vectors_place_are_the_control(vectors):
    lm = model("qwen2")
    texts = verbalize_texts(lm, [CHAR, "w50 w51", "w60"], contract(), max_new_tokens=NEW, rows=2).texts
    prompts = [[1, 5, 6, *new, 7, 8, 9, 11] for new in ([40], [50, 51], [60])]
    assert texts == aj.generate(lm, prompts, max_new_tokens=NEW).texts
    assert texts[0] not in verbalize(lm, vectors, contract(), max_new_tokens=NEW).texts


# Sidecars.


def sidecar(**changes) -> dict:
    content = {
        "schema_version": 2, "kind": "nla_model", "role": "av", "d_model": D, "extraction_layer_index": 1,
        "extraction": {"injection_scale": 150.0, "mse_scale": 5.6},
        "tokens": {"injection_char": CHAR, "injection_token_id": 40, "injection_left_neighbor_id": 6,
                   "injection_right_neighbor_id": 7, "critic_suffix_ids": None},
        "prompt_templates": {"av": TEMPLATE},
    }  # fmt: skip
    return content | changes


def written(directory: Path, content: dict) -> Path:
    (directory / SIDECAR).write_text(yaml.safe_dump(content, allow_unicode=True))
    return directory


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"extraction": {"injection_scale": "sqrt_d_model"}}, {"scale": "sqrt_d_model"}),
        ({"extraction": {"injection_scale": "raw"}}, {"scale": "raw"}),
        ({"prompt_templates": {"actor": TEMPLATE}}, {}),
        ({"injection": {"where": 1, "how": "norm_matched_add"}}, {"where": 1, "how": "norm_matched_add"}),
        ({"extraction_layer_index": 20, "prompt_templates": {"av": TEMPLATE + " {layer}"}},
         {"layer": 20, "template": TEMPLATE + " {layer}"}),
    ],
)  # fmt: skip
def test_a_sidecar_is_read_as_published(tmp_path, changes, expected):
    found = Contract.load(written(tmp_path, sidecar(**changes)))
    assert found == contract(**({"scale": 150.0} | expected))
    found.save(tmp_path)
    assert Contract.load(tmp_path / SIDECAR) == found


TOKENS = sidecar()["tokens"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extraction": {"mse_scale": 5.6}}, "has no extraction.injection_scale"),
        ({"extraction": {"injection_scale": None}}, "has no extraction.injection_scale"),
        ({"extraction": None}, "has no extraction.injection_scale"),
        ({"extraction": {"injection_scale": "big"}}, "is damaged"),
        ({"role": "ar"}, "is no sidecar of a verbalizer"),
        ({"kind": "nla_dataset"}, "is no sidecar of a verbalizer"),
        ({"tokens": {}}, "it has no 'injection_left_neighbor_id'"),
        ({"tokens": TOKENS | {"injection_token_id": None}}, "injection_token_id of .* must be a whole number"),
        ({"prompt_templates": {"av": "w5 w6"}}, "has {injection_char} once, .* has it not at all"),
        ({"prompt_templates": {"av": TEMPLATE + TEMPLATE}}, "has {injection_char} once, .* has it twice"),
        ({"prompt_templates": {"av": TEMPLATE + " {depth}"}}, r"unknown field {depth} in the template"),
        ({"prompt_templates": {"av": TEMPLATE + " {"}}, "cannot be filled in"),
        ({"injection": {"how": "multiply"}}, "unknown injection 'multiply'; known are replace, add, norm_matched_add"),
        ({"injection": {"where": "resid_post.1"}}, "must be a whole number from 0 up, not 'resid_post.1'"),
        ({"injection": {"how": "norm_matched_add"}, "extraction": {"injection_scale": "raw"}}, "needs a number"),
    ],
)
def test_a_sidecar_that_says_too_little_is_refused(tmp_path, changes, message):
    with pytest.raises(AtlasError, match=message):
        Contract.load(written(tmp_path, sidecar(**changes)))


def test_a_missing_or_damaged_sidecar_is_refused(tmp_path):
    with pytest.raises(AtlasError, match="is missing; download the verbalizer with its sidecar again"):
        Contract.load(tmp_path)
    (tmp_path / SIDECAR).write_text("kind: [")
    with pytest.raises(AtlasError, match="is damaged"):
        Contract.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbours": (5, 7)}, "stands between tokens 6 and 7, and should between 5 and 7"),
        ({"neighbours": (6, 8)}, "stands between tokens 6 and 7, and should between 6 and 8"),
        ({"placeholder_id": 41}, r"is token 41 in the contract, and \[40\] in this tokenizer"),
        ({"placeholder": "w40w", "placeholder_id": 40}, "'w40w' is token 40 in the contract"),
        ({"template": TEMPLATE + " w40"}, "should be once within the prompt, and is there 2 times"),
        ({"d_model": 64}, "for vectors of width 64, and the verbalizer has 32"),
        ({"where": 7}, "site resid_post.7 is past the last layer"),
    ],
)
def test_a_contract_that_does_not_fit_the_model_is_refused(changes, message):
    how = contract(**changes)
    with pytest.raises(AtlasError, match=message):
        verbalize(model("qwen2"), np.ones((2, how.d_model), np.float32), how, max_new_tokens=2)


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (np.ones((2, 48)), {}, r"explains vectors of width 32, and these have the shape \(2, 48\)"),
        (np.ones(31), {}, r"width 32, and these have the shape \(31,\)"),
        (np.zeros((0, D)), {}, r"the shape \(0, 32\)"),
        (np.ones((1, 2, D)), {}, r"the shape \(1, 2, 32\)"),
        (np.eye(D)[:3] * [[1], [0], [1]], {}, "vector 1 is zero"),
        (np.full(D, np.nan), {}, r"the vector is nan at \[0\]"),
        (np.eye(D)[:3], {"seed": [1, 2]}, "there are 2 seeds for 3 vectors"),
        (np.eye(D)[:3], {"rows": 0}, "rows must be a whole number from 1 up"),
        (np.eye(D)[:3], {"max_new_tokens": 200}, "exceed the model's context of 128"),
    ],
)
def test_vectors_that_cannot_be_explained_are_refused(as_for_users, vectors, options, message):
    with pytest.raises(AtlasError, match=message):
        verbalize(model("qwen2"), vectors, contract(), **({"max_new_tokens": 2} | options))


# Adapters.


def write_adapter(directory: Path, hf, modules, *, prefix="base_model.model.", rank=4, change=None, **config) -> dict:
    """An adapter in PEFT's layout on some modules of a model; returns ``(alpha / r) B A`` of each."""
    rng, tensors, deltas = np.random.default_rng(0), {}, {}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 6,
        "bias": "none",
        "use_rslora": False,
        "base_model_name_or_path": "owner/base",
        "target_modules": ["q_proj"],
        "fan_in_fan_out": False,
    } | config
    factor = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    for name in modules:
        weight = hf.get_submodule(name).weight
        conv = isinstance(hf.get_submodule(name), transformers.pytorch_utils.Conv1D)
        out, into = weight.shape[::-1] if conv else weight.shape
        a, b = rng.normal(size=(rank, into)).astype("f") / into**0.5, rng.normal(size=(out, rank)).astype("f")
        tensors |= {f"{prefix}{name}.lora_A.weight": a, f"{prefix}{name}.lora_B.weight": b}
        delta = factor * b @ a
        deltas[name] = delta.T if conv else delta
    save_file(tensors if change is None else change(tensors), str(directory / "adapter_model.safetensors"))
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return deltas


def with_deltas(name: str, deltas: dict):
    import copy

    hf = copy.deepcopy(hf_model(name))
    with torch.no_grad():
        for module, delta in deltas.items():
            hf.get_submodule(module).weight += torch.tensor(delta)
    return hf


ADAPTED = {
    "qwen2": ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj", "lm_head"],
    "gemma3": ["model.layers.1.self_attn.v_proj", "model.layers.1.mlp.gate_proj"],
    "phi3": ["model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.2.mlp.c_proj"],
    "pythia": ["gpt_neox.layers.1.attention.query_key_value", "gpt_neox.layers.0.mlp.dense_4h_to_h"],
}


def gap(lm, hf) -> float:
    ids = np.random.default_rng(1).integers(3, VOCAB, (2, 12))
    tokens = lm.tokenizer.pad(ids.tolist(), 12, range(2))
    with torch.no_grad():
        expected = hf(torch.tensor(ids)).logits.numpy()
    return float(np.abs(np.asarray(run(lm, tokens).logits) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_adapter_is_the_model_with_its_matrices_added(tmp_path, name, rslora):
    deltas = write_adapter(tmp_path, hf_model(name), ADAPTED[name], use_rslora=rslora, fan_in_fan_out=name == "gpt2")
    base = LanguageModel.from_pretrained(saved(name))
    merged, expected = merge_adapter(base, tmp_path), with_deltas(name, deltas)
    assert gap(merged, expected) < 1e-5
    assert gap(base, expected) > 1e-2
    assert gap(base, hf_model(name)) < 1e-5  # the base stays as it was


def test_an_adapter_of_a_model_with_images_finds_the_text_part(tmp_path):
    deltas = write_adapter(
        tmp_path, hf_model("gemma3"), ADAPTED["gemma3"],
        change=renamed("model.model.", "model.model.language_model."),
    )  # fmt: skip
    merged = merge_adapter(LanguageModel.from_pretrained(saved("gemma3")), tmp_path)
    assert gap(merged, with_deltas("gemma3", deltas)) < 1e-5


def test_peft_merges_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    write_adapter(tmp_path, hf_model("qwen2"), ADAPTED["qwen2"][:2], target_modules=["q_proj", "down_proj"])
    base = transformers.AutoModelForCausalLM.from_pretrained(saved("qwen2"), attn_implementation="eager")
    hf = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    merged = merge_adapter(LanguageModel.from_pretrained(saved("qwen2")), tmp_path)
    assert gap(merged, hf) < 1e-5


def renamed(old: str, new: str):
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": renamed("q_proj", "qk_proj")}, "is for owner/base and does not fit this model: .*qk_proj from 32"),
        ({"change": renamed("layers.0", "layers.9")}, "the model has no such linear layer; give its own base model"),
        ({"prefix": "", "change": renamed("lora_A", "lora_E")}, "lora_E.weight, which is no LoRA matrix"),
        ({"change": lambda t: dict([*t.items()][1:])}, "has one of two LoRA matrices of"),
        ({"change": lambda t: {k: v[..., :20] if "lora_A" in k else v for k, v in t.items()}},
         r"from 20 to 32 features .* and there is \(32, 32\)"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save=\['lm_head'\], which is not supported; merge it"),
        ({"use_dora": True}, "has use_dora=True"),
        ({"bias": "all"}, "has bias='all'"),
        ({"peft_type": "IA3"}, "has peft_type='IA3'"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
        ({"alpha_pattern": {"q_proj": 3}}, "has alpha_pattern="),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path, options, message):
    write_adapter(tmp_path, hf_model("qwen2"), ADAPTED["qwen2"][:1], **options)
    with pytest.raises(AtlasError, match=message):
        merge_adapter(LanguageModel.from_pretrained(saved("qwen2")), tmp_path)


def test_a_tied_head_is_not_changed_alone(tmp_path):
    write_adapter(tmp_path, hf_model("qwen3"), ["lm_head"])
    with pytest.raises(AtlasError, match="lm_head .* no such linear layer"):
        merge_adapter(LanguageModel.from_pretrained(saved("qwen3")), tmp_path)


def test_an_adapter_for_another_base_is_refused(tmp_path):
    write_adapter(tmp_path, hf_model("gpt2"), ADAPTED["gpt2"][:1])
    with pytest.raises(AtlasError, match="is for owner/base and does not fit this model"):
        merge_adapter(LanguageModel.from_pretrained(saved("qwen2")), tmp_path)


def test_an_adapter_with_a_sidecar_loads_as_a_verbalizer(tmp_path, vectors):
    deltas = write_adapter(tmp_path, hf_model("qwen2"), ADAPTED["qwen2"], base_model_name_or_path=str(saved("qwen2")))
    written(tmp_path, sidecar())
    lm, how = load_verbalizer(tmp_path)
    assert gap(lm, with_deltas("qwen2", deltas)) < 1e-5
    assert how == contract(scale=150.0)
    assert gap(load_verbalizer(tmp_path, base=saved("qwen2"))[0], with_deltas("qwen2", deltas)) < 1e-5
    with pytest.raises(AtlasError, match="does not fit this model"):
        load_verbalizer(tmp_path, base=saved("pythia"))
    with pytest.raises(AtlasError, match=r"is for .*, not for owner/other; give its own base model"):
        load_verbalizer(tmp_path, base="owner/other")


def test_a_whole_model_with_a_sidecar_loads_as_a_verbalizer(tmp_path, rng):
    lm = LanguageModel.from_pretrained(SUBJECT)
    lm.tokenizer.hf.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    lm.save_pretrained(tmp_path)
    tokens = {"injection_char": "~", "injection_token_id": 95}
    tokens |= {"injection_left_neighbor_id": 9, "injection_right_neighbor_id": 10}
    templates = {"av": "def name({injection_char})"}
    written(tmp_path, sidecar(d_model=128, tokens=tokens, prompt_templates=templates))
    loaded, how = load_verbalizer(tmp_path)
    vectors = rng.normal(size=(3, 128)).astype("f")
    assert how.prompt(loaded)[0][0] == 0 != how.prompt(loaded)[0][1]
    assert how.prompt(loaded) == how.prompt(lm)
    texts = verbalize(loaded, vectors, how, max_new_tokens=4).texts
    assert texts == verbalize(lm, vectors, how, max_new_tokens=4).texts
    with pytest.raises(AtlasError, match="is a whole model, so it needs no base model"):
        load_verbalizer(tmp_path, base=SUBJECT)
