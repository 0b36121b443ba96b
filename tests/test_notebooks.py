"""The tutorials run from top to bottom, on fewer sentences than they show."""

import json
import re
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs(path):
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    cells = [re.sub(r"n_fit=\d+, n_eval=\d+", "n_fit=300, n_eval=150", cell) for cell in cells]
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for cell in cells:
            exec(compile(cell, path.name, "exec"), names)
    assert cells
