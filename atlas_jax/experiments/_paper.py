"""What the paper measured on and what it reports, as data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.files import read_json

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
    """What the paper measured on and what it reports; methods have our names, layers are numbers.

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
    """Read what the paper measured on and what it reports.

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
