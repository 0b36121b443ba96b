"""Settings and figures of the paper, as data."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from atlas_jax.files import read_json
from atlas_jax.sae import SAEConfig
from atlas_jax.table import Column, Table
from atlas_jax.types import Site

POINTS = ("mlp_act", "mlp_gate_act")  # what "MLP features" of the paper's width may be
RETRIEVED_LAYER = 19  # of Table 4
_FILE = Path(__file__).with_name("paper.json")


class Detected(NamedTuple):
    """A cell of Tables 3 and 7."""

    auroc: float
    ap: float


class Retrieved(NamedTuple):
    """A row of Table 4: means and standard deviations over features."""

    mrr: float
    mrr_std: float
    mpp: float
    mpp_std: float


class Controlled(NamedTuple):
    """A cell of Table 5: faithfulness in percent, and the mean change of the atlas activations."""

    faithfulness: float
    change: float


class Example(NamedTuple):
    """A row of Table 6: the features of a concept, of equal weight, and the strength it is steered with."""

    features: tuple[int, ...]
    strength: float


class Chance(NamedTuple):
    """The paper's random baselines: AP of Table 3, MRR and MPP of Table 4."""

    ap: float
    mrr: float
    mpp: float


class Paper(NamedTuple):
    """Settings and figures of the paper; methods have our names, layers are numbers.

    Every feature is one of the Gemma Scope 16k SAE at layer 20 of Gemma 2 2B.

    Attributes:
      features: the hundred of A.6.1, which Tables 3 and 7 average over.
      quality: Tables 3 and 7, by subject, method and layer.
      chance: the baselines of Tables 3 and 4.
      retrieval: Table 4 (Llama-IT, layer 19), by atlas ("16k" or "65k") and method.
      steering: Table 5, by subject, method and layer, or "combined" for all layers at once; "random" is a method.
      concepts: Table 8, the features of the ten steering queries, of equal weight, by concept.
      examples: Table 6, by concept.
      prompts: the sixteen that generations start from (A.7).
      strengths: λ of Eq. 4.
      tokens: length of a generation.

    Example:
      >>> from atlas_jax.experiments import paper
      >>> paper().retrieval["16k"]["procrustes"].mpp, len(paper().prompts), paper().tokens
      (0.92, 16, 100)
    """

    features: tuple[int, ...]
    quality: Mapping[str, Mapping[str, Mapping[int, Detected]]]
    chance: Chance
    retrieval: Mapping[str, Mapping[str, Retrieved]]
    steering: Mapping[str, Mapping[str, Mapping[int | str, Controlled]]]
    concepts: Mapping[str, tuple[int, ...]]
    examples: Mapping[str, Example]
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    tokens: int


def paper() -> Paper:
    """Read the settings and figures of the paper.

    Example:
      >>> from atlas_jax.experiments import paper
      >>> paper().concepts["dogs and cats"], paper().examples["london"]
      ((6772, 1089, 12082, 13747), Example(features=(5218, 12614), strength=35))
      >>> paper().quality["Llama-Base"]["procrustes"][19].ap
      0.49
    """
    raw = read_json(_FILE)
    return Paper(
        features=tuple(raw["features"]),
        quality={subject: _by_layer(rows, Detected) for subject, rows in raw["quality"].items()},
        chance=Chance(**raw["chance"]),
        retrieval={atlas: {m: Retrieved(*row) for m, row in rows.items()} for atlas, rows in raw["retrieval"].items()},
        steering={subject: _by_layer(rows, Controlled) for subject, rows in raw["steering"].items()},
        concepts={concept: tuple(features) for concept, features in raw["concepts"].items()},
        examples={concept: Example(tuple(e["features"]), e["strength"]) for concept, e in raw["examples"].items()},
        prompts=tuple(raw["prompts"]),
        strengths=tuple(raw["strengths"]),
        tokens=raw["tokens"],
    )


def _by_layer(rows: Mapping[str, Mapping[str, Any]], cell: type) -> dict[str, dict[int | str, Any]]:
    """The cells of a table by method and layer, whose numbers JSON keeps as text."""
    key = lambda layer: int(layer) if layer.isdigit() else layer
    return {method: {key(layer): cell(*pair) for layer, pair in cells.items()} for method, cells in rows.items()}


def is_papers(sae: SAEConfig) -> bool:
    """Tell whether an atlas's SAE is the one whose features the paper names: Gemma Scope 16k at layer 20, L0 71.

    Example:
      >>> from atlas_jax.experiments._paper import is_papers
      >>> from atlas_jax.sae import SAEConfig
      >>> from atlas_jax.types import Site
      >>> at = {"site": Site("resid_post", 20), "model": "google/gemma-2-2b"}
      >>> is_papers(SAEConfig("jumprelu", 2304, 16384, advertised_l0=71.0, **at))
      True
      >>> is_papers(SAEConfig("jumprelu", 2304, 16384, advertised_l0=139.0, **at))
      False
    """
    model = (sae.model or "").rpartition("/")[2]
    place = (sae.d_in, sae.d_sae, sae.site) == (2304, 16384, Site("resid_post", 20))
    return place and model == "gemma-2-2b" and sae.advertised_l0 in (None, 71)


def papers_subject(name: str) -> str:
    """Choose the subject of the paper that a model's name or path is closest to.

    Example:
      >>> from atlas_jax.experiments._paper import papers_subject
      >>> [papers_subject(n) for n in ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B-Instruct", "R1-Distill-Llama-8B")]
      ['Llama-Base', 'Llama-IT', 'Llama-R1']
    """
    if re.search("r1.?distill", name, re.IGNORECASE):
        return "Llama-R1"
    return "Llama-IT" if re.search("instruct", name, re.IGNORECASE) else "Llama-Base"


@runtime_checkable
class Measurement(Protocol):
    """A result with a row a site and method, as :class:`Quality` and :class:`Retrieval` are."""

    rows: Any

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""

    def table(self) -> Table:
        """Return the table."""


def quality_beside_paper(quality: Measurement, subject: str) -> tuple[dict[str, Any], Table]:
    """Put the paper's figures beside Table 3, where it has some for these layers and methods.

    Args:
      quality: what was measured.
      subject: name or path of the model; tells which of the paper's subjects it is closest to.

    Returns:
      Plain values whose rows have ``paper``, AUROC and AP or None, and the table.

    Example:
      >>> from atlas_jax.experiments import Quality, QualityRow, quality_beside_paper
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> from atlas_jax.types import Site
      >>> row = QualityRow(Site("mlp_act", 19), "procrustes", bootstrap_mean([0.8]), bootstrap_mean([0.4]))
      >>> data, table = quality_beside_paper(Quality([row], [1], None, 0.1, 9), "Llama-3.1-8B")
      >>> data["rows"][0]["paper"], list(table.texts())[0][-2:]
      ({'auroc': 0.86, 'ap': 0.49}, ['0.86', '0.49'])
    """
    of = papers_subject(subject)
    figures = paper().quality[of]
    cells = [figures.get(r.method, {}).get(r.site.layer) if r.site.point in POINTS else None for r in quality.rows]
    return _beside(quality, cells, ("paper's AUROC", "paper's AP"), of)


def retrieval_beside_paper(retrieval: Measurement, atlas_width: int) -> tuple[dict[str, Any], Table]:
    """Put the paper's figures beside Table 4: those of Llama-IT, layer 19, by method.

    Args:
      retrieval: what was measured.
      atlas_width: features of the atlas; 65536 for the paper's second one.

    Returns:
      Plain values whose rows have ``paper``, means and deviations or None, and the table.

    Example:
      >>> from atlas_jax.experiments import Retrieval, RetrievalRow, retrieval_beside_paper
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> from atlas_jax.types import Site
      >>> row = RetrievalRow(Site("mlp_act", 19), "procrustes", bootstrap_mean([0.9]), bootstrap_mean([0.8]))
      >>> retrieval_beside_paper(Retrieval([row], {row.site: 5}, False, 20, 9), 16384)[0]["rows"][0]["paper"]["mrr"]
      0.97
    """
    figures = paper().retrieval["65k" if atlas_width == 65536 else "16k"]
    there = lambda site: site.point in POINTS and site.layer == RETRIEVED_LAYER
    cells = [figures.get(r.method) if there(r.site) else None for r in retrieval.rows]
    names = ("paper's MRR", "paper's std", "paper's MPP", "paper's std")
    return _beside(retrieval, cells, names, f"Llama-IT, layer {RETRIEVED_LAYER}")


def _beside(
    result: Measurement, cells: Sequence[Any], names: Sequence[str], subject: str
) -> tuple[dict[str, Any], Table]:
    """A result with figures of the paper, each a record or None, as further values and columns."""
    data, table = result.to_dict(), result.table()
    rows = [row | {"paper": cell and cell._asdict()} for row, cell in zip(data["rows"], cells, strict=True)]
    if not any(cells):
        caption = f"{table.caption}; the paper has no figures of these layers and methods"
        return data | {"rows": rows}, dataclasses.replace(table, caption=caption)
    blank = (None,) * len(names)
    table = dataclasses.replace(
        table,
        columns=(*table.columns, *(Column(name, ".2f") for name in names)),
        rows=[(*row, *(cell or blank)) for row, cell in zip(table.rows, cells, strict=True)],
        caption=f"{table.caption}; the paper's figures are of {subject}",
    )
    return data | {"rows": rows}, table
