"""What every benchmark needs: turns of the ways it compares, the machine's ceiling, and one form of report."""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ENVIRONMENT = "GLIBC_TUNABLES", "OPENBLAS_CORETYPE", "XLA_FLAGS"  # what changes speed, told in every report
STRENGTHS = np.array([-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0], np.float32)


def arguments_of(description: str) -> argparse.ArgumentParser:
    """A parser with ``--quick`` and ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    return parser


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds of one call that returns host values or jax arrays, and what it returned."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def alternate(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each way, all run in turn, and what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            took, results[name] = seconds_of(way)
            seconds[name].append(took)
    return {name: statistics.median(s) for name, s in seconds.items()}, results


def matmul_ceiling(dtype: str = "float32", n: int = 2048, precision: Any = "highest", calls: int = 1) -> float:
    """Best GFLOP/s of a square product of random operands of ``dtype``, summed in float32 or wider.

    Where one product takes about as long as starting it, several ``calls`` go under way before the first is waited for.
    """
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    out = jnp.promote_types(dtype, jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a.T, b, precision=precision, preferred_element_type=out))
    product(x, x).block_until_ready()
    several = lambda: [product(x, x) for _ in range(calls)]
    return calls * 2 * n**3 / min(seconds_of(several)[0] for _ in range(8)) / 1e9


def sentence_lengths(n: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of real sentences: 30 on average, 19 their standard deviation."""
    return np.clip(rng.gamma(2.6, 11.6, n).round().astype(int), 3, 128)


def steered(model: Any, prompts: np.ndarray, direction: np.ndarray, layer: int, new: int) -> Callable[[], np.ndarray]:
    """Every prompt at every strength as one batch, steered at one layer; the ids of the new tokens."""
    import atlas_jax as aj

    rows = np.tile(prompts, (len(STRENGTHS), 1)).tolist()
    edits = {f"resid_post.{layer}": aj.Steer(direction, np.repeat(STRENGTHS, len(prompts)))}
    return lambda: aj.generate(model, rows, max_new_tokens=new, edits=edits).ids


def peak_bytes() -> int:
    """Most memory this process has had in use; ``getrusage`` alone may tell that of the parent that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def most_bytes() -> int:
    """Most memory in use so far: of a device where it says so, else of the process."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", peak_bytes())


def machine(*modules: ModuleType) -> dict[str, Any]:
    """When and on what a report was measured."""
    return {
        "date": time.strftime("%F"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
        "versions": {m.__name__: m.__version__ for m in (jax, *modules)} | {"python": platform.python_version()},
    }


def write(report: dict[str, Any], out: Path | None) -> None:
    """Write a report as JSON where a place was given."""
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
