"""Which names of models are names of one model."""

import itertools

import pytest

from atlas_jax.atlas._fit import ModelName, check_model, difference, tuning_note
from atlas_jax.errors import AtlasError

# Each line is one model, as its hub, its releases of SAEs, TransformerLens and Neuronpedia call it.
SAME = [
    ["google/gemma-2-2b", "gemma-2-2b", "Gemma 2 2B", "gemma2-2b", "gemma_2_2b"],
    ["google/gemma-2-9b", "gemma-2-9b", "gemma-2-9b-it", "google/gemma-2-9b-it"],
    ["google/gemma-2b", "gemma-2b", "gemma-2b-it"],
    ["google/gemma-3-270m", "google/gemma-3-270m-pt", "gemma-3-270m", "gemma-v3-270m-pt", "gemma-3-270m-it"],
    ["google/gemma-3-4b-pt", "gemma-v3-4b-it", "gemma-3-4b", "gemma-3-4b-it"],
    ["meta-llama/Llama-3.1-8B", "llama3.1-8b", "Llama3_1-8B-Base", "Meta-Llama-3.1-8B-Instruct", "llama3.1-8b-it"],
    ["meta-llama/Meta-Llama-3-8B-Instruct", "llama3-8b-it", "Llama-3-8B"],
    ["meta-llama/Llama-3.3-70B-Instruct", "llama3.3-70b-it"],
    ["deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-r1-distill-llama-8b"],
    ["Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-it", "Qwen2_5-7B"],
    ["Qwen/Qwen3-8B-Base", "qwen3-8b", "Qwen/Qwen3-8B"],
    ["Qwen/Qwen3-1.7B-Base", "qwen3-1.7b"],
    ["Qwen/Qwen3.5-27B", "qwen3.5-27b"],
    ["Qwen/Qwen3-30B-A3B-Base", "qwen3-30b-a3b"],
    ["EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"],
    ["EleutherAI/pythia-70m", "pythia-70m"],
    ["gpt2-small", "gpt2", "openai-community/gpt2"],
    ["gpt2-medium", "openai-community/gpt2-medium"],
    ["openai/gpt-oss-20b", "gpt-oss-20b"],
    ["mistralai/Mistral-7B-v0.1", "mistral-7b"],
]
UNKNOWN = ["my-model", "ckpt-1200", "/data/run_3/final", "model", "8b-final", "m"]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_names_of_one_model_agree_and_no_others_do(group):
    for a, b in itertools.combinations(group, 2):
        assert difference(ModelName.parse(a), ModelName.parse(b)) is None, (a, b)
    for other in SAME:
        if other is not group:
            assert all(difference(ModelName.parse(a), ModelName.parse(b)) for a in group[:1] for b in other), other


@pytest.mark.parametrize(
    ("expected", "name", "part"),
    [
        ("gemma-2-2b", "gemma-2-9b-it", "size"),
        ("gemma-2-2b", "gemma-2b", "version"),
        ("gemma-3-4b-pt", "gemma-3n-E4B", "version"),
        ("meta-llama/Llama-3.1-8B", "DeepSeek-R1-Distill-Llama-8B", "family"),
        ("meta-llama/Llama-3.1-8B", "Meta-Llama-3-8B", "version"),
        ("pythia-70m-deduped", "pythia-70m", "variant"),
        ("Qwen2.5-7B", "Qwen2.5-Coder-7B-Instruct", "variant"),
        ("gpt2-small", "gpt2-xl", "size"),
        ("foundation", "other", "name"),
        ("gemma-2-2b", "foundation", "name"),
    ],
)
def test_what_was_compared_is_said(expected, name, part):
    with pytest.raises(AtlasError, match=f"of the model '{expected}'.* goes by '{name}'.*, of another {part}; "):
        check_model("the SAE is", expected, {name: True})


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_folders_own_name_refuses_nothing(name):
    check_model("the SAE is", "google/gemma-2-2b", {name: False})
    assert ModelName.parse(name).family == frozenset()


def test_one_name_that_agrees_is_enough_and_a_telling_folder_counts():
    check_model("the SAE is", "gemma-2-2b", {"gemma-2-2b": True, "gemma-2-9b": True})
    check_model("the SAE is", "gemma-2-2b", {"my-model": False, "gemma-2-2b-finetuned": False})
    check_model("the SAE is", None, {"gemma-2-9b": True})
    with pytest.raises(AtlasError, match="of another size"):
        check_model("the SAE is", "gemma-2-2b", {"my-gemma-2-9b-run3": False, "ckpt-1200": False})


@pytest.mark.parametrize(
    ("expected", "name", "noted"),
    [
        ("gemma-2-2b", "gemma-2-2b-it", True),
        ("Qwen3-8B-Base", "Qwen3-8B-Instruct", True),
        ("gemma-2-9b-it", "gemma-2-9b", True),
        ("gemma-3-4b-pt", "gemma-3-4b", False),
        ("gemma-2-2b", "my-model", False),
        (None, "gemma-2-2b-it", False),
    ],
)
def test_an_sae_of_the_base_model_on_a_tuned_one_is_noted(expected, name, noted):
    assert (tuning_note(expected, {name: True}) is not None) == noted
