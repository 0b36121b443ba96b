"""What an evaluation of steering compares: its settings, its concepts, and the cells of texts that follow."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._steering import Unit, check_unit
from atlas_jax.files import directory_hash, local_or_hub

UNSTEERED, PROMPTED, NATIVE, LABELLED = "unsteered", "prompt", "native", "labelled diffmean"
BRIDGED = "bridged diffmean"
CONTROLS = ("random", "other concept", "diffmean", PROMPTED, NATIVE)


class SteeringConcept(NamedTuple):
    """A concept to steer along.

    Attributes:
      name: in words, as a judge is asked for it.
      features: atlas features.
      weights: one a feature.

    Example:
      >>> from atlas_jax.experiments import SteeringConcept
      >>> SteeringConcept("dogs and cats", (6772, 1089), (1.0, 1.0)).features
      (6772, 1089)
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]


class LabelledText(NamedTuple):
    """A text that expresses a concept, or does not.

    Attributes:
      concept: its name.
      text: the text.
      present: whether the text expresses it.

    Example:
      >>> from atlas_jax.experiments import LabelledText
      >>> LabelledText("dogs", "A puppy barks.", present=True).present
      True
    """

    concept: str
    text: str
    present: bool


@dataclasses.dataclass(frozen=True)
class SteeringSettings:
    """The settings of an evaluation of steering.

    Attributes:
      concepts: what is steered along.
      prompts: texts that are continued.
      strengths: steering strengths in ``unit``, without 0, which is decoded once for all concepts.
      unit: what a strength of 1 is, see :func:`atlas_jax.experiments.steer`; "length" is ``s_c`` of unit length, so
        strengths are in units of the activation.
      sites: groups of sites that are steered at once.
      methods: translators.
      controls: of :data:`CONTROLS`.
      random: how many random directions.
      max_new_tokens: tokens that continue a prompt.
      temperature: of sampling, 0 is greedy. A prompt has the same random numbers in every cell.
      seed: of sampling and of the random directions.
      chat: prompts are messages in the model's chat template.
      labelled: texts with and without each concept, where a difference of their means is to be compared too.
      bridge: directory of a bridge from another model to the subject, over which a difference of means made in that
        model is carried, where that is to be compared too.

    Example:
      >>> from atlas_jax.experiments import SteeringConcept, SteeringSettings
      >>> dogs = SteeringConcept("dogs", (7,), (1.0,))
      >>> SteeringSettings((dogs,), ("I saw",), (0.5,), (("mlp_act.1",),), ("procrustes",)).unit
      'norm'
    """

    concepts: tuple[SteeringConcept, ...]
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    sites: tuple[tuple[str, ...], ...]
    methods: tuple[str, ...]
    unit: Unit = "norm"
    controls: tuple[str, ...] = CONTROLS
    random: int = 3
    max_new_tokens: int = 100
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False
    labelled: tuple[LabelledText, ...] = ()
    bridge: str | None = None

    def __post_init__(self) -> None:
        for name in ("concepts", "prompts", "strengths", "sites", "methods"):
            if not getattr(self, name):
                raise AtlasError(f"an evaluation of steering needs {name}; give at least one")
        finite_numbers(self.strengths, "the strength")
        check_unit(self.unit)
        strengths = tuple(s for s in dict.fromkeys(map(float, self.strengths)) if s)
        if not strengths:
            raise AtlasError("an evaluation of steering needs a strength other than 0, which is decoded anyway")
        object.__setattr__(self, "strengths", strengths)
        if unknown := [c for c in self.controls if c not in CONTROLS]:
            raise AtlasError(f"unknown control '{unknown[0]}'; known are {', '.join(CONTROLS)}")
        if len(names := {c.name for c in self.concepts}) < len(self.concepts):
            raise AtlasError(f"two concepts have one name, of {', '.join(sorted(names))}; give each its own")
        kinds = {(t.concept, t.present) for t in self.labelled}
        if self.labelled and (lacking := [n for n in names for p in (True, False) if (n, p) not in kinds]):
            raise AtlasError(f"concept '{lacking[0]}' needs labelled texts of both kinds, with it and without it")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; of labelled texts and the bridge a hash."""
        plain = dataclasses.asdict(self) | {"concepts": [c._asdict() for c in self.concepts]}
        if texts := plain.pop("labelled"):
            plain["labelled"] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        if bridge := plain.pop("bridge"):
            plain["bridge"] = directory_hash(local_or_hub(bridge))
        return plain


class Cell(NamedTuple):
    """Texts that differ only in their prompt.

    Attributes:
      concept: what is steered along, None without steering.
      method: a translator, a control, or :data:`UNSTEERED`.
      sites: steered at once, joined by "+"; empty where nothing is steered.
      strength: in the unit of the settings.

    Example:
      >>> from atlas_jax.experiments import Cell
      >>> Cell("dogs", "procrustes", "resid_post.2", 0.5).strength
      0.5
    """

    concept: str | None
    method: str
    sites: str
    strength: float


def concept_queries(atlas: ConceptAtlas, concepts: Sequence[SteeringConcept]) -> dict[str, Float[np.ndarray, " d_c"]]:
    """Return the atlas query of every concept ``[d_c]``, by name.

    Raises:
      AtlasError: for a feature that the atlas does not have, naming the concept.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.experiments import SteeringConcept, concept_queries
      >>> concepts = [SteeringConcept("plots", (3, 5), (1.0, 0.5))]
      >>> concept_queries(ConceptAtlas.from_pretrained(ATLAS), concepts)["plots"][[3, 4, 5]].tolist()
      [1.0, 0.0, 0.5]
    """
    queries = {}
    for concept in concepts:
        try:
            queries[concept.name] = np.asarray(atlas.query(concept.features, concept.weights))
        except AtlasError as error:
            raise AtlasError(f"concept '{concept.name}': {error}") from None
    return queries


def read_labelled_texts(path: Path, concepts: Sequence[SteeringConcept]) -> tuple[LabelledText, ...]:
    """Read texts of some concepts from JSON lines with ``concept``, ``text`` and ``label`` (1 or 0, true or false).

    Raises:
      AtlasError: for a file that cannot be read, or a line that is none, with its number.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.experiments import SteeringConcept, read_labelled_texts
      >>> path = Path(tempfile.mkdtemp()) / "labelled.jsonl"
      >>> _ = path.write_text('{"concept": "dogs", "text": "A puppy barks.", "label": 1}')
      >>> read_labelled_texts(path, [SteeringConcept("dogs", (3,), (1.0,))])
      (LabelledText(concept='dogs', text='A puppy barks.', present=True),)
    """
    names = {c.name for c in concepts}
    rows = [_labelled_text(line, path, n) for n, line in _lines(path, "concept, text and label")]
    own = tuple(row for row in rows if row.concept in names)
    if not own:
        raise AtlasError(f"'{path}' has no labelled text of the concepts {', '.join(sorted(names))}")
    return own


def _labelled_text(line: str, path: Path, number: int) -> LabelledText:
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
        if not (isinstance(row["concept"], str) and isinstance(text, str) and text.strip() and label in (0, 1)):
            raise ValueError
        return LabelledText(row["concept"], text, bool(label))
    except (ValueError, TypeError, KeyError):
        wanted = 'write {"concept": name, "text": text, "label": 1 or 0}'
        raise AtlasError(f"line {number} of '{path}' is no labelled text; {wanted}") from None


def read_steering_concepts(path: Path) -> tuple[SteeringConcept, ...]:
    """Read concepts from JSON lines with ``concept``, ``features`` and perhaps ``weights``.

    Raises:
      AtlasError: for a file that cannot be read, or a line that is none, with its number.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.experiments import read_steering_concepts
      >>> path = Path(tempfile.mkdtemp()) / "concepts.jsonl"
      >>> _ = path.write_text('{"concept": "dogs", "features": [3, 5]}')
      >>> read_steering_concepts(path)
      (SteeringConcept(name='dogs', features=(3, 5), weights=(1.0, 1.0)),)
    """
    concepts = [_concept(line, path, n) for n, line in _lines(path, "concept and features")]
    if not concepts:
        raise AtlasError(f'\'{path}\' has no concept; write one a line, such as {{"concept": ..., "features": [...]}}')
    return tuple(concepts)


def _lines(path: Path, fields: str) -> list[tuple[int, str]]:
    """Lines of a file that are not blank, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AtlasError(f"'{path}' cannot be read ({error}); give JSON lines with {fields}") from error
    return [(n, line) for n, line in enumerate(lines, 1) if line.strip()]


def _concept(line: str, path: Path, number: int) -> SteeringConcept:
    wanted = 'write {"concept": text, "features": [ids], "weights": [numbers]}, weights only where they are not 1'
    try:
        row = json.loads(line)
        name, features = row["concept"], row["features"]
        weights = row.get("weights") or [1.0] * len(features)
        whole = all(isinstance(f, int) and not isinstance(f, bool) for f in features)
        if not (isinstance(name, str) and name.strip() and features and whole and len(weights) == len(features)):
            raise ValueError
        return SteeringConcept(name, tuple(features), tuple(map(float, weights)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AtlasError(f"line {number} of '{path}' is no concept; {wanted}") from None


def plan(settings: SteeringSettings) -> list[Cell]:
    """List every cell that is decoded, in order; the first is without steering.

    Example:
      >>> from atlas_jax.experiments import SteeringConcept, SteeringSettings, plan
      >>> dogs, sites = SteeringConcept("dogs", (7,), (1.0,)), (("mlp_act.1",), ("mlp_act.2",))
      >>> len(plan(SteeringSettings((dogs,), ("I saw",), (0.5, 1.0), sites, ("procrustes",), controls=())))
      5
    """
    groups = ["+".join(group) for group in settings.sites]
    steered = [*settings.methods]
    steered += [f"random {i}" for i in range(settings.random)] if "random" in settings.controls else []
    steered += [c for c in ("other concept", "diffmean") if c in settings.controls]
    steered += [LABELLED] if settings.labelled else []
    steered += [BRIDGED] if settings.bridge else []
    cells = [Cell(None, UNSTEERED, "", 0.0)]
    for concept in settings.concepts:
        cells += [Cell(concept.name, m, g, s) for m in steered for g in groups for s in settings.strengths]
    if PROMPTED in settings.controls:
        cells += [Cell(concept.name, PROMPTED, "", 0.0) for concept in settings.concepts]
    if NATIVE in settings.controls:
        cells += [Cell(None, NATIVE, "", 0.0)]
        cells += [Cell(c.name, NATIVE, "atlas", s) for c in settings.concepts for s in settings.strengths]
    return cells
