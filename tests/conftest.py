"""Strict numerics, eight simulated devices, and one cache of compiled programs for all processes of a test run."""

import gc
import importlib.metadata
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from filelock import FileLock

_OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and commands inherit it from the process that starts them
    _OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="atlas-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Tests compile far more than they compute: compiled quickly rather than well, all else as for users.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICKLY += " --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # 0.12 ends a process that names the flag
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}".strip()
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # two workers on two cores: further threads only wait for each other

import jax  # noqa: E402
from helpers.commands import QUICKSTART, command_line  # noqa: E402

gc.set_threshold(100_000, 20, 50)  # tracing makes many objects beside many that stay: a collection finds little
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Given out first and in this order, so that no worker is left with one of them when the others are done; those that
# need the bundled run come when it is there.
SLOWEST = ["resume", "generate", "sae_command", "distributed", "sae_label", "sae_check", "quickstart", "pipeline"]
SLOWEST += ["choose", "report", "steering_evaluation", "evaluate_more", "use", "retrieval", "notebooks", "accelerator"]
SLOWEST += ["explorer", "run_files", "doctests", "diagnosis", "atlas", "atlas_build", "interrupts", "procrustes"]
SLOWEST += ["translators"]


def pytest_collection_modifyitems(config, items):
    """The slowest modules first, and the bundled run begun beside them."""
    order = {f"test_{name}": i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    first = getattr(config, "workerinput", {}).get("workerid") == "gw0"
    if first and any("bundled_run" in item.fixturenames for item in items):
        base = config._tmp_path_factory.getbasetemp().parent
        threading.Thread(target=_make_bundled_run, args=(base,), daemon=True).start()


def _make_bundled_run(base):
    """Run a quickstart on 400 sentences where that is not done yet; what it printed lies beside it, as JSON."""
    directory = base / "bundled-run"
    with FileLock(base / "bundled-run.lock"):
        if not directory.is_dir():
            done = command_line("quickstart", "--json", "--out", directory, *QUICKSTART)
            assert done.returncode == 0, done.stderr
            directory.with_suffix(".json").write_text(done.stdout)
    return directory


def pytest_unconfigure():
    """Forget the compiled programs."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """Free compiled programs before they take up the 65,530 memory maps that a process may have; others go on.

    What outlives a module is not looked at again by the collector of garbage until then.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 20_000:
        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    gc.freeze()


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
    """The run of a quickstart on 400 sentences, made once for all workers; read it, or copy it before changing it.

    What the command printed lies beside it, in ``bundled-run.json``.
    """
    base = tmp_path_factory.getbasetemp()
    return _make_bundled_run(base if worker_id == "master" else base.parent)
