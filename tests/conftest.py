"""Strict numerics and eight simulated devices for every test."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    """A numpy generator with a fixed seed."""
    import numpy as np

    return np.random.default_rng(0)
