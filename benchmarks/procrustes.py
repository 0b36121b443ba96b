"""The polar factor of a d_s x d_c matrix beside the SVDs of scipy, torch and jax.numpy.

Claim: at condition number 1e4 within 1e-5 and at 1e6 within 1e-4 of a float64 SVD, with an accepted certificate, at
least 2 times faster than scipy's float64 SVD and 1.3 times faster than torch's float32 SVD on a CPU.

    python benchmarks/procrustes.py [--quick] [--large] [--out procrustes.json]
    python benchmarks/procrustes.py --paper        # 14336 x 16384 on the default device, without the peers
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.linalg
import torch

from atlas_jax.translators import polar, polar_express

SHAPES, LARGE, QUICK, PAPER = [(1024, 1152), (2048, 2304)], (4096, 4608), (384, 432), (14336, 16384)
KINDS = ("1e4", "1e6", "pooled", "dead")
CUT = 1e-7


def spectrum(kind: str, r: int) -> np.ndarray:
    """Singular values of condition 1e4 or 1e6, or like max-pooled activations: one 300 times the rest, then a slope."""
    if kind == "pooled":
        return np.concatenate([[1.0], np.geomspace(1 / 300, 1e-6, r - 1)])
    return np.geomspace(1, 1 / float(kind), r)


def problem(kind: str, d_s: int, d_c: int, rng: np.random.Generator) -> np.ndarray:
    """A float32 matrix with that spectrum; ``dead`` has 2% dead rows and 20% dead columns at condition 1e4."""
    u, v = (np.linalg.qr(rng.standard_normal((d, d_s)))[0] for d in (d_s, d_c))
    m = (u * spectrum("1e4" if kind == "dead" else kind, d_s)) @ v.T
    if kind == "dead":
        m[:: d_s // (d_s // 50)] = 0
        m[:, ::5] = 0
    return m.astype(np.float32)


def from_svd(u: np.ndarray, s: np.ndarray, vt: np.ndarray) -> np.ndarray:
    keep = s > CUT * s[0]
    return u[:, keep].astype(np.float64) @ vt[keep].astype(np.float64)


def as_matrix(result: tuple) -> np.ndarray:
    if len(result) == 2:
        return np.asarray(result[0], np.float64)
    return from_svd(*(np.asarray(part) for part in result))


def solvers(m: np.ndarray) -> dict[str, Callable]:
    """Every way, from the float32 matrix to its factors or to T; the peers' last product is left out of the time."""
    host, device = torch.from_numpy(m), jnp.asarray(m)
    svd = jax.jit(lambda x: jnp.linalg.svd(x, full_matrices=False))
    return {
        "atlas_jax": lambda: polar(m),
        "scipy_svd_float64": lambda: scipy.linalg.svd(m.astype(np.float64), full_matrices=False, check_finite=False),
        "torch_svd_float32": lambda: torch.linalg.svd(host, full_matrices=False),
        "jax_svd_float32": lambda: svd(device),
        "atlas_jax_polar_express": lambda: polar_express(device),
    }


def seconds_of(function: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def gemm_ceiling(n: int, dtype: type) -> float:
    """FLOP/s of an n x n product in numpy."""
    x = np.random.default_rng(0).standard_normal((n, n)).astype(dtype)
    return 2 * n**3 / min(seconds_of(lambda: np.dot(x, x))[0] for _ in range(4))


def products(d_s: int, d_c: int) -> tuple[float, float]:
    """FLOP of the products of the Gram route in float64 and in float32, ``A A^T`` counted half."""
    unit = 2.0 * d_s * d_s * d_c
    return 1.5 * unit, 1.5 * unit


def table(kind: str, shape: tuple[int, int], repeats: int, ceilings: dict, rng: np.random.Generator) -> dict:
    """Alternating runs; the best of each way. The slow device route, meant for accelerators, runs once, compiled."""
    m = problem(kind, *shape, rng)
    ways = solvers(m)
    if kind == KINDS[0]:
        ways["atlas_jax_polar_express"]()
    ways["jax_svd_float32"]()
    runs = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            if turn == 0 or name != "atlas_jax_polar_express":
                runs[name].append(seconds_of(way))
    reference = as_matrix(runs["scipy_svd_float64"][0][1])
    rows = {}
    for name, found in runs.items():
        error = np.linalg.norm(as_matrix(found[0][1]) - reference) / np.linalg.norm(reference)
        rows[name] = {"seconds": min(seconds for seconds, _ in found), "relative_error": float(error)}
        if name.startswith("atlas_jax"):
            rows[name]["certificate"] = found[0][1][1]
    double, single = products(*shape)
    ours = rows["atlas_jax"]
    ours["product_share"] = (double / ceilings["float64"] + single / ceilings["float32"]) / ours["seconds"]
    ratio = {peer: rows[peer]["seconds"] / ours["seconds"] for peer in rows if peer != "atlas_jax"}
    return {"kind": kind, "shape": shape, "ways": rows, "times_faster_than": ratio}


def paper(shape: tuple[int, int]) -> dict:
    """Random numbers that bfloat16 holds, on the default device: seconds of a compiled run, certificate included."""
    m = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16).astype(jnp.float32)
    first, _ = seconds_of(lambda: polar_express(m))
    seconds, (_, certificate) = seconds_of(lambda: polar_express(m))
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "kind": "random",
        "shape": shape,
        "device": jax.devices()[0].device_kind,
        "seconds_with_compilation": first,
        "seconds": seconds,
        "certificate": certificate,
        "peak_bytes": memory.get("peak_bytes_in_use"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--large", action="store_true", help=f"also {LARGE[0]} x {LARGE[1]}, minutes")
    parser.add_argument("--paper", action="store_true", help=f"only {PAPER[0]} x {PAPER[1]}, for an accelerator")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    shapes = [QUICK] if arguments.quick else SHAPES + [LARGE] * arguments.large
    ceilings = {kind: gemm_ceiling(min(shapes[-1][0], 2048), getattr(np, kind)) for kind in ("float32", "float64")}
    rng = np.random.default_rng(0)
    if arguments.paper:
        tables = [paper(QUICK if arguments.quick else PAPER)]
    else:
        kinds = lambda shape: KINDS if shape[0] < 2048 else KINDS[:1] if shape == LARGE else KINDS[:3]
        repeats = lambda shape: 1 if shape == LARGE else 2
        tables = [table(kind, shape, repeats(shape), ceilings, rng) for shape in shapes for kind in kinds(shape)]
    versions = {module.__name__: module.__version__ for module in (jax, np, scipy, torch)}
    report = {
        "benchmark": "procrustes",
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "backend": jax.default_backend()},
        "versions": versions | {"python": platform.python_version()},
        "gemm_flops": ceilings,
        "tables": tables,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
