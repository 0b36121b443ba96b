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

ENVIRONMENT = "GLIBC_TUNABLES", "OPENBLAS_CORETYPE", "XLA_FLAGS"  # what changes speed, told in every report


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


def matmul_ceiling(dtype: str = "float32", n: int = 2048) -> float:
    """Best GFLOP/s of a square product with operands of ``dtype``, summed in float32."""
    x = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a.T, b, precision="highest", preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    return 2 * n**3 / min(seconds_of(lambda: product(x, x))[0] for _ in range(8)) / 1e9


def peak_bytes() -> int:
    """Most memory this process has had in use; ``getrusage`` alone may tell that of the parent that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
