"""SAE training: a planted dictionary is found at the asked sparsity, deterministically, from any checkpoint."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.errors import AtlasError
from atlas_jax.sae import SAEConfig, TrainConfig, init_state, quality, to_sae, train, train_step
from atlas_jax.types import Site

D, FEATURES, ACTIVE, ROWS = 32, 64, 4, 256
D_SAE = 128
SMALL = {"d_sae": 16, "k": 2, "steps": 12, "dead_after": 3}


@pytest.fixture(scope="module")
def planted():
    """Unit directions, and a pool of activations that are sparse sums of them around a large mean."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(FEATURES, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    on = rng.random((40_000, FEATURES)) < ACTIVE / FEATURES
    codes = on * (1.0 + rng.exponential(size=on.shape))
    x = 7.0 * (codes @ directions + 0.05 * rng.normal(size=(len(codes), D))) + 20.0 * rng.normal(size=D)
    return directions, x.astype(np.float32)


def batches(x, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield x[rng.integers(0, len(x), ROWS)]


@pytest.fixture(scope="module")
def trained(planted):
    _, x = planted
    site = SAEConfig("jumprelu", D, D_SAE, site=Site("resid_post", 2), model="m")
    return train(batches(x[:30_000]), d_sae=D_SAE, k=ACTIVE, steps=700, log_every=100, describe=site)


def test_a_planted_dictionary_is_found(planted, trained):
    directions, x = planted
    sae, _ = trained
    cosines = (np.asarray(sae.W_dec) @ directions.T).max(0)
    measured = quality(sae, jnp.asarray(x[30_000:]))
    assert np.mean(cosines > 0.95) > 0.9
    assert float(measured.fvu) < 0.15
    assert abs(float(measured.l0) - ACTIVE) < 0.15 * ACTIVE


def test_untrained_and_shuffled_dictionaries_fail_the_same_measure(planted, trained):
    """The twin that must fail: no training, or features in the wrong order, explain little."""
    _, x = planted
    config = TrainConfig(d_sae=FEATURES, k=ACTIVE, steps=1)
    untrained = to_sae(config, init_state(config, jnp.asarray(x[:ROWS])))
    shuffled = dataclasses.replace(trained[0], W_dec=jnp.roll(trained[0].W_dec, 1, axis=0))
    assert all(float(quality(sae, jnp.asarray(x[30_000:])).fvu) > 0.5 for sae in (untrained, shuffled))


def test_the_result_is_a_plain_jumprelu_sae(trained, tmp_path):
    sae, _ = trained
    assert (sae.config.kind, sae.config.apply_b_dec_to_input, sae.config.normalization) == ("jumprelu", False, "none")
    assert (sae.config.site, sae.config.model) == (Site("resid_post", 2), "m")
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1.0, atol=1e-5)
    sae.save_pretrained(tmp_path)
    np.testing.assert_array_equal(type(sae).from_pretrained(tmp_path).threshold, sae.threshold)


def test_the_log_tells_the_run(trained):
    _, log = trained
    assert log.step.tolist() == [0, 100, 200, 300, 400, 500, 600, 699]
    assert log.fvu[-1] < 0.2 * log.fvu[0]
    assert log.learning_rate[-1] < 0.02 * log.learning_rate.max()
    np.testing.assert_allclose(log.l0[-1], ACTIVE, rtol=0.15)


def test_folding_keeps_the_map(planted):
    """The SAE of raw activations is the dictionary of scaled ones: equal features and reconstruction."""
    _, x = planted
    config = TrainConfig(**SMALL)
    state = init_state(config, jnp.asarray(x[:ROWS]))
    for batch in itertools.islice(batches(x), 12):
        state, _ = train_step(config, state, jnp.asarray(batch))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), state.dictionary)
    scaled = x[:50].astype(np.float64) * float(state.scale)
    pre = (scaled - p.b_dec) @ p.W_enc + p.b_enc
    f = np.where(pre > float(state.threshold), pre, 0.0)
    sae = to_sae(config, state)
    np.testing.assert_allclose(sae.encode(jnp.asarray(x[:50])) * state.scale, f, atol=2e-3)
    np.testing.assert_allclose(sae(jnp.asarray(x[:50])), (f @ p.W_dec + p.b_dec) / float(state.scale), atol=2e-2)


def test_same_seed_same_sae_and_another_seed_another(planted):
    _, x = planted
    run = lambda seed: train(batches(x), seed=seed, **SMALL)[0]
    first, again, other = run(0), run(0), run(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.W_dec, other.W_dec)


def test_a_saved_state_goes_on_to_the_same_numbers(planted):
    _, x = planted
    config = TrainConfig(**SMALL)
    stream = [jnp.asarray(b) for b in itertools.islice(batches(x), 12)]
    state, saved = init_state(config, stream[0]), None
    for step, batch in enumerate(stream):
        saved = jax.device_get(state) if step == 6 else saved
        state, _ = train_step(config, state, batch)
    again = jax.tree.map(jnp.asarray, saved)
    for batch in stream[6:]:
        again, _ = train_step(config, again, batch)
    jax.tree.map(np.testing.assert_array_equal, state, again)


def test_one_compilation_serves_the_run(planted):
    _, x = planted
    before = train_step._cache_size()
    train(batches(x), d_sae=24, k=2, steps=6, dead_after=2)
    assert train_step._cache_size() == before + 1


def test_dead_features_come_back(planted):
    """With features pushed far below zero, only the revival loss can reach them."""
    _, x = planted

    def mean_dead_at_the_end(revival):
        config = TrainConfig(d_sae=FEATURES, k=ACTIVE, steps=300, dead_after=10, revival=revival)
        state = init_state(config, jnp.asarray(x[:ROWS]))
        sunk = state.dictionary.b_enc.at[: FEATURES // 2].set(-1.5)
        state = state._replace(dictionary=state.dictionary._replace(b_enc=sunk))
        dead = []
        for batch in itertools.islice(batches(x), 300):
            state, metrics = train_step(config, state, jnp.asarray(batch))
            dead.append(metrics.dead)
        return np.mean(jax.device_get(dead[-50:]))

    assert mean_dead_at_the_end(1 / 32) < 0.7 * mean_dead_at_the_end(0.0)


def test_running_out_of_activations_is_said(planted):
    _, x = planted
    with pytest.raises(AtlasError, match="ran out after 3 of 12"):
        train(itertools.islice(batches(x), 3), **SMALL)
