"""Strict numerics, eight simulated devices, and one cache of compiled programs for all processes of a test run."""

import gc
import os
import shutil
import tempfile

import pytest
from filelock import FileLock

_OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and commands inherit it from the process that starts them
    _OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="atlas-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure():
    """Forget the compiled programs."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Free the programs a module compiled: each takes several of the 65,530 memory maps that Linux gives a process."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rng():
    """A numpy generator with a fixed seed."""
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture
def as_for_users():
    """Annotations unchecked, as outside of the tests, so that wrong input reaches the checks it would reach there."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def bundled_run(tmp_path_factory, worker_id):
    """A measured run of the bundled pair, made once for all workers; read it, or copy it before changing it."""
    from atlas_jax.bundled import ATLAS, SUBJECT
    from atlas_jax.corpus import build_corpus, installed_documentation
    from atlas_jax.experiments import measured
    from atlas_jax.pipeline import AlignSettings, align, load_pair

    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    directory = shared / "bundled-run"
    with FileLock(shared / "bundled-run.lock"):
        if not directory.is_dir():
            settings = AlignSettings(("mlp_act.1", "resid_post.2"), ("procrustes", "covariance"), max_length=32)
            corpus = build_corpus(installed_documentation(max_bytes=200_000), n_fit=400, n_eval=200)
            making = shared / "bundled-run.making"
            making.mkdir()
            measured(align(load_pair(SUBJECT, ATLAS, settings), corpus, settings)).save(making)
            making.rename(directory)
    return directory
