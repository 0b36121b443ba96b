"""Pooling against numpy, with rows and positions that do not count."""

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.pooling import POOLINGS


@pytest.fixture
def batch(rng):
    x = rng.normal(size=(5, 7, 4)).astype(np.float32)
    mask = rng.random((5, 7)) < 0.6
    mask[3] = False
    mask[4] = [False] * 6 + [True]
    x[0, :, 1] = 2.5  # ties
    return x, mask


def _expected(name, column, mask):
    places = np.flatnonzero(mask)
    if not len(places):
        return 0.0, -1
    values = column[places]
    best = {"max": np.argmax(values), "absmax": np.argmax(np.abs(values)), "last": len(values) - 1}
    if name == "mean":
        return values.mean(), places[np.argmax(values)]
    return values[best[name]], places[best[name]]


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_agrees_with_its_definition(batch, name):
    x, mask = batch
    pooled = POOLINGS[name](jnp.asarray(x), jnp.asarray(mask))
    for row in range(x.shape[0]):
        for feature in range(x.shape[2]):
            value, peak = _expected(name, x[row, :, feature], mask[row])
            np.testing.assert_allclose(pooled.values[row, feature], value, rtol=1e-6)
            assert int(pooled.argmax_position[row, feature]) == peak


@pytest.mark.parametrize("name", POOLINGS)
def test_positions_that_do_not_count_have_no_say(batch, name):
    x, mask = batch
    wild = np.where(mask[:, :, None], x, 1e6)
    same, other = (POOLINGS[name](jnp.asarray(a), jnp.asarray(mask)) for a in (x, wild))
    np.testing.assert_array_equal(same.values, other.values)
