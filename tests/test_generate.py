"""Generation against transformers' greedy search, against full recomputation, and the sampler against its warpers."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from helpers.hf_oracle import hf_model, jax_model, random_ids, saved

from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel, generate, run
from atlas_jax.models._decode import TOKENS_A_STRETCH, Sampling, argmax, complete, sample, stretches
from atlas_jax.steering import Steer
from atlas_jax.types import Tokens

NEW = 40
PROMPTS = [random_ids(3, 16)[i, :n].tolist() for i, n in enumerate((5, 13, 3))]


def hf_greedy(model, prompts, n: int = NEW, **options) -> list[list[int]]:
    """New tokens of each prompt, one at a time, without padding; sequences end only where ``options`` say so."""
    options = {"eos_token_id": None} | options
    with torch.no_grad():
        out = [
            model.generate(torch.tensor([p]), max_new_tokens=n, do_sample=False, pad_token_id=0, **options)[0, len(p) :]
            for p in prompts
        ]
    return [row.tolist() for row in out]


def endless(name: str) -> LanguageModel:
    """A model of the zoo that ends no text."""
    return ending_at(name, None)


_made: dict[tuple, LanguageModel] = {}


def ending_at(name: str, eos: int | None) -> LanguageModel:
    if (name, eos) not in _made:
        directory = saved(name).parent / f"{saved(name).name}-{eos}"
        shutil.copytree(saved(name), directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(raw | {"eos_token_id": eos}))
        _made[name, eos] = LanguageModel.from_pretrained(directory)
        shutil.rmtree(directory)
    return _made[name, eos]


@pytest.mark.parametrize(
    "name", ["llama31", "mistral", "gemma2", "gemma3", "qwen3", "olmo2", "phi3", "gpt2", "pythia", "smollm3"]
)
def test_greedy_text_equals_transformers_past_the_window_with_ragged_prompts(name):
    assert generate(endless(name), PROMPTS, max_new_tokens=NEW).ids.tolist() == hf_greedy(hf_model(name), PROMPTS)


@pytest.mark.parametrize(("name", "length"), [("gemma2", 24), ("gpt2", 32), ("gemma3", 10_000)])
def test_prompts_padded_to_a_length_are_continued_as_in_transformers(name, length):
    before = complete._cache_size()
    for prompts in (PROMPTS, [row[1:] for row in PROMPTS]):
        ids = generate(endless(name), prompts, max_new_tokens=12, prompt_length=length).ids
        assert ids.tolist() == hf_greedy(hf_model(name), prompts, 12)
    assert complete._cache_size() == before + 1


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_decoding_from_the_cache_equals_recomputing_everything(name):
    lm, width = endless(name), 16 + NEW
    ids, lengths = np.zeros((3, width), np.int32), np.array([len(p) for p in PROMPTS])
    for i, p in enumerate(PROMPTS):
        ids[i, : len(p)] = p
    for _ in range(NEW):
        real = jnp.asarray(np.arange(width)[None] < lengths[:, None])
        logits = run(lm, Tokens(jnp.asarray(ids), real, jnp.arange(3), real)).logits
        ids[np.arange(3), lengths] = np.asarray(logits)[np.arange(3), lengths - 1].argmax(axis=-1)
        lengths += 1
    full = [ids[i, len(p) : len(p) + NEW].tolist() for i, p in enumerate(PROMPTS)]
    assert generate(lm, PROMPTS, max_new_tokens=NEW).ids.tolist() == full


def test_a_prompt_longer_than_the_window_by_any_amount():
    prompts = [random_ids(1, 36)[0, :n].tolist() for n in (7, 8, 16)]
    ours = [generate(endless("mistral"), [p], max_new_tokens=12).ids[0].tolist() for p in prompts]
    assert ours == hf_greedy(hf_model("mistral"), prompts, 12)


def test_rows_end_at_their_end_of_text_token():
    free = hf_greedy(hf_model("llama31"), PROMPTS)
    eos = free[1][6]
    out = generate(ending_at("llama31", eos), PROMPTS, max_new_tokens=NEW)
    theirs = hf_greedy(hf_model("llama31"), PROMPTS, eos_token_id=eos)
    for row, length, text, expected in zip(out.ids, out.lengths, out.texts, theirs, strict=True):
        assert row[: len(expected)].tolist() == expected
        assert set(row[len(expected) :].tolist()) <= {eos}
        ended = eos in expected
        assert length == len(expected) - ended
        assert text == "".join(f" w{i}" for i in expected[:length] if i > 2)
    assert out.lengths[1] <= 6


def test_decoding_stops_when_all_rows_have_ended():
    eos = hf_greedy(hf_model("llama31"), PROMPTS)[1][6]
    lm, calls, same = ending_at("llama31", eos), [], PROMPTS[1:2] * 3
    out = generate(lm, same, max_new_tokens=NEW, stream=calls.append)
    assert calls[-1].ids.shape[1] == out.lengths[0] + 1 <= 7
    np.testing.assert_array_equal(out.ids, generate(lm, same, max_new_tokens=NEW).ids)


@pytest.mark.parametrize("every", [1, 15, 100])
def test_streaming_shows_growing_text_and_ends_with_the_same(every):
    lm, calls = endless("llama31"), []
    out = generate(lm, PROMPTS, max_new_tokens=NEW, stream=calls.append, stream_every=every)
    np.testing.assert_array_equal(out.ids, generate(lm, PROMPTS, max_new_tokens=NEW).ids)
    assert [c.ids.shape[1] for c in calls] == {1: [*range(1, 41)], 15: [15, 30, 40], 100: [40]}[every]
    assert all(out.texts[i].startswith(c.texts[i]) for c in calls for i in range(3))


@pytest.mark.parametrize("name", ["gemma2"])
def test_input_embeddings_take_the_place_of_tokens(name):
    table = hf_model(name).get_input_embeddings()
    embedded = [table(torch.tensor(p)).detach() for p in PROMPTS]
    embedded[1][2] = embedded[0][0] * 1.5
    ours = generate(endless(name), [e.numpy() for e in embedded], max_new_tokens=12)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = [hf_model(name).generate(inputs_embeds=e[None], **options)[0].tolist() for e in embedded]
    assert ours.ids.tolist() == theirs
    assert ours.ids[1].tolist() != hf_greedy(hf_model(name), PROMPTS, 12)[1]


def test_texts_are_prompts_too():
    lm = endless("llama31")
    out = generate(lm, [" ".join(f"w{i}" for i in p) for p in PROMPTS], max_new_tokens=NEW)
    np.testing.assert_array_equal(out.ids, generate(lm, PROMPTS, max_new_tokens=NEW).ids)
    assert out.texts[0] == "".join(f" w{i}" for i in out.ids[0] if i > 2)


@pytest.mark.parametrize("name", ["llama31", "gemma2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_rows_that_share_prompts_and_decode_in_stretches_equal_each_alone(name, layer):
    lm, rows = endless(name), PROMPTS * 13
    assert len(rows) * NEW > TOKENS_A_STRETCH
    strengths = np.repeat(np.linspace(-6, 6, 13, dtype=np.float32), len(PROMPTS))
    direction = np.random.default_rng(layer).normal(size=lm.config.hidden_size).astype(np.float32)
    steered = lambda rows, strength: generate(
        lm, rows, max_new_tokens=NEW, edits={f"resid_post.{layer}": Steer(direction, strength)}
    ).ids.tolist()
    together = steered(rows, strengths)
    assert len({tuple(ids) for ids in together}) > 12
    for i in (0, 16, 38):
        assert steered(rows[i : i + 1], strengths[i : i + 1])[0] == together[i]


@pytest.mark.parametrize(
    ("tokens", "backend", "expected"),
    [(1399, "cpu", 1), (1400, "cpu", 2), (10**6, "cpu", 8), (11_200, "gpu", 1), (70_000, "tpu", 3), (10**6, "gpu", 8)],
)
def test_an_accelerator_compiles_few_stretches(tokens, backend, expected):
    assert stretches(tokens, backend) == expected


# Sampling.

OPTIONS = {"max_new_tokens": 16, "temperature": 1.3, "top_k": 40, "top_p": 0.95}


def test_a_row_depends_on_its_own_seed_alone():
    lm = endless("llama31")
    together = generate(lm, PROMPTS, seed=[3, 7, 11], **OPTIONS).ids
    among_others = generate(lm, [PROMPTS[0][::-1], PROMPTS[1], PROMPTS[0]], seed=[5, 7, 6], **OPTIONS).ids
    np.testing.assert_array_equal(among_others[1], together[1])
    np.testing.assert_array_equal(generate(lm, PROMPTS, seed=3, **OPTIONS).ids[0], together[0])
    same = generate(lm, [PROMPTS[1]] * 3, seed=[7, 8, 7], **OPTIONS).ids
    assert same[0].tolist() == same[2].tolist() == together[1].tolist() != same[1].tolist()


def test_rows_may_mix_greedy_and_sampled():
    lm = endless("llama31")
    mixed = generate(lm, PROMPTS, max_new_tokens=16, temperature=[0.0, 1.0, 0.0], seed=0).ids
    greedy = generate(lm, PROMPTS, max_new_tokens=NEW).ids[:, :16]
    np.testing.assert_array_equal(mixed[[0, 2]], greedy[[0, 2]])
    assert mixed[1].tolist() != greedy[1].tolist()


@pytest.mark.parametrize(("t", "k", "p"), [(0.7, 0, 1.0), (1.5, 5, 1.0), (1.0, 0, 0.6), (1.3, 8, 0.7), (1.0, 1, 1.0)])
def test_samples_follow_the_distribution_of_transformers_warpers(t, k, p):
    n, logits = 20000, np.random.default_rng(0).normal(0, 2, 24).astype(np.float32)
    warped = torch.tensor(logits)[None]
    warpers = [transformers.TemperatureLogitsWarper(t)]
    warpers += [transformers.TopKLogitsWarper(k)] if k else []
    warpers += [transformers.TopPLogitsWarper(p)] if p < 1 else []
    for warp in warpers:
        warped = warp(None, warped)
    expected = torch.softmax(warped, -1)[0].numpy()
    keys = jax.vmap(jax.random.PRNGKey)(jnp.arange(n))
    sampling = Sampling(jnp.full(n, t), jnp.full(n, k), jnp.full(n, p), keys)
    drawn = np.asarray(jax.jit(sample)(jnp.broadcast_to(jnp.asarray(logits), (n, 24)), sampling, jnp.int32(3)))
    found = np.bincount(drawn, minlength=24) / n
    assert not found[expected == 0].any()
    assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / n)


def test_argmax_takes_the_first_maximum_and_survives_nan():
    x = np.array([[1.0, 3.0, 3.0], [-np.inf] * 3, [np.nan] * 3], np.float32)
    assert argmax(jnp.asarray(x)).tolist() == [1, 0, 2]


@pytest.mark.parametrize("width", [1, 7, 96, 512, 1000])
def test_argmax_of_any_width_is_that_of_numpy(rng, width):
    x = rng.integers(0, 9, (40, width)).astype(np.float32)
    assert argmax(jnp.asarray(x)).tolist() == x.argmax(axis=1).tolist()


# Compilation, and what a user may get wrong.


def test_new_values_never_compile_again():
    lm, rng = endless("llama31"), np.random.default_rng(0)

    def steered(strength):
        edits = {"resid_post.1": Steer(rng.normal(size=32).astype(np.float32), np.float32(strength))}
        return generate(lm, PROMPTS, max_new_tokens=8, edits=edits)

    steered(0.0)
    before = complete._cache_size()
    for strength in (0.5, -3.0, 10.0):
        steered(strength)
    generate(lm, [p[::-1] for p in PROMPTS], max_new_tokens=8, edits={"resid_post.1": Steer(np.ones(32), 1.0)})
    assert complete._cache_size() == before


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there is no prompt"),
        (["w5", ""], {}, "prompt 1 has no token"),
        (["w5"], {"max_new_tokens": 128}, "1 tokens and 128 new ones exceed the model's context of 128"),
        (["w5"], {"max_new_tokens": 0}, "must be at least 1"),
        (["w5", "w6"], {"seed": [1, 2, 3]}, "seed has 3 values for 2 prompts"),
        (["w5", "w6"], {"temperature": [1.0]}, "temperature has 1 values for 2 prompts"),
        (["w5"], {"edits": {"z.9": Steer(np.ones(32), 1.0)}}, "past the last layer"),
        (["w5"], {"edits": {"z.1": Steer(np.ones(31), 1.0)}}, "width 31 cannot go to z.1"),
        (["w5"], {"edits": {"z.1": Steer(np.ones((2, 32)), 1.0)}}, "2 rows cannot go to z.1 of a batch of 1"),
        ([np.ones((3, 31), np.float32)], {}, r"shape \(3, 31\) do not fit a model of width 32"),
    ],
)
def test_bad_requests_are_one_clear_sentence(prompts, options, message):
    with pytest.raises(AtlasError, match=message):
        generate(jax_model("llama31"), prompts, **({"max_new_tokens": 4} | options))


# Trained models.


@pytest.mark.skipif("ATLAS_JAX_DATA" not in os.environ, reason="ATLAS_JAX_DATA names no folder of real models")
@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_trained_models_continue_token_for_token_as_in_transformers(name):
    directory = Path(os.environ["ATLAS_JAX_DATA"]) / "models" / name
    lm = LanguageModel.from_pretrained(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    prompts = lm.tokenizer.encode(["Once upon a time", "Lily and Ben went to the park. They", "The dog"])
    out = generate(lm, prompts, max_new_tokens=150)
    for row, length, expected in zip(
        out.ids, out.lengths, hf_greedy(theirs, prompts, 150, eos_token_id=list(lm.config.eos_ids)), strict=True
    ):
        assert row[:length].tolist() == expected[:length]
        assert length >= len(expected) - 1


@pytest.mark.skipif("ATLAS_JAX_DATA" not in os.environ, reason="ATLAS_JAX_DATA names no folder of real models")
def test_the_published_story():
    lm = LanguageModel.from_pretrained(Path(os.environ["ATLAS_JAX_DATA"]) / "models" / "stories260K")
    text = generate(lm, [[lm.tokenizer.bos_id]], max_new_tokens=80).texts[0]
    assert text.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
