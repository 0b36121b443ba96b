"""The constants of the paper, against its text where that is at hand."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from atlas_jax.experiments import (
    Quality,
    QualityRow,
    Retrieval,
    RetrievalRow,
    paper,
    quality_beside_paper,
    retrieval_beside_paper,
)
from atlas_jax.experiments._paper import is_papers
from atlas_jax.experiments._quality import evaluated_features
from atlas_jax.metrics import Interval
from atlas_jax.sae import SAEConfig
from atlas_jax.types import Site

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


GEMMA_SCOPE = SAEConfig(
    "jumprelu", 2304, 16384, site=Site("resid_post", 20), model="google/gemma-2-2b", advertised_l0=71.0
)
ONE = Interval(0.5, 0.4, 0.6, 10, 0)
ROWS = [("mlp_act.19", "procrustes"), ("mlp_gate_act.19", "ridge"), ("mlp_act.3", "covariance"), ("z.19", "procrustes")]


@pytest.mark.parametrize(
    ("subject", "figures"),
    [
        ("meta-llama/Llama-3.1-8B", [(0.86, 0.49), None, (0.81, 0.23), None]),
        ("/models/Llama-3.1-8B-Instruct", [(0.86, 0.49), None, (0.81, 0.22), None]),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", [(0.84, 0.47), None, (0.80, 0.21), None]),
    ],
)
def test_table_3_beside_the_papers(subject, figures):
    """Where layer, method and kind of site agree."""
    quality = Quality([QualityRow(Site.parse(s), m, ONE, ONE) for s, m in ROWS], [1], None, 0.1, 9)
    data, table = quality_beside_paper(quality, subject)
    assert [row["paper"] and tuple(row["paper"].values()) for row in data["rows"]] == figures
    assert [row[-2:] for row in table.rows] == [pair or (None, None) for pair in figures]
    assert [c.name for c in table.columns][-2:] == ["paper's AUROC", "paper's AP"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize(("width", "figures"), [(16384, (0.97, 0.13, 0.92, 0.21)), (65536, (0.97, 0.12, 0.94, 0.19))])
def test_table_4_beside_the_papers(width, figures):
    rows = [RetrievalRow(Site.parse(s), m, ONE, ONE) for s, m in ROWS]
    data, table = retrieval_beside_paper(Retrieval(rows, {r.site: 5 for r in rows}, False, 20, 9), width)
    assert [row["paper"] is not None for row in data["rows"]] == [True, False, False, False]
    assert table.rows[0][-4:] == figures
    none, plain = retrieval_beside_paper(Retrieval(rows[1:], {r.site: 5 for r in rows}, False, 20, 9), width)
    assert len(plain.columns) == 4
    assert plain.caption.endswith("the paper has no figures of these layers and methods")
    assert all(row["paper"] is None for row in none["rows"])


def test_the_papers_atlas_is_known_by_its_sae():
    right = SAEConfig(
        "jumprelu", 2304, 16384, site=Site("resid_post", 20), model="google/gemma-2-2b", advertised_l0=71.0
    )
    assert is_papers(right)
    assert is_papers(dataclasses.replace(right, advertised_l0=None, model="gemma-2-2b"))
    others = {"site": Site("resid_post", 19), "d_sae": 65536, "advertised_l0": 139.0, "model": "google/gemma-2-2b-it"}
    assert not any(is_papers(dataclasses.replace(right, **{name: value})) for name, value in others.items())
    assert not is_papers(dataclasses.replace(right, model=None))


@pytest.mark.parametrize(("l0", "count", "papers"), [(71.0, None, True), (71.0, 4, False), (139.0, None, False)])
def test_features_are_the_papers_for_its_atlas(l0, count, papers):
    """Unless a number of them is asked for."""
    features, band = evaluated_features(
        dataclasses.replace(GEMMA_SCOPE, advertised_l0=l0), np.full(150, 0.1), count=count, seed=0
    )
    assert (tuple(features.tolist()) == paper().features) == papers
    assert (band is None) == papers
    assert len(features) == (count or 100)
    caption = Quality([], features.tolist(), band, 0.1, 9).table().caption
    assert ("of the paper (A.6.1)" in caption) == papers
    assert ("that fire in 0.5% to 20% of the sentences" in caption) != papers
