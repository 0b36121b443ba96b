"""The constants of the paper, against its text where that is at hand."""

import json
import os
import re
from pathlib import Path

import pytest

from atlas_jax.experiments import paper

TEXT = Path(os.environ.get("ATLAS_JAX_DATA", "."), "..", "seeds", "paper-full-text.txt")
OURS = {
    "LinReg": "least_squares", "Linear Regression": "least_squares", "Cov": "covariance", "Covariance": "covariance",
    "CrossCorr": "correlation", "Cross Correlation": "correlation", "SemLen": "semantic_lens",
    "Semantic Lens": "semantic_lens", "OrthProc": "procrustes", "Orthogonal Procrustes": "procrustes",
    "Random": "random",
}  # fmt: skip
LAYERS = [3, 12, 19, 25, 30]


@pytest.fixture(scope="module")
def text():
    if not TEXT.is_file():
        pytest.skip("the paper's text is not beside ATLAS_JAX_DATA")
    return TEXT.read_text().replace("−", "-")


def between(text, start, end):
    """The part of the text from the last ``start`` before the first ``end``."""
    before = text[: text.index(end)]
    return before[before.rindex(start) + len(start) :]


def rows(block):
    """The numbers of a table by subject and method, the subject being a line of its own."""
    found, subject = {}, None
    for line in block.splitlines():
        if re.fullmatch(r"Llama-\w+", line):
            subject = line
        elif (row := re.fullmatch(r"([A-Za-z ]+?) ((?:-?\d+\.\d+ ?)+)", line)) and row[1] in OURS:
            found[subject, OURS[row[1]]] = [float(x) for x in row[2].split()]
    return found


def lists(block):
    """Lists of features by the words before them."""
    return {
        name.strip(): tuple(map(int, re.findall(r"\d+", ids)))
        for name, ids in re.findall(r"([a-z][a-z \-]*) \[([^\]]*)\]", block)
    }


def pairs(row):
    return list(zip(row[::2], row[1::2], strict=True))


def test_the_hundred_features(text):
    listed = between(text, "ranking capabilities:", "A.7 STEERING EXPERIMENT")
    assert paper().features == tuple(map(int, re.findall(r"\d+", listed)))
    assert len(set(paper().features)) == 100


def test_table_3_and_7(text):
    table_7, subject = {}, None
    for line in between(text, "LinReg Cov CrossCorr SemLen OrthProc", "Table 7: ").splitlines():
        if line.startswith("Llama"):
            subject = line
        elif line.startswith("L"):
            layer, *cells = line.split()
            for method, pair in zip(
                ("least_squares", "covariance", "correlation", "semantic_lens", "procrustes"),
                pairs([float(x) for x in cells]),
                strict=True,
            ):
                table_7[subject, method, int(layer[1:])] = pair
    ours = {(s, m, k): c for s, by in paper().quality.items() for m, layers in by.items() for k, c in layers.items()}
    assert ours == table_7
    assert len(ours) == 3 * 5 * 5
    for (_, method), row in rows(between(text, "Layer 3 Layer 12", "Table 3: ")).items():
        assert [paper().quality["Llama-Base"][method][layer] for layer in LAYERS] == pairs(row)


def test_table_4(text):
    found = rows(between(text, "Gemma Scope 16K", "Table 4: "))
    assert len(found) == 5
    for (_, method), row in found.items():
        assert [*paper().retrieval["16k"][method], *paper().retrieval["65k"][method]] == row
    chance = re.search(r"MRR = (\S+), MPP = (\d\.\d+)", text)
    assert paper().chance == (0.046, float(chance[1]), float(chance[2]))
    assert "random baseline of 0.046" in " ".join(text.split())


def test_table_5(text):
    start = text.index("L3 L12 L19 L25 L30 Combined")
    found = rows(text[start - 40 : text.index("Table 5: ")])
    ours = {(s, m): list(cells.values()) for s, by in paper().steering.items() for m, cells in by.items()}
    assert ours == {key: pairs(row) for key, row in found.items()}
    assert len(ours) == 12
    assert {tuple(c) for by in paper().steering.values() for c in by.values()} == {(*LAYERS, "combined")}


def test_queries_prompts_and_strengths(text):
    assert paper().concepts == lists(between(text, "Concept Features\n\n", "Table 8: "))
    assert len(paper().concepts) == 10
    table_6 = between(text, "Modification Factor\n", "Table 6: ")
    assert {c: e.features for c, e in paper().examples.items()} == lists(table_6)
    assert [e.strength for e in paper().examples.values()] == [int(x) for x in re.findall(r"\]\s+(\d+)", table_6)]
    seeds = re.findall(r'^(".*"),$', between(text, "initialize model generations:", "To automatically rate"), re.M)
    assert paper().prompts == tuple(map(json.loads, seeds))
    assert len(paper().prompts) == 16
    strengths = re.search(r"λ ∈ \[([^\]]*)\]", text)[1]
    assert paper().strengths == tuple(map(float, strengths.split(",")))
    assert f"{paper().tokens}-token continuations" in text
