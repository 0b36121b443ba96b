"""SAE training beside sae-lens' own trainer on the same batches of real activations: FVU at equal L0, and speed.

Claim: for BatchTopK and for JumpReLU, an FVU no worse than sae-lens' at the same L0, and more activations a second.
sae-lens trains once for each of several learning rates, and weights of its sparsity loss, and the best counts; ours
trains once, with its defaults. Both read the same rows in the same order. Every SAE is measured on held-out rows after
one factor on its thresholds brought its L0 to the target; what it had before is reported too.

    python benchmarks/sae_train.py --peer-python PYTHON --out sae_train.json [--quick]
    python benchmarks/sae_train.py --peer-python PYTHON --out sae_train.json --time batchtopk     # then jumprelu

PYTHON is the interpreter of an environment that has sae-lens; without it only our side is measured. The first command
takes half an hour. The second adds speed to its report: three short trainings of either side in turn, each in a process
of its own, the first steps not counted, sae-lens with the settings that did best. It takes a minute or two and wants a
machine with nothing else to do.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _common import arguments_of, machine, write

FULL = {"d_sae": 1024, "k": 10, "steps": 1024, "batch": 1024, "rows": 500_000, "held": 20_000, "timed_steps": 220}
FULL |= {"rates": {"batchtopk": [1e-3, 3e-3, 1e-2, 3e-2], "jumprelu": [1e-3, 3e-3, 1e-2]}, "weights": [1.0, 10.0]}
QUICK = FULL | {"d_sae": 256, "steps": 60, "rows": 40_000, "held": 4000, "timed_steps": 30}
QUICK |= {"rates": {"batchtopk": [3e-3], "jumprelu": [3e-3]}, "weights": [10.0]}
WAYS = ("batchtopk", "jumprelu")
REPEATS, UNTIMED, FOR_NORM = 3, 20, 20


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
    from atlas_jax.pipeline import SentenceStream, token_activations
    from atlas_jax.subject import Subject
    from atlas_jax.types import Site

    site, model = Site("resid_post", 3), LanguageModel.from_pretrained(ATLAS / "model")
    n = sizes["rows"] // 15
    corpus = build_corpus(installed_documentation(max_bytes=n * 210), n_fit=n, n_eval=n // 10)
    for name, texts, count in (("rows", corpus.fit, sizes["rows"]), ("held", corpus.eval, sizes["held"])):
        parts = token_activations(SentenceStream.from_texts([Subject.from_model(model, [site])], texts), site)
        rows = np.concatenate([np.asarray(acts)[np.asarray(mask)] for acts, mask in parts])
        np.save(folder / f"{name}.npy", np.random.default_rng(1).permutation(rows)[:count])


def ours(folder: Path, sizes: dict, way: str, steps: int) -> dict:
    """One training with the defaults."""
    import jax

    from atlas_jax.sae import train

    started: list[float] = []
    tick = lambda step, _: started.append(time.perf_counter()) if step >= UNTIMED else None
    options = {"d_sae": sizes["d_sae"], "k": sizes["k"], "steps": steps, "architecture": way}
    sae, _ = train(batches(folder, sizes), log_every=UNTIMED, on_log=tick, **options)
    jax.block_until_ready(sae.W_dec)
    seconds = time.perf_counter() - started[0]
    sae.save_pretrained(folder / f"ours-{way}", format="saelens")
    return {"activations_per_second": (steps - UNTIMED - 1) * sizes["batch"] / seconds}


def peer(folder: Path, sizes: dict, way: str, steps: int, rate: float, weight: float) -> dict:
    """One training by sae-lens."""
    import sae_lens
    import torch

    sae, seconds = _peer_train(folder, sizes, way, steps, rate, weight)
    sae.save_inference_model(str(folder / f"peer-{way}-{rate}-{weight}"))
    speed = (steps - UNTIMED - 1) * sizes["batch"] / seconds
    return {"activations_per_second": speed, "sae_lens": sae_lens.__version__, "torch": torch.__version__}


def _peer_train(folder: Path, sizes: dict, way: str, steps: int, rate: float, weight: float) -> tuple:
    """sae-lens with its recommended normalisation, warm-up and decay; features count as dead as soon as ours."""
    import torch
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    shape = {"d_in": np.load(folder / "held.npy").shape[1], "d_sae": sizes["d_sae"], "device": "cpu"}
    shape |= {"normalize_activations": "expected_average_only_in"}
    if way == "batchtopk":
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=float(sizes["k"]), **shape))
    else:
        sparsity = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(sizes["k"])}
        sparsity |= {"l0_coefficient": weight, "l0_warm_up_steps": steps // 5, "pre_act_loss_coefficient": 3e-6}
        sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sparsity, **shape))
    config = SAETrainerConfig(
        total_training_samples=steps * sizes["batch"], train_batch_size_samples=sizes["batch"], lr=rate, lr_end=0.0,
        lr_warm_up_steps=steps // 50, lr_decay_steps=steps // 2, dead_feature_window=50, device="cpu",
        n_batches_for_norm_estimate=FOR_NORM, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    started: list[float] = []

    def rows() -> Iterator:
        for number, x in enumerate(batches(folder, sizes)):
            if number == FOR_NORM + UNTIMED + 1:
                started.append(time.perf_counter())
            yield torch.from_numpy(x)

    SAETrainer(cfg=config, sae=sae, data_provider=rows()).fit()
    return sae, time.perf_counter() - started[0]


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


def compare(peer_python: str | None, quick: bool, folder: Path) -> dict:
    """FVU at the target L0 of every SAE."""
    sizes = QUICK if quick else FULL
    result = {"sizes": sizes}
    write_rows(folder, sizes)
    for way in WAYS:
        run(sys.executable, folder, quick, "ours", way, sizes["steps"])
        result[way] = {"ours": measure(folder, f"ours-{way}", sizes["k"]), "sae-lens": []}
        weights = sizes["weights"] if way == "jumprelu" else [0.0]  # BatchTopK has none
        for rate, weight in itertools.product(sizes["rates"][way], weights) if peer_python else ():
            run(peer_python, folder, quick, "peer", way, sizes["steps"], rate, weight)
            found = {"rate": rate, "weight": weight} | measure(folder, f"peer-{way}-{rate}-{weight}", sizes["k"])
            result[way]["sae-lens"].append(found)
        if result[way]["sae-lens"]:
            ratio = result[way]["ours"]["fvu_at_target"] / best_of(result[way])["fvu_at_target"]
            result[way]["fvu_ratio_to_best_peer"] = ratio
    return result


def best_of(result: dict) -> dict:
    return min(result["sae-lens"], key=lambda found: found["fvu_at_target"])


def timed(peer_python: str, quick: bool, folder: Path, way: str, report: dict) -> dict:
    """The report with activations a second of one way, either side in turn."""
    sizes = QUICK if quick else FULL
    write_rows(folder, sizes | {"rows": 100 * sizes["batch"]})
    best, steps, speeds = best_of(report[way]), sizes["timed_steps"], {"ours": [], "sae-lens": []}
    for _ in range(REPEATS):
        mine = run(sys.executable, folder, quick, "ours", way, steps)
        theirs = run(peer_python, folder, quick, "peer", way, steps, best["rate"], best["weight"])
        for name, found in (("ours", mine), ("sae-lens", theirs)):
            speeds[name].append(found["activations_per_second"])
    ratio = statistics.median(speeds["ours"]) / statistics.median(speeds["sae-lens"])
    report[way] |= {"activations_per_second": speeds, "times_faster": ratio}
    about = machine()
    about["versions"] |= {name: theirs[name] for name in ("sae_lens", "torch")}
    return about | report


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--peer-python")
    parser.add_argument("--time", choices=WAYS, help="add its speed to the report at --out")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, way, steps, *settings = arguments.worker
        sizes = QUICK if arguments.quick else FULL
        function = {"ours": ours, "peer": peer}[task]
        print(json.dumps(function(arguments.folder, sizes, way, int(steps), *map(float, settings))))
        return
    with tempfile.TemporaryDirectory() as folder:
        given = arguments.peer_python, arguments.quick, Path(folder)
        if arguments.time:
            report = timed(*given, arguments.time, json.loads(arguments.out.read_text()))
        else:
            report = compare(*given)
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


if __name__ == "__main__":
    main()
