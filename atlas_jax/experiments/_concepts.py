"""Sequences that express the concepts of subject features: read from a file, or written by a chat model (A.6)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from atlas_jax.errors import AtlasError
from atlas_jax.labels import AnswerBook, ChatEndpoint, read_form
from atlas_jax.progress import Progress
from atlas_jax.types import Site

_NEGATIVE = ("-1", "negative", "neg", "min")  # descriptions of what makes a feature most negative
_WRITE = """A feature of a language model is described as: {description}

Write {count} short texts that activate it strongly. Each is one or two sentences that show what is described, and \
they differ from each other in subject, style and length as far as the description allows. Answer as JSON and with \
nothing else: {{"sequences": ["...", ...]}}"""


class ConceptSet(NamedTuple):
    """The concept of a subject feature, the ground truth of Table 4.

    Attributes:
      site: of the subject.
      feature: of that site.
      sequences: texts that should activate it; none as long as there is only a description.
      description: in words, "" where unknown.
      fade: FADE scores (Puri et al., 2025) that the file gives: of clarity, responsiveness and purity.

    Example:
      >>> from atlas_jax.experiments import ConceptSet
      >>> from atlas_jax.types import Site
      >>> ConceptSet(Site("mlp_act", 1), 3, ("A dog barks.",)).description
      ''
    """

    site: Site
    feature: int
    sequences: tuple[str, ...]
    description: str = ""
    fade: Mapping[str, float] = {}


class Filtered(NamedTuple):
    """Counts of the subject features of a site at the filters of section 4.3.2.

    Attributes:
      given: how many there were.
      without: for which no sequence could be written.
      unreliable: whose concept is not reliable.
      elsewhere: of the reliable ones, those that their own sequences do not activate most.
      kept: that were searched for.
      reliable: the threshold of reliability.

    Example:
      >>> from atlas_jax.experiments import Filtered
      >>> from atlas_jax.types import Site
      >>> Filtered(9, without=0, unreliable=2, elsewhere=1, kept=6, reliable=0.75).sentence(Site("z", 1))[:28]
      'of 9 features of z.1 2 have '
    """

    given: int
    without: int
    unreliable: int
    elsewhere: int
    kept: int
    reliable: float

    def sentence(self, site: Site) -> str:
        """Say it in a sentence."""
        without = f"{self.without} have no sequences, " if self.without else ""
        return (
            f"of {self.given} features of {site} {without}{self.unreliable} have no reliable concept (FADE of "
            f"{self.reliable:g} or less), {self.elsewhere} are not what their sequences activate most, and {self.kept} "
            "are left"
        )


class _Line(pydantic.BaseModel):
    """A line of a concept file."""

    site: str | None = None
    layer: int | None = None
    feature: int = pydantic.Field(validation_alias=pydantic.AliasChoices("feature", "neuron", "index"))
    sequences: list[str] | None = None
    description: str | None = None
    polarity: str | int | None = None
    clarity: float | None = pydantic.Field(None, ge=-1, le=1)
    responsiveness: float | None = pydantic.Field(None, ge=-1, le=1)
    purity: float | None = pydantic.Field(None, ge=-1, le=1)


class Sequences(pydantic.BaseModel, extra="forbid", strict=True):
    """An answer to :func:`sequences_prompt`."""

    sequences: list[str]


def read_concepts(path: str | Path, widths: Mapping[Site, int]) -> list[ConceptSet]:
    """Read a concept file: JSON lines, one a subject feature.

    A line has ``feature`` (or ``neuron``), ``site`` (or ``layer``, where one site of the run is of that layer; neither
    where there is one site), and ``sequences``, a list of texts, or a ``description``. Transluce's ``neuron_id``
    (``model_layer_neuron_expert``) is read too. FADE scores ``clarity``, ``responsiveness`` and ``purity`` may stand
    beside. Lines of another layer, and of what makes a feature most negative (``polarity``), are left out.

    Args:
      path: the file.
      widths: features of every site of the subject.

    Raises:
      AtlasError: for a file without a concept, a damaged line, a site or feature that the run does not have, a feature
        given twice, or a set of sequences that is empty or has a blank one; naming the line.

    Example:
      >>> import pathlib, tempfile
      >>> from atlas_jax.experiments import read_concepts
      >>> from atlas_jax.types import Site
      >>> file = pathlib.Path(tempfile.mkdtemp(), "concepts.jsonl")
      >>> _ = file.write_text('{"site": "mlp_act.1", "feature": 3, "sequences": ["A dog barks."]}')
      >>> read_concepts(file, {Site("mlp_act", 1): 384})[0].sequences
      ('A dog barks.',)
    """
    path, concepts, first = Path(path), [], {}
    for number, raw in _lines(path):
        where = f"line {number} of {path}"
        concept = _concept(raw, widths, where)
        if concept is None:
            continue
        key = concept.site, concept.feature
        if key in first:
            again = f"{where} is of feature {key[1]} of {key[0]}, as line {first[key]} is"
            raise AtlasError(f"{again}; write all texts of a feature into one line")
        first[key] = number
        concepts.append(concept)
    if not concepts:
        sites = ", ".join(map(str, widths))
        raise AtlasError(f"{path} has no concept of a feature of {sites}; write a JSON object a line, one a feature")
    return concepts


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The JSON of every line that is not blank, with its number."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AtlasError(f"{path} cannot be read as a concept file, JSON lines in UTF-8 ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise AtlasError(f"line {number} of {path} is damaged, it is no JSON ({error})") from None


def _concept(raw: Any, widths: Mapping[Site, int], where: str) -> ConceptSet | None:
    """The concept of a line, None where it is of something that is not looked for."""
    try:
        line = _Line.model_validate(_with_neuron(raw))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise AtlasError(f"{where} is no concept: {field}: {first['msg']}") from None
    site = _site(line, widths, where)
    if site is None or str(line.polarity).lower() in _NEGATIVE:
        return None
    if not 0 <= line.feature < widths[site]:
        raise AtlasError(f"{where} is of feature {line.feature}, and {site} has 0 to {widths[site] - 1}")
    description = " ".join((line.description or "").split())
    if line.sequences is None and not description:
        raise AtlasError(f"{where} has neither sequences nor a description; give texts that activate the feature")
    if line.sequences is not None and not line.sequences:
        raise AtlasError(f"{where} has an empty set of sequences; give texts that activate the feature")
    if any(not text.strip() for text in line.sequences or ()):
        raise AtlasError(f"{where} has a blank sequence; leave it out")
    scores = {name: getattr(line, name) for name in ("clarity", "responsiveness", "purity")}
    fade = {name: value for name, value in scores.items() if value is not None}
    return ConceptSet(site, line.feature, tuple(line.sequences or ()), description, fade)


def _with_neuron(raw: Any) -> Any:
    """A line with the layer and the neuron of Transluce's id."""
    if isinstance(raw, dict) and str(raw.get("neuron_id")).count("_") >= 3:
        _, layer, neuron, _ = str(raw["neuron_id"]).rsplit("_", 3)
        return {"layer": layer, "neuron": neuron} | raw
    return raw


def _site(line: _Line, widths: Mapping[Site, int], where: str) -> Site | None:
    """The site a line is of, None where it is of a layer that was not aligned."""
    known = ", ".join(map(str, widths))
    if line.site is not None:
        try:
            site = Site.parse(line.site)
        except AtlasError as error:
            raise AtlasError(f"{where} is no concept: {error}") from None
        if site not in widths:
            raise AtlasError(f"{where} is of {site}, and this run has {known}")
        return site
    fits = [site for site in widths if line.layer in (None, site.layer)]
    if len(fits) > 1:
        said = "does not say which site it is of" if line.layer is None else f"is of layer {line.layer}"
        raise AtlasError(f"{where} {said}, and this run has {', '.join(map(str, fits))}; write site, such as {fits[0]}")
    return fits[0] if fits else None


def sequences_prompt(description: str, count: int) -> str:
    """Return the request to write texts that a description fits.

    Example:
      >>> from atlas_jax.experiments._concepts import sequences_prompt
      >>> "Write 20 short texts" in sequences_prompt("words for time", 20)
      True
    """
    return _WRITE.format(description=description, count=count)


def sequences_in(answer: str) -> tuple[str, ...]:
    """Return the texts in an answer; none where it cannot be read.

    Example:
      >>> from atlas_jax.experiments._concepts import sequences_in
      >>> sequences_in('{"sequences": ["A clock.", " "]}'), sequences_in("I cannot do that")
      (('A clock.',), ())
    """
    form = read_form(Sequences, answer)
    return () if form is None else tuple(text for text in form.sequences if text.strip())


def unwritten(concepts: Sequence[ConceptSet], endpoint: ChatEndpoint, count: int) -> list[tuple[ChatEndpoint, str]]:
    """List the questions that :func:`write_sequences` asks.

    Example:
      >>> from atlas_jax.experiments import ConceptSet, unwritten
      >>> from atlas_jax.labels import ChatEndpoint
      >>> from atlas_jax.types import Site
      >>> concept = ConceptSet(Site("mlp_act", 1), 3, (), "words for time")
      >>> len(unwritten([concept], ChatEndpoint("m", "http://localhost"), 20))
      1
    """
    asked = endpoint.answering(Sequences)
    return [(asked, sequences_prompt(c.description, count)) for c in concepts if not c.sequences]


def write_sequences(
    concepts: Sequence[ConceptSet],
    endpoint: ChatEndpoint,
    book: AnswerBook,
    *,
    count: int = 20,
    workers: int = 8,
    progress: Progress | None = None,
) -> list[ConceptSet]:
    """Have a chat model write the sequences of concepts that have only a description.

    Answers are kept in the book as they come, and what is in it is not asked again. Of an answer with more texts the
    first ``count`` count; one that cannot be read leaves its concept without any, and is counted in ``book.unread``.

    Args:
      concepts: with sequences or descriptions.
      endpoint: the chat model.
      book: where answers are kept.
      count: texts a concept.
      workers: questions asked at the same time.
      progress: called after every answer.

    Raises:
      AtlasError: if the endpoint refuses or stays silent; the answers before that are in the book.

    Example:
      >>> from atlas_jax.experiments import read_concepts, write_sequences
      >>> from atlas_jax.labels import AnswerBook, ChatEndpoint
      >>> concepts = read_concepts("described.jsonl", run.subject.widths)          # doctest: +SKIP
      >>> endpoint = ChatEndpoint.connect("gpt-4o-mini")                           # doctest: +SKIP
      >>> write_sequences(concepts, endpoint, AnswerBook("answers.jsonl"))         # doctest: +SKIP
    """
    questions = unwritten(concepts, endpoint, count)
    answers = iter(book.ask_all(questions, workers=workers, stage="sequences", progress=progress))
    written = [c if c.sequences else c._replace(sequences=sequences_in(next(answers))[:count]) for c in concepts]
    book.unread += sum(not c.sequences for c in written)
    return written


def reliability(clarity: float, fade: Mapping[str, float]) -> float:
    """Compute the harmonic mean of FADE's activation-based scores; 0 where one of them is not above 0.

    Args:
      clarity: as measured; what ``fade`` says of it comes first.
      fade: clarity, responsiveness and purity, as far as they are known.

    Example:
      >>> from atlas_jax.experiments._concepts import reliability
      >>> round(reliability(0.9, {"responsiveness": 0.6, "purity": 0.9}), 3), reliability(-0.2, {})
      (0.771, 0.0)
    """
    scores = np.array(list(({"clarity": clarity} | dict(fade)).values()))
    return float(len(scores) / np.sum(1 / scores)) if (scores > 0).all() else 0.0
