"""The script for an accelerator: every part runs at a small size, and one that fails costs itself alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# What each part must have found, by the path of its keys, and whether that number is above or below which.
FOUND = {
    "parity": [("largest_relative_error", "<", 1e-5)],
    "ceilings": [
        ("products float32 relative_error", "<", 2e-6),
        ("products bfloat16 tflops", ">", 0),
        ("products linear bfloat16_result_tflops", ">", 0),
        ("copy_gb_per_s", ">", 0),
    ],
    "compile": [("compile_seconds", ">", 0), ("temporary_bytes", ">", 0)],
    "extraction": [
        ("tokens", ">", 0),
        ("alone tokens_per_s", ">", 0),
        ("with_statistics tokens_per_s", ">", 0),
        ("with_statistics share_of_bf16", ">", 0),
    ],
    "transformers_extraction": [("batches_of_32 tokens_per_s", ">", 0), ("same_budget tokens_per_s", ">", 0)],
    "atlas": [("tokens_per_s", ">", 0)],
    "joint": [
        ("sentences_per_s", ">", 0),
        ("seconds_of_first_pass", ">", 0),
        ("seconds_of_second_pass", ">", 0),
        ("planned_to_measured", ">", 0),
    ],
    "accumulation": [("update rows_per_s", ">", 0), ("least_squares certificate normal_residual", "<", 1e-6)],
    "procrustes": [("condition_1e4 relative_error", "<", 1e-5), ("condition_1e6 relative_error", "<", 1e-5)],
    "torch_svd": [("default extrapolated_seconds", ">", 0)],
    "decoding": [("tokens_per_s", ">", 0)],
    "transformers_decoding": [("one_batch tokens_per_s", ">", 0)],
    "detection": [("detection largest_error", "<", 1e-6), ("retrieval seconds", ">", 0)],
    "attention": [("attention atlas 12x40 xla seconds", ">", 0)],
}


ALL = """
import accelerator, pathlib, sys
for name, part in accelerator.PARTS.items():
    accelerator.worker(name, part.module, "tiny", pathlib.Path(sys.argv[1]) / f"{name}.json")
"""
FAKE = """
import os, time
device = lambda: {"peak_bytes": 1}
def works(size): yield {"size": size}
def raises(size):
    yield {"before": 1}
    raise MemoryError("no room for 7 bytes")
def dies(size): os.abort()
def hangs(size):
    yield {"before": 2}
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def accelerator():
    sys.path.insert(0, str(BENCHMARKS))
    import accelerator

    yield accelerator
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What all parts found in one process."""
    folder = tmp_path_factory.mktemp("parts")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])}
    subprocess.run([sys.executable, "-c", ALL, str(folder)], check=True, env=environment)
    return {file.stem: json.loads(file.read_text()) for file in folder.iterdir()}


def test_every_part_is_checked(accelerator):
    assert list(accelerator.PARTS) == list(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_part(records, name):
    record = records[name]
    assert "failed" not in record, record["failed"]
    assert "peak_bytes" in record
    for path, relation, limit in FOUND[name]:
        value = record
        for key in path.split():
            value = value[key]
        assert value > limit if relation == ">" else value < limit, path


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(accelerator, tmp_path, monkeypatch, capsys):
    (tmp_path / "fake_parts.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parts = {name: accelerator.Part("fake_parts", 1 if name == "hangs" else 60) for name in ("raises", "dies", "hangs")}
    monkeypatch.setattr(accelerator, "PARTS", parts | {"works": accelerator.Part("fake_parts", 60)})
    accelerator.main(["--quick", "--out", str(tmp_path / "report.json")])
    found = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert list(found) == ["raises", "dies", "hangs", "works"]
    assert (found["raises"]["failed"], found["raises"]["before"]) == ("MemoryError: no room for 7 bytes", 1)
    assert found["dies"]["failed"].startswith("ended with code -6")
    assert found["hangs"]["failed"] == "stopped after 1 s"
    assert (found["works"]["size"], "failed" in found["works"]) == ("tiny", False)
    assert found["works"]["aims"]["peak_bytes"] == {"at_most": 75e9, "found": 1, "met": True}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(found)


def test_parts_that_find_no_time_are_not_begun(accelerator, monkeypatch):
    monkeypatch.setattr(accelerator, "TOTAL", 0.0)
    report = accelerator.measure(["parity"], "tiny", None)
    assert report["parts"]["parity"]["failed"] == "not begun: 0 s were over"


def test_aims(accelerator):
    parts = {
        "extraction": {"with_statistics": {"tokens_per_s": 36_000.0}, "peak_bytes": 76e9},
        "transformers_extraction": {"batches_of_32": {"tokens_per_s": 12_000.0}, "same_budget": {"tokens_per_s": 4e4}},
        "joint": {"seconds_of_first_pass": 600.0, "seconds_of_second_pass": 120.0},
        "procrustes": {"condition_1e4": {"seconds": 2.0, "relative_error": 2e-5}},
        "accumulation": {"least_squares": {"seconds": 4.0}},
    }
    accelerator.judge(parts)
    met = {(part, name): aim["met"] for part, found in parts.items() for name, aim in found["aims"].items()}
    assert met["extraction", "tokens_per_s"]
    assert not met["extraction", "peak_bytes"]
    assert met["transformers_extraction", "times_slower_in_batches_of_32"]
    assert not met["transformers_extraction", "times_slower_in_same_budget"]
    assert parts["joint"]["aims"]["minutes_of_the_papers_pass"]["found"] == 12.5
    assert (met["procrustes", "seconds"], met["procrustes", "relative_error"]) == (True, False)
    del parts["accumulation"]["least_squares"]
    accelerator.judge(parts)
    assert parts["joint"]["aims"]["minutes_of_the_papers_pass"]["met"] is None


def test_what_is_estimated_fits(accelerator):
    estimate = json.loads((BENCHMARKS / "results" / "accelerator_estimate.json").read_text())
    assert list(estimate["parts"]) == list(accelerator.PARTS)
    assert estimate["seconds"] < accelerator.TOTAL
    assert estimate["peak_bytes"] < 75e9
    assert all(part["seconds"] < accelerator.PARTS[name].limit for name, part in estimate["parts"].items())
    assert accelerator.estimated("paper") == estimate["parts"]
