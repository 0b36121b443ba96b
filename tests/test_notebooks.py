"""The notebooks run from top to bottom, on fewer sentences than they show, and are saved with what they showed."""

import json
import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def _code(path):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs(path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    plt.switch_backend("agg")
    cells = ["".join(c["source"]) for c in _code(path)]
    cells = [re.sub(r"n_fit=\d+, n_eval=\d+", "n_fit=300, n_eval=150", cell) for cell in cells]
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for cell in cells:
            exec(compile(cell, path.name, "exec"), names)
    assert cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_saved_and_name_no_place(path):
    cells = _code(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert {"image/png", "text/plain"} <= kinds
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for output in outputs)
    texts = ["".join(text) for o in outputs for kind, text in o.get("data", {}).items() if kind != "image/png"]
    texts += ["".join(output.get("text", "")) for output in outputs]
    place = re.compile(r"(?:^|[\s\"'(])(?:/(?:home|root|tmp|work|usr|opt|var|Users)/|[A-Z]:\\)")
    assert not [text for text in texts if place.search(text)]


def test_the_four_are_there():
    assert [p.stem for p in NOTEBOOKS] == [
        "align_and_search", "pieces_in_your_jax_code", "steer_and_measure", "your_own_model",
    ]  # fmt: skip
