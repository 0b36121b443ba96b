"""The polar factor of a d_s x d_c matrix beside the SVDs of scipy, torch and jax.numpy.

Claim: at condition numbers 1e4 and 1e6 within 2e-6 of a float64 SVD, certified, in less than half its time and two
thirds of that of torch's float32 SVD; float32 SVDs are hundreds to tens of thousands of times farther off. The host's
solver is as fast as scipy's BLAS: where ``OPENBLAS_CORETYPE`` pins that to other kernels, the report tells.

    python benchmarks/procrustes.py [--quick] [--large] [--out procrustes.json]

``accelerator.py`` measures 14336 x 16384 on an accelerator.
"""

import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.linalg
import torch
from _common import arguments_of, machine, matmul_ceiling, seconds_of, write

from atlas_jax.translators import polar, polar_express
from atlas_jax.translators._certificate import Factor, certify

SHAPES, LARGE, QUICK = [(1024, 1152), (2048, 2304)], (4096, 4608), (384, 432)
KINDS = ("1e4", "1e6", "pooled", "dead")
CUT = 1e-7
PAUSE = 0.1  # seconds


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


def rested(way: Callable) -> tuple[float, object]:
    """After a pause: idle threads of the last way's library wait busily for a while, and would slow this one down."""
    time.sleep(PAUSE)
    return seconds_of(way)


def table(kind: str, shape: tuple[int, int], repeats: int, rng: np.random.Generator) -> dict:
    """Alternating runs; median and best of each way. The device route, for accelerators, runs once, not at 4096."""
    m = problem(kind, *shape, rng)
    ways = solvers(m)
    device = ways.pop("atlas_jax_polar_express")
    ways["atlas_jax"]()
    ways["jax_svd_float32"]()
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(repeats):
        for name, way in ways.items():
            results[name] = None
            took, results[name] = rested(way)
            seconds[name].append(took)
    if shape != LARGE:
        if kind == KINDS[0]:
            device()
        took, results["atlas_jax_polar_express"] = rested(device)
        seconds["atlas_jax_polar_express"] = [took]
    reference = as_matrix(results["scipy_svd_float64"])
    rows = {name: row(seconds[name], result, reference) for name, result in results.items()}
    rows["atlas_jax"]["certificate_seconds"] = certificate_seconds(m, results["atlas_jax"][0])
    ratios = {
        which: {peer: rows[peer][which] / rows["atlas_jax"][which] for peer in rows if peer != "atlas_jax"}
        for which in ("seconds", "best_seconds")
    }
    return {"kind": kind, "shape": shape, "ways": rows, "times_faster_than": ratios}


def row(seconds: list[float], result: tuple, reference: np.ndarray) -> dict:
    """What one way took and how far its T is from the float64 SVD's."""
    error = np.linalg.norm(as_matrix(result) - reference) / np.linalg.norm(reference)
    found = {"seconds": statistics.median(seconds), "best_seconds": min(seconds), "relative_error": float(error)}
    return found | ({"certificate": result[1]} if len(result) == 2 else {})


def certificate_seconds(m: np.ndarray, t: np.ndarray) -> float:
    """What the certificate alone takes, which ``seconds`` includes."""
    m, t = (np.ascontiguousarray(x[m.any(axis=1)][:, m.any(axis=0)]) for x in (m.astype(np.float64), t))
    found = Factor(t, float(np.linalg.norm(m, 2)))
    return min(rested(lambda: certify(m, found))[0] for _ in range(3))


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--large", action="store_true", help=f"only {LARGE[0]} x {LARGE[1]}, minutes")
    arguments = parser.parse_args()
    shapes = [QUICK] if arguments.quick else [LARGE] if arguments.large else SHAPES
    rng = np.random.default_rng(0)
    kinds = lambda shape: KINDS if shape[0] < 2048 else KINDS[:1] if shape == LARGE else KINDS[:3]
    repeats = lambda shape: 2 if shape == LARGE else 3
    tables = [table(kind, shape, repeats(shape), rng) for shape in shapes for kind in kinds(shape)]
    ceiling = {"matmul_gflops": {"float32": matmul_ceiling()}}
    report = {"benchmark": "procrustes"} | machine(np, scipy, torch) | ceiling | {"tables": tables}
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


if __name__ == "__main__":
    main()
