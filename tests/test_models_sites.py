"""What the sites are: identities between them, early stopping, pooling inside the pass, heads, and bad requests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.float64 import distance
from helpers.hf_oracle import LAYERS, hf_model, jax_model, random_ids

from atlas_jax.errors import AtlasError
from atlas_jax.models import decoder_shapes, forward, run, split_heads
from atlas_jax.models._forward import _run
from atlas_jax.steering import Add, Steer
from atlas_jax.types import POINTS, Site, Tokens

SITES = [Site(point, layer) for layer in range(LAYERS) for point in POINTS]


def batch(rows: int = 2, length: int = 12) -> Tokens:
    ids = jnp.asarray(random_ids(rows, length), jnp.int32)
    return Tokens(ids, jnp.ones(ids.shape, bool), jnp.arange(rows))


@pytest.fixture(scope="module", params=["llama31", "gemma2"])
def everything(request):
    lm = jax_model(request.param)
    out = run(lm, batch(), capture=SITES)
    return lm, out, {s: np.asarray(a, np.float64) for s, a in out.acts.items()}


def weight(lm, layer: int, path: str) -> np.ndarray:
    module = lm.decoder.layers[layer]
    for part in path.split("."):
        module = getattr(module, part)
    return np.asarray(module.weight[...], np.float64)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_identities_between_the_points_of_a_block(everything, layer):
    lm, _, acts = everything
    a = {point: acts[Site(point, layer)] for point in POINTS}
    silu = lm.config.activation == "silu"
    gate = a["mlp_in"] @ weight(lm, layer, "mlp.gate_proj")
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    expected = {
        "resid_mid": a["resid_pre"] + a["attn_out_post"],
        "resid_post": a["resid_mid"] + a["mlp_out_post"],
        "attn_out": a["z"] @ weight(lm, layer, "self_attn.o_proj"),
        "mlp_gate_act": gate / (1 + np.exp(-gate)) if silu else gelu,
        "mlp_act": a["mlp_gate_act"] * (a["mlp_in"] @ weight(lm, layer, "mlp.up_proj")),
        "mlp_out": a["mlp_act"] @ weight(lm, layer, "mlp.down_proj"),
    }
    if layer:
        expected["resid_pre"] = acts[Site("resid_post", layer - 1)]
    for point, value in expected.items():
        assert distance(a[point], value) < 1e-5, point


@pytest.mark.parametrize("point", ["attn_out", "mlp_out"])
def test_the_contribution_is_the_raw_output_only_without_a_post_norm(everything, point):
    lm, _, acts = everything
    raw, contribution = acts[Site(point, 1)], acts[Site(f"{point}_post", 1)]
    assert (distance(raw, contribution) < 1e-6) != lm.config.has_post_norms


def test_resid_post_is_the_next_hidden_state_of_transformers(everything):
    import torch

    lm, _, acts = everything
    name = "gemma2" if lm.config.has_post_norms else "llama31"
    hidden = hf_model(name)(torch.tensor(random_ids(2, 12)), output_hidden_states=True).hidden_states
    assert distance(acts[Site("resid_post", 0)], hidden[1].detach().numpy()) < 1e-5


def test_widths_are_what_the_config_says(everything):
    lm, _, acts = everything
    assert all(a.shape[-1] == lm.config.width(s.point) for s, a in acts.items())


def test_heads_are_slices_of_z(everything):
    lm, _, acts = everything
    z = acts[Site("z", 2)]
    heads = split_heads(jnp.asarray(z, jnp.float32), lm.config)
    assert heads.shape == (2, 12, 4, 8)
    np.testing.assert_array_equal(heads[:, :, 3], np.float32(z[:, :, 24:]))
    np.testing.assert_allclose(acts[Site("head_norm", 2)], np.linalg.norm(heads, axis=-1), rtol=1e-6)


def test_without_logits_the_pass_stops_and_gives_the_same(everything):
    lm, out, _ = everything
    early = run(lm, batch(), capture=["mlp_act.1"], logits=False)
    assert early.logits is None
    np.testing.assert_allclose(early.acts[Site("mlp_act", 1)], out.acts[Site("mlp_act", 1)], atol=1e-5)


def test_the_pass_does_no_work_past_the_last_captured_layer():
    lm, tokens = jax_model("llama31"), batch()
    flops = [
        _run.lower(lm.decoder, tokens, {}, (Site("mlp_in", layer),), False, None).compile().cost_analysis()["flops"]
        for layer in (0, 1)
    ]
    full = _run.lower(lm.decoder, tokens, {}, (), True, None).compile().cost_analysis()["flops"]
    assert flops[0] < 0.25 * full
    assert flops[1] < 0.6 * full


def highest(x):
    return x.max(axis=1)


def test_pooling_happens_inside_the_pass():
    lm = jax_model("llama31")
    pooled = run(lm, batch(), capture=["mlp_act.1"], logits=False, pool=highest).acts[Site("mlp_act", 1)]
    whole = run(lm, batch(), capture=["mlp_act.1"], logits=False).acts[Site("mlp_act", 1)]
    np.testing.assert_allclose(pooled, whole.max(axis=1), atol=1e-6)


def test_a_transformer_lens_name_is_the_same_site():
    lm = jax_model("llama31")
    acts = run(lm, batch(), capture=["blocks.1.hook_mlp_out"], logits=False).acts
    assert list(acts) == [Site("mlp_out_post", 1)]


def test_a_capture_shows_the_site_after_its_edit_and_edits_apply_in_order():
    lm, one = jax_model("llama31"), np.ones(32, np.float32)
    plain = run(lm, batch(), capture=["resid_mid.1"], logits=False).acts[Site("resid_mid", 1)]
    edits = {"resid_mid.1": [Add(one, 2.0), Add(one, -0.5)]}
    after = run(lm, batch(), capture=["resid_mid.1"], edits=edits, logits=False).acts[Site("resid_mid", 1)]
    np.testing.assert_allclose(after, plain + 1.5, atol=1e-5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"capture": ["mlp_act.3"]}, "past the last layer: the model has 3"),
        ({"capture": ["mlp_hidden.1"]}, "unknown site 'mlp_hidden.1'"),
        ({"edits": {"mlp_act.1": Steer(np.ones(32), 1.0)}}, "width 32 cannot go to mlp_act.1, which is 56 wide"),
        ({"edits": {"resid_post.1": Steer(np.ones((3, 32)), 1.0)}}, "3 rows cannot go to resid_post.1 of a batch of 2"),
        ({"edits": {"head_norm.1": Steer(np.ones(4), 1.0)}}, "head_norm.1 can only be read; edit z.1"),
        ({"edits": {"resid_post.7": Steer(np.ones(32), 1.0)}}, "past the last layer"),
    ],
)
def test_bad_requests_are_one_clear_sentence(request_, message):
    with pytest.raises(AtlasError, match=message):
        run(jax_model("llama31"), batch(), **request_)


@pytest.mark.parametrize(
    ("name", "site", "message"),
    [
        ("gpt2", "mlp_gate_act.1", "no site mlp_gate_act.1 in this model: its MLP has no gate, and mlp_act is"),
        ("pythia", "mlp_gate_act.0", "no site mlp_gate_act.0 in this model: its MLP has no gate"),
        ("pythia", "resid_mid.2", "no site resid_mid.2 in this model: attention and MLP read the same residual"),
        ("pythia", "blocks.1.hook_resid_mid", "no site resid_mid.1 in this model"),
    ],
)
def test_points_that_a_model_does_not_have_are_refused(name, site, message):
    with pytest.raises(AtlasError, match=message):
        run(jax_model(name), batch(), capture=[site])
    with pytest.raises(AtlasError, match=message):
        run(jax_model(name), batch(), edits={site: Steer(np.ones(32), 1.0)})
    assert run(jax_model("gpt_neox"), batch(), capture=["resid_mid.1"]).acts


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(AtlasError, match="texts of 129 tokens exceed the model's context of 128"):
        run(jax_model("llama31"), batch(1, 129))


def test_asking_for_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing was asked for"):
        run(jax_model("llama31"), batch(), logits=False)


@pytest.mark.parametrize(("name", "kinds"), [("llama31", 1), ("gemma2", 2)])
def test_layers_alike_are_traced_and_lowered_once(name, kinds):
    """A program of twelve layers has the products of each kind of layer, of the layer that is read, and the logits."""
    config = jax_model(name).config
    many = dataclasses.replace(config, num_layers=12, windows=config.windows[:2] * 6, ropes=config.ropes[:2] * 6)
    decoder = decoder_shapes(many)
    program = jax.jit(lambda decoder, tokens: forward(decoder, tokens, capture=[Site("mlp_out", 11)]))
    assert program.lower(decoder, batch()).as_text().count("dot_general") == 9 * (kinds + 1) + 1
