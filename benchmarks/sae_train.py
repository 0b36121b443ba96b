"""SAE training beside sae-lens' own trainer on the same batches of real activations: FVU at equal L0, and seconds.

Claim: for BatchTopK and for JumpReLU, an FVU no worse than sae-lens' at the same L0, in less time. sae-lens trains once
for each of several learning rates, and weights of its sparsity loss, and the best counts; ours trains once, with its
defaults. Both read the same rows in the same order. Every SAE is measured on held-out rows after one factor on its
thresholds brought its L0 to the target; what it had before is reported too. Seconds are of the training loops alone,
compilation stated apart.

    python benchmarks/sae_train.py --peer-python PYTHON [--quick] [--out sae_train.json]

PYTHON is the interpreter of an environment that has sae-lens; without it only our side is measured.
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FULL = {"d_sae": 512, "k": 10, "steps": 1000, "batch": 512, "rows": 250_000, "held": 20_000}
FULL |= {"rates": [1e-3, 3e-3, 1e-2], "coefficients": [1.0, 10.0]}
QUICK = FULL | {"d_sae": 256, "steps": 60, "rows": 40_000, "held": 4000, "rates": [3e-3], "coefficients": [10.0]}
WAYS = ("batchtopk", "jumprelu")


def batches(folder: Path, sizes: dict) -> Iterator[np.ndarray]:
    """The rows in shuffled order, again and again."""
    rows, rng = np.load(folder / "rows.npy"), np.random.default_rng(0)
    while True:
        order = rng.permutation(len(rows))
        for i in range(0, len(rows) - sizes["batch"] + 1, sizes["batch"]):
            yield rows[order[i : i + sizes["batch"]]]


def write_rows(folder: Path, sizes: dict) -> None:
    """Activations of the bundled foundation model on installed documentation, fit half and held-out half."""
    from atlas_jax.bundled import ATLAS
    from atlas_jax.corpus import build_corpus, installed_documentation
    from atlas_jax.models import LanguageModel
    from atlas_jax.pipeline import Pass, token_activations
    from atlas_jax.subject import Subject
    from atlas_jax.types import Site

    site, model = Site("resid_post", 3), LanguageModel.from_pretrained(ATLAS / "model")
    n = sizes["rows"] // 15
    corpus = build_corpus(installed_documentation(max_bytes=n * 210), n_fit=n, n_eval=n // 10)
    for name, texts, count in (("rows", corpus.fit, sizes["rows"]), ("held", corpus.eval, sizes["held"])):
        parts = token_activations(Pass.of([Subject.of(model, [site])], texts), site)
        rows = np.concatenate([np.asarray(acts)[np.asarray(mask)] for acts, mask in parts])
        np.save(folder / f"{name}.npy", np.random.default_rng(1).permutation(rows)[:count])


def ours(folder: Path, sizes: dict, way: str) -> dict:
    """One training with the defaults, in a process of its own."""
    import jax

    from atlas_jax.sae import train

    options = {"d_sae": sizes["d_sae"], "k": sizes["k"], "steps": sizes["steps"], "architecture": way}
    times = []
    for _ in range(2):  # the second time everything is compiled
        start = time.perf_counter()
        sae, _ = train(batches(folder, sizes), **options)
        jax.block_until_ready(sae.W_dec)
        times.append(time.perf_counter() - start)
    sae.save_pretrained(folder / f"ours-{way}", format="saelens")
    return {"seconds": times[1], "compilation_seconds": max(0.0, times[0] - times[1])}


def peer(folder: Path, sizes: dict, way: str, rate: float, coefficient: float) -> dict:
    """One training by sae-lens: its recommended normalisation, warm-up and decay; dead features as soon as ours."""
    import sae_lens
    import torch
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    steps = sizes["steps"]
    shape = {"d_in": np.load(folder / "held.npy").shape[1], "d_sae": sizes["d_sae"], "device": "cpu"}
    shape |= {"normalize_activations": "expected_average_only_in"}
    if way == "batchtopk":
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=float(sizes["k"]), **shape))
    else:
        sparsity = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(sizes["k"])}
        sparsity |= {"l0_coefficient": coefficient, "l0_warm_up_steps": steps // 5, "pre_act_loss_coefficient": 3e-6}
        sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sparsity, **shape))
    config = SAETrainerConfig(
        total_training_samples=steps * sizes["batch"], train_batch_size_samples=sizes["batch"], lr=rate, lr_end=0.0,
        lr_warm_up_steps=steps // 50, lr_decay_steps=steps // 2, dead_feature_window=50, device="cpu",
        n_batches_for_norm_estimate=20, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    provider = (torch.from_numpy(x) for x in batches(folder, sizes))
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=provider)
    start = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - start
    sae.save_inference_model(str(folder / f"peer-{way}-{rate}-{coefficient}"))
    return {"seconds": seconds, "version": sae_lens.__version__, "torch": torch.__version__}


def measure(folder: Path, name: str, k: float) -> dict:
    """FVU, L0 and dead share on held-out rows, as trained and with the thresholds scaled to the target L0."""
    import jax.numpy as jnp

    from atlas_jax.sae import SparseAutoencoder, quality

    sae = SparseAutoencoder.from_pretrained(folder / name)
    x = jnp.asarray(np.load(folder / "held.npy"))
    scaled = lambda factor: dataclasses.replace(sae, threshold=sae.threshold * factor)
    low, high = 0.01, 100.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float(quality(scaled(middle), x).l0) > k else (low, middle)
    found, equal = quality(sae, x), quality(scaled(high), x)
    return {
        "fvu": float(found.fvu),
        "l0": float(found.l0),
        "dead": float(found.dead),
        "fvu_at_target": float(equal.fvu),
        "l0_at_target": float(equal.l0),
    }


def run(python: str, folder: Path, quick: bool, *arguments: object) -> dict:
    command = [python, __file__, "--worker", *map(str, arguments), "--folder", str(folder)]
    done = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(peer_python: str | None, quick: bool) -> dict:
    import jax

    sizes = QUICK if quick else FULL
    result = {"sizes": sizes, "cpus": os.cpu_count(), "machine": platform.machine(), "jax": jax.__version__}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, sizes)
        for way in WAYS:
            result[way] = {"ours": run(sys.executable, folder, quick, "ours", way)}
            result[way]["ours"] |= measure(folder, f"ours-{way}", sizes["k"])
            # the weight of its sparsity loss is sae-lens' to choose for JumpReLU; BatchTopK has none
            coefficients = sizes["coefficients"] if way == "jumprelu" else [0.0]
            for rate, weight in itertools.product(sizes["rates"], coefficients) if peer_python else ():
                found = run(peer_python, folder, quick, "peer", way, rate, weight)
                found |= measure(folder, f"peer-{way}-{rate}-{weight}", sizes["k"])
                result[way][f"sae-lens, rate {rate:g}" + f", weight {weight:g}" * bool(weight)] = found
            peers = [v for k, v in result[way].items() if k != "ours"]
            if peers:
                best = min(peers, key=lambda v: v["fvu_at_target"])
                mine = result[way]["ours"]
                result[way]["fvu_ratio_to_best_peer"] = mine["fvu_at_target"] / best["fvu_at_target"]
                result[way]["times_faster"] = min(v["seconds"] for v in peers) / mine["seconds"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side, way, *rate = arguments.worker
        sizes = QUICK if arguments.quick else FULL
        function = {"ours": ours, "peer": peer}[side]
        print(json.dumps(function(arguments.folder, sizes, way, *map(float, rate))))
        return
    text = json.dumps(benchmark(arguments.peer_python, arguments.quick), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
