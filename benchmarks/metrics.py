"""AUROC and average precision beside scikit-learn and a torchmetrics-like torch version; MRR and MPP beside numpy.

Claim: at 100 queries x 500k samples both detection measures are at least 60 times faster than a scikit-learn loop and
25 times faster than torch on a CPU, exact to 1e-12; MRR + MPP at least 6 times faster than a loop of scipy's rankdata,
zscore and softmax.

    python benchmarks/metrics.py [--quick] [--out metrics.json]
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
import sklearn
import torch
from _common import alternate, arguments_of, machine, write
from sklearn.metrics import average_precision_score, roc_auc_score

from atlas_jax import metrics

FULL = {"queries": 100, "samples": 500_000, "targets": 454, "features": 14_336, "peer_queries": 100}
QUICK = {"queries": 10, "samples": 100_000, "targets": 100, "features": 4096, "peer_queries": 10}


def timed(function: Callable, repeats: int) -> tuple[float, object]:
    """Median seconds of ``repeats`` runs and the last result; the caller warms up."""
    seconds, results = alternate({"": function}, repeats)
    return seconds[""], results[""]


def scikit_learn(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([(roc_auc_score(labels, row), average_precision_score(labels, row)) for row in scores])


def torch_curves(scores: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Both measures from one descending sort a row, cumulative counts and the ends of ties, as torchmetrics does."""
    results = []
    for row in scores:
        order = torch.argsort(row, descending=True)
        row, target = row[order], labels[order].to(torch.float64)
        ends = torch.nonzero(torch.diff(row)).squeeze(1)
        ends = torch.cat([ends, torch.tensor([row.numel() - 1])])
        hits = torch.cumsum(target, 0)[ends]
        false = 1 + ends - hits
        precision, recall = hits / (hits + false), hits / hits[-1]
        steps = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
        zero = torch.zeros(1, dtype=torch.float64)
        area = torch.trapezoid(torch.cat([zero, recall]), torch.cat([zero, false / false[-1]]))
        results.append((area.item(), (steps * precision).sum().item()))
    return np.array(results)


def pooled_scores(sizes: dict, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cosine-like float32 scores, a tenth of them exactly 0, and 5% positives."""
    shape = sizes["queries"], sizes["samples"]
    labels = rng.random(sizes["samples"]) < 0.05
    scores = rng.standard_normal(shape, np.float32) + labels.astype(np.float32)
    scores[rng.random(shape, np.float32) < 0.1] = 0
    return scores, labels


def detection_table(sizes: dict, rng: np.random.Generator) -> dict:
    scores, labels = pooled_scores(sizes, rng)
    part = sizes["queries"] / sizes["peer_queries"]
    few = scores[: sizes["peer_queries"]]
    metrics.detection(scores[:2], labels)
    ours, result = timed(lambda: metrics.detection(scores, labels), 5)
    area, _ = timed(lambda: metrics.auroc(scores, labels), 5)
    precision, _ = timed(lambda: metrics.average_precision(scores, labels), 5)
    floor, _ = timed(lambda: [np.sort(row) for row in scores], 1)
    sklearn_s, exact = timed(lambda: scikit_learn(few, labels), 1)
    torch_s, torch_result = timed(lambda: torch_curves(torch.from_numpy(few), torch.from_numpy(labels)), 1)
    found = np.stack([result.auroc, result.average_precision], -1)[: len(few)]
    return {
        "atlas_jax_both_s": ours,
        "atlas_jax_auroc_s": area,
        "atlas_jax_average_precision_s": precision,
        "sort_floor_one_thread_s": floor,
        "scikit_learn_s": sklearn_s * part,
        "torch_s": torch_s * part,
        "ratio_scikit_learn": sklearn_s * part / ours,
        "ratio_torch": torch_s * part / ours,
        "max_error_scikit_learn": float(np.abs(found - exact).max()),
        "max_error_torch": float(np.abs(torch_result - exact).max()),
        **device_times(scores, labels, exact),
    }


def device_times(scores: np.ndarray, labels: np.ndarray, exact: np.ndarray) -> dict:
    """The path of accelerators on the default device, on a tenth of the queries."""
    few, labels = jnp.asarray(scores[: max(1, len(scores) // 10)]), jnp.asarray(labels)
    step = jax.jit(metrics.detection)
    jax.block_until_ready(step(few, labels))
    seconds, result = timed(lambda: step(few, labels), 3)
    found = np.stack([result.auroc, result.average_precision], -1)
    rows = min(len(found), len(exact))
    return {
        "jit_s_per_query": seconds / len(few),
        "jit_max_error_scikit_learn": float(np.abs(found[:rows] - exact[:rows]).max()),
    }


def numpy_retrieval(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Eqs. 10 and 11 query by query in the fewest numpy passes, each row in the cache."""
    rows = []
    for s, i in zip(similarity, target, strict=True):
        z = (s - s.mean()) / s.std()
        rows.append((1 / (1 + np.sum(s > s[i])), scipy.special.softmax(z)[i]))
    return np.array(rows)


def scipy_retrieval(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same from the library functions of that name."""
    rows = []
    for s, i in zip(similarity, target, strict=True):
        rank = scipy.stats.rankdata(-s, method="min")[i]
        rows.append((1 / rank, scipy.special.softmax(scipy.stats.zscore(s))[i]))
    return np.array(rows)


def retrieval_table(sizes: dict, rng: np.random.Generator) -> dict:
    similarity = rng.standard_normal((sizes["targets"], sizes["features"]), np.float32)
    target = rng.integers(0, sizes["features"], sizes["targets"])
    device = jnp.asarray(similarity), jnp.asarray(target)
    step = jax.jit(lambda s, t: (metrics.reciprocal_rank(s, t), metrics.predicted_probability(s, t)))
    jax.block_until_ready(step(*device))
    ours, result = timed(lambda: step(*device), 15)
    lean, exact = timed(lambda: numpy_retrieval(similarity, target), 5)
    library, _ = timed(lambda: scipy_retrieval(similarity, target), 3)
    return {
        "atlas_jax_s": ours,
        "numpy_s": lean,
        "scipy_s": library,
        "ratio_numpy": lean / ours,
        "ratio_scipy": library / ours,
        "max_error_numpy": float(np.abs(np.stack(result, -1) - exact).max()),
    }


def main() -> None:
    """Measure, print and write."""
    arguments = arguments_of(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    rng = np.random.default_rng(0)
    tables = {"detection": detection_table(sizes, rng), "retrieval": retrieval_table(sizes, rng)}
    report = machine(np, sklearn, torch) | {"sizes": sizes} | tables
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


if __name__ == "__main__":
    main()
