"""What is said of accelerators, measured on one H100 or H200 in at most nine minutes, without a network.

Each part runs in a process of its own: its peak memory is its own, and one that fails, runs out of memory or of time
costs itself alone. What it found until then and its message are recorded, and the next one starts. The JSON is written
after every part; each has the seconds and bytes that were estimated for an H200 beside those measured, and whether it
meets its aim.

    python benchmarks/accelerator.py [--parts NAME ...] [--out accelerator.json]
    python benchmarks/accelerator.py --quick       # small sizes, on a CPU as well
    python benchmarks/accelerator.py --estimate    # what every part should take and hold; computes nothing else

The shapes are those of the paper: Llama-3.1-8B with five sites, Gemma-2-2B at layer 20 with 16,384 features, weights
random and in bfloat16, sentences of 30 tokens on average as random ids. ``transformers`` is measured on the same card.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOTAL = 540.0  # seconds
JAX, TORCH = "_accelerator_jax", "_accelerator_torch"


class Part(NamedTuple):
    """A measurement.

    Attributes:
      module: where the function of its name is, a generator of what was found so far.
      limit: seconds after which it is stopped.
    """

    module: str
    limit: float


PARTS = {
    "parity": Part(JAX, 60),
    "ceilings": Part(JAX, 60),
    "compile": Part(JAX, 90),
    "extraction": Part(JAX, 150),
    "transformers_extraction": Part(TORCH, 60),
    "atlas": Part(JAX, 120),
    "joint": Part(JAX, 120),
    "accumulation": Part(JAX, 60),
    "procrustes": Part(JAX, 90),
    "torch_svd": Part(TORCH, 45),
    "decoding": Part(JAX, 120),
    "transformers_decoding": Part(TORCH, 60),
    "detection": Part(JAX, 45),
    "attention": Part(JAX, 45),
}
# One process at a time holds the device, and takes most of it: the default share would not hold the joint pass.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"}


def worker(name: str, module: str, size: str, out: Path) -> None:
    """Run one part, and write after everything it finds."""
    part, record = importlib.import_module(module), {}
    try:
        for found in getattr(part, name)(size):
            record |= found
            out.write_text(json.dumps(record))
    except Exception as e:  # noqa: BLE001 - whatever it was, its message is the record
        record["failed"] = f"{type(e).__name__}: {e}"[:2000]
    out.write_text(json.dumps(record | part.device()))


def run(name: str, size: str, folder: Path, limit: float) -> dict[str, Any]:
    """What one part found in its own process, and its message if it failed."""
    module = PARTS[name].module
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    environment = os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    if module == TORCH:
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, __file__, "--worker", name, module, size, str(out)]
    start = time.monotonic()
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, env=environment, start_new_session=True)
        code = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass  # told below
        finally:  # whatever stops this script, nothing goes on holding the device
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    record = json.loads(out.read_text()) if out.exists() else {}
    if code is None:
        record["failed"] = f"stopped after {limit:.0f} s"
    elif code:
        record["failed"] = f"ended with code {code}: " + log.read_text()[-2000:]
    return record | {"wall_seconds": time.monotonic() - start}


def estimated(size: str) -> dict[str, dict[str, Any]]:
    """What was estimated for each part at full size, where that is kept beside this script."""
    kept = Path(__file__).parent / "results" / "accelerator_estimate.json"
    return json.loads(kept.read_text())["parts"] if size == "paper" and kept.exists() else {}


def judge(parts: dict[str, dict[str, Any]]) -> None:
    """Add to each part what is aimed at, what was found, and whether that meets it; None where a number is missing."""

    def read(part: str, *keys: str) -> float | None:
        found: Any = parts.get(part, {})
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def aim(part: str, name: str, goal: float, found: float | None, at_least: bool = False) -> None:
        if part in parts:
            met = None if found is None else found >= goal if at_least else found <= goal
            aims = parts[part].setdefault("aims", {})
            aims[name] = {"at_least" if at_least else "at_most": goal, "found": found, "met": met}

    for part in parts:
        aim(part, "peak_bytes", 75e9, read(part, "peak_bytes"))
    rate = read("extraction", "with_statistics", "tokens_per_s")
    aim("extraction", "tokens_per_s", 30_000, rate, at_least=True)
    for way, goal in (("batches_of_32", 2.0), ("same_budget", 1.0)):
        peer = read("transformers_extraction", way, "tokens_per_s")
        ratio = rate / peer if rate and peer else None
        aim("transformers_extraction", f"times_slower_in_{way}", goal, ratio, at_least=True)
    aim("joint", "minutes_of_the_papers_pass", 20, minutes(read))
    for at_least, goal in ((True, 0.85), (False, 1.15)):
        words = "at_least" if at_least else "at_most"
        aim("joint", f"planned_to_measured_{words}", goal, read("joint", "planned_to_measured"), at_least=at_least)
    aim("procrustes", "seconds", 3, read("procrustes", "condition_1e4", "seconds"))
    aim("procrustes", "relative_error", 1e-5, read("procrustes", "condition_1e4", "relative_error"))
    aim("parity", "largest_relative_error", 1e-5, read("parity", "largest_relative_error"))
    rate, peer = read("decoding", "tokens_per_s"), read("transformers_decoding", "one_batch", "tokens_per_s")
    ratio = rate / peer if rate and peer else None
    aim("transformers_decoding", "times_slower_in_one_batch", 2.0, ratio, at_least=True)


def minutes(read: Callable[..., float | None]) -> float | None:
    """The paper's pass: 500,000 sentences through both models, the second pass, and both solutions at five sites."""
    first, second = read("joint", "seconds_of_first_pass"), read("joint", "seconds_of_second_pass")
    polar, regression = read("procrustes", "condition_1e4", "seconds"), read("accumulation", "least_squares", "seconds")
    parts = [first, second, polar and 5 * polar, regression and 5 * regression]
    return None if None in parts else sum(parts) / 60


def measure(names: list[str], size: str, out: Path | None) -> dict[str, Any]:
    """Run the parts one after the other, and write the report after each."""
    report: dict[str, Any] = {"size": size, "parts": {}}
    expected, start = estimated(size), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left = TOTAL - (time.monotonic() - start)
            if left < 5:
                record = {"failed": f"not begun: {TOTAL:.0f} s were over"}
            else:
                record = run(name, size, Path(folder), min(PARTS[name].limit, left))
            report |= record.pop("machine", {})
            report["parts"][name] = record | ({"estimate": expected[name]} if name in expected else {})
            report["wall_seconds"] = time.monotonic() - start
            judge(report["parts"])
            if out:
                out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(line(name, report["parts"][name]), flush=True)
    return report


def line(name: str, record: dict[str, Any]) -> str:
    """One line about a part."""
    aims = (f"{k} {v['found']:.4g} ({'met' if v['met'] else 'missed'})" for k, v in _found(record.get("aims", {})))
    return (
        f"{name:24s} {record.get('wall_seconds', 0):6.1f} s  "
        + record.get("failed", "; ".join(aims)).split("\n")[0][:200]
    )


def _found(aims: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, aim) for name, aim in aims.items() if aim["found"] is not None)


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Measure or estimate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which, in this order")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--estimate", action="store_true", help="estimate, at full size, without a device")
    parser.add_argument("--out", type=Path, help="write the JSON here, after every part")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        name, module, size, out = arguments.worker
        return worker(name, module, size, Path(out))
    if arguments.estimate:
        from _accelerator_estimate import estimate
        from _common import write

        report = estimate("tiny" if arguments.quick else "paper")
        print(json.dumps(report, indent=1))
        write(report, arguments.out)
        return report
    return measure(arguments.parts, "tiny" if arguments.quick else "paper", arguments.out)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
