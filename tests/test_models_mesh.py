"""One device and a mesh of eight (data x model) compute the same, and the forward pass says nothing of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_oracle import jax_model, random_ids, saved
from jax.sharding import PartitionSpec as P

from atlas_jax.models import LanguageModel, generate, run
from atlas_jax.sharding import make_mesh
from atlas_jax.steering import Steer
from atlas_jax.types import Site, Tokens

CAPTURE = [Site.parse(s) for s in ("mlp_act.1", "z.0", "resid_post.2")]


@pytest.fixture(scope="module")
def pair():
    """The same checkpoint on one device and on 4 x 2."""
    return jax_model("gemma2"), LanguageModel.from_pretrained(saved("gemma2"), mesh=make_mesh(model=2))


def batch(rows: int) -> Tokens:
    ids = jnp.asarray(random_ids(rows, 20), jnp.int32)
    return Tokens(
        ids, jnp.ones(ids.shape, bool), jnp.arange(rows), jnp.asarray(np.arange(20)[None] < np.full((rows, 1), 17))
    )


def test_parameters_are_spread_by_the_table(pair):
    layer = pair[1].decoder.layers[0]
    specs = {
        "up": layer.mlp.up_proj.weight[...].sharding.spec,
        "down": layer.mlp.down_proj.weight[...].sharding.spec,
        "norm": layer.input_layernorm.weight[...].sharding.spec,
    }
    assert specs == {"up": P(None, "model"), "down": P("model", None), "norm": P()}


@pytest.mark.parametrize("name", ["olmo2", "phi3", "gpt2", "pythia"])
def test_other_families_compute_the_same_on_a_mesh(name):
    lm = LanguageModel.from_pretrained(saved(name), mesh=make_mesh(model=2))
    assert lm.decoder.layers[0].self_attn.q_proj.weight[...].sharding.spec == P(None, "model")
    np.testing.assert_allclose(run(lm, batch(8)).logits, run(jax_model(name), batch(8)).logits, atol=5e-5)


@pytest.mark.parametrize("rows", [8, 3])
def test_logits_and_activations_are_the_same(pair, rows):
    one, eight = (run(lm, batch(rows), capture=CAPTURE) for lm in pair)
    np.testing.assert_allclose(one.logits, eight.logits, atol=2e-5)
    for site in CAPTURE:
        np.testing.assert_allclose(one.acts[site], eight.acts[site], atol=2e-5)
    assert len(eight.logits.sharding.device_set) == 8
    if rows == 8:
        assert eight.acts[CAPTURE[0]].sharding.spec[0] == "data"
        assert {s.data.shape[0] for s in eight.acts[CAPTURE[0]].addressable_shards} == {2}


def test_steered_generation_is_the_same(pair):
    prompts = [random_ids(8, 12)[i, : 4 + i].tolist() for i in range(8)]
    direction = np.random.default_rng(0).normal(size=32).astype(np.float32)
    edits = {"resid_post.1": Steer(direction, np.linspace(-2, 2, 8).astype(np.float32))}
    one, eight = (generate(lm, prompts, max_new_tokens=12, edits=edits).ids for lm in pair)
    np.testing.assert_array_equal(one, eight)


def test_gradients_are_the_same(pair):
    def loss(lm, direction):
        return run(lm, batch(8), edits={CAPTURE[2]: Steer(direction, 2.0)}).logits[:, 16, 7].mean()

    gradients = [jax.jit(jax.grad(loss, argnums=1))(lm, jnp.linspace(-1.0, 1.0, 32)) for lm in pair]
    np.testing.assert_allclose(*gradients, atol=1e-5)
    assert np.abs(gradients[0]).max() > 1e-3
