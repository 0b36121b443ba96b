"""Edits: Eq. 4 against float64, selectors, and the same edits by PyTorch hooks in transformers over 64 greedy steps."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from helpers.hf_oracle import hf_model, hooks, jax_model, random_ids

from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel, forward, generate, run
from atlas_jax.models._forward import _run
from atlas_jax.steering import Ablate, Add, ProjectOut, Replace, Steer, at
from atlas_jax.types import Site, Tokens, Where

B, T, D = 3, 5, 8


@pytest.fixture
def x(rng):
    return rng.normal(size=(B, T, D)).astype(np.float32)


def where(lengths=(T,) * B, prompts=(3, 2, 5)) -> Where:
    """Rows padded on the left to ``T``."""
    position = np.array([[t - (T - n) if t >= T - n else -1 for t in range(T)] for n in lengths])
    return Where(jnp.asarray(position), jnp.asarray(prompts))


def eq4(a, s, strength):
    a, s = np.float64(a), np.float64(s)
    moved = a + strength * s
    return moved * np.linalg.norm(a, axis=-1, keepdims=True) / np.linalg.norm(moved, axis=-1, keepdims=True)


# The formulas.


def test_steer_is_eq_4(x, rng):
    s = rng.normal(size=D).astype(np.float32)
    for strength in (-20.0, -0.3, 0.7, 1e4):
        out = Steer(s, strength)(jnp.asarray(x), where())
        np.testing.assert_allclose(out, eq4(x, s, strength), atol=1e-5)
        np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_steer_takes_a_direction_and_a_strength_for_each_row(x, rng):
    s, strength = rng.normal(size=(B, D)).astype(np.float32), np.array([0.5, 0.0, -3.0], np.float32)
    out = Steer(s, strength)(jnp.asarray(x), where())
    for i in range(B):
        np.testing.assert_allclose(out[i], eq4(x[i], s[i], strength[i]), atol=1e-5)
    np.testing.assert_array_equal(out[1], x[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strength_zero_returns_the_same_bits(x, dtype):
    a = jnp.asarray(x, dtype) * jnp.asarray(1e-30, dtype)
    np.testing.assert_array_equal(Steer(np.ones(D, "f"), 0.0)(a, where()), a)


def test_zero_rows_and_vanishing_sums_give_no_nan(x):
    a = jnp.asarray(x).at[0, 0].set(0.0)
    for strength in (0.0, 2.0):
        assert (np.asarray(Steer(np.ones(D, "f"), strength)(a, where()))[0, 0] == 0).all()
    opposite = Steer(-a[0, 1], 1.0)(a, where())
    np.testing.assert_array_equal(opposite[0, 1], a[0, 1])
    assert np.isfinite(Steer(np.zeros(D, "f"), 1.0)(a, where())).all()


def test_gradients_are_finite_where_activations_are_zero(x):
    a = jnp.asarray(x).at[0, 0].set(0.0)
    for strength in (0.0, 2.0):
        loss = lambda s, k: jnp.sum(Steer(s, k)(a, where())[..., 0])
        grads = jax.grad(loss, argnums=(0, 1))(jnp.zeros(D).at[0].set(1.0), strength)
        assert all(np.isfinite(g).all() for g in grads)


def test_steer_gradient_equals_finite_differences(x, rng):
    s = rng.normal(size=D)
    weights = rng.normal(size=x.shape)
    loss = lambda s: jnp.sum(Steer(s, 0.8)(jnp.asarray(x), where()) * jnp.asarray(weights, jnp.float32))
    exact = lambda s: float(np.sum(eq4(x, s, 0.8) * weights))
    expected = [(exact(s + e) - exact(s - e)) / 2e-5 for e in 1e-5 * np.eye(D)]
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(s, jnp.float32)), expected, rtol=1e-3, atol=1e-4)


def test_add_replace_and_project_out(x, rng):
    a, v = jnp.asarray(x), rng.normal(size=(B, D)).astype(np.float32)
    np.testing.assert_allclose(Add(v, 2.0)(a, where()), x + 2 * v[:, None], atol=1e-6)
    np.testing.assert_allclose(Add(v[0])(a, where()), x + v[0], atol=1e-6)
    np.testing.assert_array_equal(Replace(v)(a, where()), np.broadcast_to(v[:, None], x.shape))
    out = np.asarray(ProjectOut(7 * v)(a, where()))
    np.testing.assert_allclose(np.einsum("btd,bd->bt", out, v), 0, atol=1e-5)
    np.testing.assert_allclose(ProjectOut(v)(jnp.asarray(out), where()), out, atol=1e-5)
    np.testing.assert_array_equal(ProjectOut(0 * v)(a, where()), x)


def test_ablate_sets_chosen_features_alone(x, rng):
    a, features, mean = jnp.asarray(x), rng.random((B, D)) < 0.4, rng.normal(size=D).astype(np.float32)
    np.testing.assert_array_equal(Ablate(features)(a, where()), np.where(features[:, None], 0, x))
    np.testing.assert_array_equal(Ablate(features[0], mean)(a, where()), np.where(features[0], mean, x))


@pytest.mark.parametrize("edit", [Steer(np.ones(D, "f"), 1.0), Add(np.ones(D, "f")), Replace(np.ones(D, "f"))])
def test_edits_keep_the_dtype_of_the_activation(x, edit):
    assert edit(jnp.asarray(x, jnp.bfloat16), where()).dtype == jnp.bfloat16


def test_width_and_rows_of_every_edit():
    row, rows, flag = np.ones(D, "f"), np.ones((4, D), "f"), np.ones(D, bool)
    single = [Steer(row, 1.0), Add(row), Replace(row), Ablate(flag), ProjectOut(row), at(Add(row), (1, 2))]
    several = [Steer(row, np.ones(4)), Add(rows), Replace(rows), Ablate(flag, rows), ProjectOut(rows)]
    several += [at(Add(rows), "last"), at(Add(row), (np.arange(4), 9)), at(Add(row), np.ones((4, 2)))]
    assert [(e.width, e.rows) for e in single] == [(D, 1)] * len(single)
    assert [(e.width, e.rows) for e in several] == [(D, 4)] * len(several)
    assert at(lambda x, where: x, "all").width is None


# Selectors: rows of 5, 3 and 4 real tokens, padded on the left, with prompts of 3, 2 and 4.


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("all", ["11111", "00111", "01111"]),
        ("prompt", ["11100", "00110", "01111"]),
        ("generated", ["00011", "00001", "00000"]),
        ("last", ["00111", "00011", "00001"]),
        ((1, 2), ["01100", "00011", "00110"]),
        ((np.array([0, 1, 2]), 2), ["11100", "00011", "00010"]),
        ((2, np.array([9, 2, 3])), ["00111", "00001", "00011"]),
        ([0, 3], ["10010", "00100", "01001"]),
        (np.array([[4, 9], [0, 0], [1, 2]]), ["00001", "00100", "00110"]),
    ],
)
def test_at_selects_positions_of_the_text_whatever_the_padding(x, positions, chosen):
    edit = at(Replace(np.zeros(D, "f")), positions)
    out = np.asarray(jax.jit(lambda e, a: e(a, where((5, 3, 4), (3, 2, 4))))(edit, jnp.asarray(x)))
    expected = np.array([[c == "1" for c in row] for row in chosen])
    np.testing.assert_array_equal(out, np.where(expected[:, :, None], 0, x))


ONE = np.ones(D, "f")
NAN = np.where(np.arange(D) == 3, np.nan, ONE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Steer("image", 5.0), "the direction of Steer must be an array of real numbers, not 'image'"),
        (lambda: Steer(None, 5.0), "the direction of Steer must be an array of real numbers, not None"),
        (lambda: Steer(NAN, 5.0), r"the direction of Steer is nan at \[3\]; give finite numbers"),
        (lambda: Steer(ONE, float("inf")), "the strength of Steer is inf; give finite numbers"),
        (lambda: Steer(ONE, jnp.array([1.0, jnp.nan])), r"the strength of Steer is nan at \[1\]"),
        (lambda: Steer(ONE, "strong"), "the strength of Steer must be an array of real numbers"),
        (lambda: Steer(5.0, 1.0), r"the direction of Steer has shape \(\); give \[d\], or \[b, d\]"),
        (lambda: Steer(ONE, np.ones((2, 2))), r"the strength of Steer has shape \(2, 2\); give a number, or one a row"),
        (lambda: Add(ONE * 1j), "the direction of Add must be an array of real numbers, not an array of complex64"),
        (lambda: Add(jnp.full((2, D), -jnp.inf, jnp.bfloat16)), r"the direction of Add is -inf at \[0, 0\]"),
        (
            lambda: Add(np.ones((2, D)), np.ones(3)),
            "the fields of Add are for different rows: direction 2 and strength 3",
        ),
        (lambda: Replace([[1.0, 2.0], [3.0]]), "the value of Replace must be an array of real numbers"),
        (lambda: Replace(NAN), r"the value of Replace is nan at \[3\]"),
        (lambda: ProjectOut(-NAN), r"the direction of ProjectOut is nan at \[3\]"),
        (lambda: Ablate(ONE > 0, NAN), r"the value of Ablate is nan at \[3\]"),
        (lambda: Ablate([3, 5, 7]), r"the mask of Ablate is 3 at \[0\]; give a mask, true where a feature is ablated"),
        (lambda: Ablate(5), r"the features of Ablate has shape \(\)"),
        (lambda: at(Steer(ONE, np.nan), "generated"), "the strength of Steer is nan"),
        (lambda: at(at(Add(NAN), "prompt"), [1]), r"the direction of Add is nan at \[3\]"),
        (lambda: at(Add(ONE), "middle"), "unknown positions 'middle'; use all, generated, prompt, last"),
        (lambda: at(Add(ONE), -1), "a position is -1; give whole numbers from 0 up, or a name such as 'last'"),
        (lambda: at(Add(ONE), [0.5]), r"a position is 0.5 at \[0\]"),
        (lambda: at(Add(ONE), [np.nan]), r"a position is nan at \[0\]"),
        (lambda: at(Add(ONE), (3, 1)), r"the first position is 3 at \[0, 0\]; give one up to the last"),
        (lambda: at(Add(ONE), (1, 2, 3)), r"a range of positions is \(first, last\), not 3 numbers"),
        (lambda: at(Add(ONE), np.ones((2, 3), bool)), "positions are a mask"),
        (lambda: at("edit", "all"), "at\\(\\) restricts an edit, .* and str is none"),
    ],
)
def test_edits_that_make_no_sense_are_refused(as_for_users, make, message):
    with pytest.raises(AtlasError, match=message):
        make().check()


def test_edits_of_every_shape_pass_the_check_and_so_do_traced_ones(x):
    edits = [Steer([1.0] * D, 2), Steer(ONE, np.array([1, 2])), Add(jnp.ones((2, D), jnp.bfloat16)), Add(ONE)]
    edits += [Ablate(ONE), Ablate(np.ones((2, D), bool), ONE), ProjectOut(ONE), Replace(np.ones((1, D)))]
    edits += [at(edits[0], [0, 3]), at(Add(ONE), (np.arange(4), 9)), at(Add(ONE), 2), at(lambda x, where: x, "last")]
    for edit in edits:
        edit.check()

    @jax.jit
    def inside(s):
        edit = at(Steer(s, s[0]), (0, 3))
        edit.check()
        return edit(jnp.asarray(x), where())

    np.testing.assert_allclose(inside(ONE), at(Steer(ONE, 1.0), (0, 3))(jnp.asarray(x), where()), atol=1e-6)


# The same edits by PyTorch hooks.

STRENGTHS = np.array([0.0, 0.5, -2.0, 20.0], np.float32)


def torch_steer(direction: np.ndarray, strengths: np.ndarray) -> Callable:
    s, k = torch.tensor(direction), torch.tensor(strengths)[:, None, None]

    def hook(a: torch.Tensor) -> torch.Tensor:
        moved = a + k * s
        return torch.where(k == 0, a, moved * a.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True))

    return hook


def hf_steered(model, prompt: list[int], hook_at: dict, steps: int = 64) -> list[list[int]]:
    ids = torch.tensor([prompt] * len(STRENGTHS))
    with torch.no_grad(), hooks(model, hook_at):
        return model.generate(
            ids, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0
        )[:, len(prompt) :].tolist()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("llama31", "resid_post.1"),
        ("llama31", "mlp_act.0"),
        ("llama31", "z.1"),
        ("gemma2", "mlp_out_post.1"),
        ("gemma2", "resid_pre.2"),
        ("olmo2", "attn_out_post.1"),
        ("phi3", "mlp_act.1"),
        ("gpt2", "z.1"),
        ("pythia", "mlp_act.1"),
        ("pythia", "resid_post.1"),
    ],
)
def test_steering_equals_hooks_in_transformers_for_64_greedy_tokens(name, site, rng):
    lm, site, prompt = endless(name), Site.parse(site), random_ids(1, 9)[0].tolist()
    direction = rng.normal(size=lm.config.width(site.point)).astype(np.float32)
    ours = generate(lm, [prompt] * len(STRENGTHS), max_new_tokens=64, edits={site: Steer(direction, STRENGTHS)}).ids
    theirs = hf_steered(hf_model(name), prompt, {site: torch_steer(direction, STRENGTHS)})
    assert ours.tolist() == theirs
    assert len({tuple(row) for row in theirs}) >= 3


def test_several_sites_and_selectors_equal_hooks_in_transformers(rng):
    lm, prompt = endless("llama31"), random_ids(1, 9)[0].tolist()
    v, w = rng.normal(size=(2, 32)).astype(np.float32)
    u, features = rng.normal(size=56).astype(np.float32), rng.random(56) < 0.3
    sites = [Site.parse(s) for s in ("resid_post.0", "attn_out.1", "mlp_act.1", "resid_post.2")]
    edits = {
        sites[0]: at(Add(v, STRENGTHS), "generated"),
        sites[1]: ProjectOut(w),
        sites[2]: [Ablate(features, 0.5), at(Add(u), (2, 4))],
        sites[3]: at(Replace(w), [8]),
    }
    ours = generate(lm, [prompt] * len(STRENGTHS), max_new_tokens=64, edits=edits).ids.tolist()

    def prefill(a: torch.Tensor) -> bool:
        return a.shape[1] > 1

    def middle(a: torch.Tensor) -> torch.Tensor:
        a = torch.where(torch.tensor(features), torch.tensor(0.5), a)
        a[:, 2:5] += torch.tensor(u) if prefill(a) else 0.0
        return a

    def replace_last(a: torch.Tensor) -> torch.Tensor | None:
        return torch.cat([a[:, :8], torch.tensor(w).expand(len(a), 1, -1)], dim=1) if prefill(a) else None

    unit = torch.tensor(w) / torch.tensor(w).norm()
    theirs = hf_steered(
        hf_model("llama31"),
        prompt,
        {
            sites[0]: lambda a: None if prefill(a) else a + torch.tensor(STRENGTHS)[:, None, None] * torch.tensor(v),
            sites[1]: lambda a: a - (a @ unit)[..., None] * unit,
            sites[2]: middle,
            sites[3]: replace_last,
        },
    )
    assert ours == theirs


def endless(name: str) -> LanguageModel:
    """A model of the zoo whose end-of-text token never stops a row."""
    import dataclasses

    from flax import nnx

    from atlas_jax.models import decoder_shapes

    lm = jax_model(name)
    config = dataclasses.replace(lm.config, eos_ids=())
    graph = nnx.graphdef(decoder_shapes(config))
    return LanguageModel(config, lm.tokenizer, nnx.merge(graph, nnx.state(lm.decoder)), lm.hf_config)


@pytest.mark.skipif("ATLAS_JAX_DATA" not in os.environ, reason="ATLAS_JAX_DATA names no folder of real models")
@pytest.mark.parametrize("site", ["resid_post.2", "mlp_act.3"])
def test_steering_a_trained_model_equals_hooks_in_transformers(site, rng):
    directory = Path(os.environ["ATLAS_JAX_DATA"]) / "models" / "stories260K"
    lm, site = LanguageModel.from_pretrained(directory), Site.parse(site)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    prompt = lm.tokenizer.encode(["Once upon a time"])[0]
    direction = rng.normal(size=lm.config.width(site.point)).astype(np.float32)
    strengths = STRENGTHS / 10
    ours = generate(lm, [prompt] * len(strengths), max_new_tokens=64, edits={site: Steer(direction, strengths)})
    expected = hf_steered(theirs, prompt, {site: torch_steer(direction, strengths)})
    for row, length, want in zip(ours.ids, ours.lengths, expected, strict=True):
        assert length > 20
        assert row[:length].tolist() == want[:length]


# Edits in passes of one's own.


def batch(rows: int = 2, length: int = 10) -> Tokens:
    ids = jnp.asarray(random_ids(rows, length), jnp.int32)
    return Tokens(ids, jnp.ones(ids.shape, bool), jnp.arange(rows))


def test_strength_zero_is_the_baseline_to_the_bit_and_values_do_not_retrace(rng):
    lm, tokens = jax_model("llama31"), batch()
    plain = run(lm, tokens).logits

    def steered(strength):
        edits = {"mlp_act.1": Steer(rng.normal(size=56).astype(np.float32), np.float32(strength))}
        return run(lm, tokens, edits=edits).logits

    np.testing.assert_array_equal(steered(0.0), plain)
    before = _run._cache_size()
    assert not np.array_equal(steered(1.0), plain)
    steered(-4.0)
    assert _run._cache_size() == before


@jax.tree_util.register_pytree_node_class
class Double:
    """An edit of a user's own: any callable pytree."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, where):
        return x * self.factor

    def tree_flatten(self):
        return (self.factor,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_any_callable_pytree_is_an_edit():
    lm, tokens = jax_model("llama31"), batch()
    plain = run(lm, tokens, capture=["z.1"], logits=False).acts[Site("z", 1)]
    for factor in (2.0, 3.0):
        out = run(lm, tokens, capture=["z.1"], edits={"z.1": Double(jnp.float32(factor))}, logits=False)
        np.testing.assert_allclose(out.acts[Site("z", 1)], factor * plain, rtol=1e-6)


def test_an_edit_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match="the edit at z.1 turned"):
        run(jax_model("llama31"), batch(), edits={"z.1": jax.tree_util.Partial(lambda x, where: x[:, :1])})


SITE, TARGET = Site("resid_post", 1), 17


def loss_of(decoder, direction, tokens):
    """Negative log-probability of a token after each row, steered along ``direction``."""
    logits = forward(decoder, tokens, edits={SITE: Steer(direction, 2.0)}).logits[:, -1]
    return -jnp.mean(jax.nn.log_softmax(logits, axis=-1)[:, TARGET])


def test_the_gradient_of_a_direction_equals_autograd_through_a_hook(rng):
    direction = rng.normal(size=32).astype(np.float32)
    ours = jax.jit(jax.grad(loss_of, argnums=1))(jax_model("gemma2").decoder, jnp.asarray(direction), batch())
    v = torch.tensor(direction, requires_grad=True)

    def steer(a: torch.Tensor) -> torch.Tensor:
        moved = a + 2.0 * v
        return moved * a.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

    with hooks(hf_model("gemma2"), {SITE: steer}):
        logits = hf_model("gemma2")(torch.tensor(random_ids(2, 10))).logits[:, -1]
    (-torch.log_softmax(logits, -1)[:, TARGET].mean()).backward()
    np.testing.assert_allclose(ours, v.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_a_steering_vector_can_be_optimised_with_optax(rng):
    decoder, tokens = jax_model("llama31").decoder, batch()
    optimizer = optax.adam(0.1)

    @jax.jit
    @jax.numpy_dtype_promotion("standard")
    def step(decoder, direction, state):
        loss, gradient = jax.value_and_grad(loss_of, argnums=1)(decoder, direction, tokens)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(direction, updates), state, loss

    direction = jnp.asarray(rng.normal(size=32), jnp.float32)
    state, losses = optimizer.init(direction), []
    for _ in range(40):
        direction, state, loss = step(decoder, direction, state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
