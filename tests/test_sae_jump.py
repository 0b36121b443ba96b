"""JumpReLU training: pseudo-derivatives as published, target L0 reached, a planted dictionary found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.sae import SparseAutoencoder, TrainConfig, init_state, quality, train, train_step
from atlas_jax.sae._jump import trained_jump, trained_step

D, FEATURES, ACTIVE, ROWS, D_SAE = 32, 64, 4, 256, 128


@pytest.fixture(scope="module")
def planted():
    """Unit directions, and a pool of activations that are sparse sums of them around a large mean."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(FEATURES, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    on = rng.random((20_000, FEATURES)) < ACTIVE / FEATURES
    codes = on * (1.0 + rng.exponential(size=on.shape))
    x = 7.0 * (codes @ directions + 0.05 * rng.normal(size=(len(codes), D))) + 20.0 * rng.normal(size=D)
    return directions, x.astype(np.float32)


def batches(x, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield x[rng.integers(0, len(x) - 4000, ROWS)]


def fit(x, k, **options):
    sae, log = train(batches(x), d_sae=D_SAE, k=k, steps=600, architecture="jumprelu", log_every=50, **options)
    return sae, log, quality(sae, jnp.asarray(x[-4000:]))


def test_pseudo_derivatives_are_the_published_ones(rng):
    """In float64 numpy: a rectangle of width eps around the threshold stands for the delta function."""
    pre, g = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(50, 6)).astype(np.float32)
    threshold, eps = rng.uniform(0.1, 1.0, 6).astype(np.float32), 0.7
    window = np.abs(pre.astype(np.float64) - threshold) < eps / 2
    pull = lambda f: jax.vjp(lambda p, t: f(p, t, eps), jnp.asarray(pre), jnp.asarray(threshold))[1](jnp.asarray(g))
    by_pre, by_threshold = pull(trained_jump)
    np.testing.assert_array_equal(by_pre, np.where(pre > threshold, g, 0))
    np.testing.assert_allclose(by_threshold, -(threshold / eps) * np.sum(window * g, 0, dtype=np.float64), rtol=1e-4)
    by_pre, by_threshold = pull(trained_step)
    assert not np.any(by_pre)
    np.testing.assert_allclose(by_threshold, -np.sum(window * g, 0, dtype=np.float64) / eps, rtol=1e-4)
    assert np.any(by_threshold)


def test_the_pseudo_derivative_estimates_that_of_the_expected_loss(rng):
    """The mean of the estimate over many rows is the slope of the mean loss, which does have one."""
    pre = jnp.asarray(rng.normal(size=(400_000, 1)), jnp.float32)
    mean_step = lambda t: jnp.mean(trained_step(pre, t[None], 0.2))
    at, h = 0.8, 0.05
    slope = (float(mean_step(jnp.float32(at + h))) - float(mean_step(jnp.float32(at - h)))) / (2 * h)
    np.testing.assert_allclose(jax.grad(mean_step)(jnp.float32(at)), slope, rtol=0.03)


@pytest.mark.parametrize("k", [2.0, 4.0, 12.0])
def test_training_reaches_the_asked_l0(planted, k):
    _, x = planted
    _, _, measured = fit(x, k)
    np.testing.assert_allclose(measured.l0, k, rtol=0.1)


def test_without_the_penalty_following_l0_it_is_missed(planted):
    """The twin that must fail: a constant penalty ends wherever it ends."""
    _, x = planted
    _, _, measured = fit(x, 2.0, penalty_rate=0.0, penalty_gain=0.0)
    assert abs(float(measured.l0) - 2.0) > 0.3


def test_a_planted_dictionary_is_found_with_a_threshold_for_each_feature(planted):
    directions, x = planted
    sae, log, measured = fit(x, float(ACTIVE))
    cosines = (np.asarray(sae.W_dec) @ directions.T).max(0)
    assert np.mean(cosines > 0.95) > 0.9
    assert float(measured.fvu) < 0.15
    assert float(measured.dead) < 0.5
    assert len(np.unique(sae.threshold)) > D_SAE / 2
    assert log.l0[0] > 3 * ACTIVE > 2 * log.l0[-1]


def test_the_warm_up_starts_at_the_asked_l0_and_one_compilation_serves_the_run(planted):
    _, x = planted
    config = TrainConfig(d_sae=24, k=2, steps=6, architecture="jumprelu", k_start=3.0)
    state = init_state(config, jnp.asarray(x[:ROWS]))
    before = train_step._cache_size()
    l0 = []
    for batch, _ in zip(batches(x), range(6), strict=False):
        state, metrics = train_step(config, state, jnp.asarray(batch))
        l0.append(float(metrics.l0))
    assert train_step._cache_size() == before + 1
    np.testing.assert_allclose(l0[0], 6.0, rtol=0.15)


def test_the_result_is_saved_and_loaded_with_its_thresholds(planted, tmp_path):
    _, x = planted
    sae, _ = train(batches(x), d_sae=16, k=2, steps=12, architecture="jumprelu")
    for layout in ("gemma_scope", "saelens"):
        sae.save_pretrained(tmp_path / layout, format=layout)
        again = SparseAutoencoder.from_pretrained(tmp_path / layout)
        np.testing.assert_array_equal(again.threshold, sae.threshold)
        np.testing.assert_array_equal(again(jnp.asarray(x[:9])), sae(jnp.asarray(x[:9])))
