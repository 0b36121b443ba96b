"""The sections of a page: figures, tables and sentences of what a run holds."""

import contextlib
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from atlas_jax.errors import AtlasError, DamagedError
from atlas_jax.experiments import (
    Quality,
    RunFacts,
    coverage,
    quality_beside_paper,
    retrieval_beside_paper,
    run_facts,
    stored_ap,
)
from atlas_jax.experiments._quality import certificate_table, one_hot
from atlas_jax.experiments._steering import MEANING
from atlas_jax.experiments._steering_plan import NATIVE, UNSTEERED
from atlas_jax.experiments._steering_texts import Row, read_rows
from atlas_jax.files import RUN, read_json
from atlas_jax.models import is_small
from atlas_jax.pipeline import Alignment, encode_batch
from atlas_jax.pipeline._run import encode_peaks
from atlas_jax.pipeline._run_files import Record
from atlas_jax.report import _figures as figures, _stored as stored
from atlas_jax.report._concepts import SteeredTexts, of_concepts, of_evaluation
from atlas_jax.report._figures import Figure
from atlas_jax.rows import unit
from atlas_jax.table import Column, Table, facts_table
from atlas_jax.types import Site

CURVE_SENTENCES = 2000  # held-out ones that precision-recall and ROC curves rank
KNOWN = ("quality", "curve", "domains", "layers", "causality", "retrieval", "coverage", "whitened", "concepts")


class Hint(NamedTuple):
    """What the run does not hold, and the command that makes it."""

    text: str
    command: str


class Section(NamedTuple):
    """A part of the page."""

    id: str
    title: str
    parts: list["Part"]


Part = Table | Figure | Hint | str


class Source(NamedTuple):
    """A run to show.

    Attributes:
      run: its directory.
      facts: about it.
      alignment: the run with its models; None where these cannot be loaded.
      fault: why not.
      method: the translation that concepts are searched by.
      ap: by site and method, where it was measured.
      faults: sentences about damaged tables, found on the way.
    """

    run: Path
    facts: RunFacts
    alignment: Alignment | None
    fault: str | None
    method: str
    ap: Mapping[tuple[str, str], float]
    faults: list[str]

    @classmethod
    def read(cls, run: Path, method: str | None, alignment: Alignment | None) -> "Source":
        """Read a run; without models what was stored is shown all the same.

        Raises:
          AtlasError: if it is no run or damaged, or has no such method.
        """
        facts, faults, ap, fault = run_facts(run), [], {}, None
        try:
            alignment = alignment or Alignment.load(run, verify=False)
        except AtlasError as e:
            fault = str(e)
        if alignment is not None:
            method = method or alignment.recommended("identify")[0]
            alignment.translation(alignment.subject.sites[0], method)
        with contextlib.suppress(DamagedError):  # which the section on quality tells
            ap = stored_ap(run)
        return cls(run, facts, alignment, fault, method or "", ap, faults)

    def of(
        self, name: str, parts: Callable[[Any], list[Any]], command: str | None = None, missing: str = ""
    ) -> list[Any]:
        """Return the parts that a stored table gives, or a sentence on why there are none."""
        try:
            parts_read = stored.stored(self.run / name, parts)
        except DamagedError as e:
            if str(e) not in self.faults:
                self.faults.append(str(e))
            return [f"{e}."]
        if parts_read is not None or command is None:
            return parts_read or []
        return [self.hint(missing, command)]

    def hint(self, text: str, command: str) -> Hint:
        """Name a command for this run, whose place in it is ``{}``."""
        return Hint(text, f"atlas-jax {command.format(shlex.quote(str(self.run)))}")


def sections(source: Source, *, paper: bool, curves: int) -> list[Section]:
    """Return all sections of the page, in order.

    Args:
      source: the run.
      paper: put the paper's figures beside, where it has some.
      curves: features whose precision-recall and ROC curves are drawn; 0 for none.
    """
    all_sections = [
        Section("quality", "Translation quality (Table 3)", _quality(source, paper, curves)),
        Section("translations", "Translations: spectra and certificates", _translations(source)),
        Section("curves", "Learning, domain and layer curves", _curves(source)),
        Section("retrieval", "Retrieval (Table 4)", _retrieval(source, paper)),
        Section("steering", "Steering (Table 5)", _steering(source)),
        Section("coverage", "Coverage of the atlas", _coverage(source)),
        Section("explored", "Concepts of the quickstart", _explored(source)),
        Section("other", "Other tables of the run", _other(source)),
        Section("run", "What was aligned", _aligned(source)),
    ]
    return [section for section in all_sections if section.parts]


def _quality(source: Source, paper: bool, curves: int) -> list[Part]:
    measured: list[Quality] = []

    def parts(d: Any) -> list[Part]:
        measured.append(quality := stored.quality(d))
        table = quality.table()
        if paper:
            _, table = quality_beside_paper(quality, str(source.facts.facts["subject"]))
        return [*figures.quality_figures(quality), table]

    scores = source.of("tables/quality.json", parts, "evaluate quality {}", "Quality is not measured for this run.")
    return scores + [part for quality in measured for part in _detection(source, quality, curves)]


def _detection(source: Source, quality: Quality, count: int) -> list[Part]:
    """Curves of some of the features, at the site of highest AP; models that are not small would take minutes."""
    alignment = source.alignment
    if alignment is None:
        return []
    if not count:
        return [source.hint("Precision-recall and ROC curves are not drawn here.", "report {} --curves 6")]
    if not (is_small(alignment.subject.model) and is_small(alignment.atlas.model)):
        return ["Precision-recall and ROC curves are drawn for models of up to a billion parameters."]
    own = [r for r in quality.rows if r.method == source.method]
    best = max(own or quality.rows, key=lambda r: r.average_precision.mean)
    method = best.method
    places = np.unique(np.linspace(0, len(quality.features) - 1, count).astype(int))
    chosen = np.array(quality.features)[places]
    queries = one_hot(chosen, alignment.atlas.width)
    along = np.asarray(alignment.translation(best.site, method).similarity(queries))
    scores, positive = _ranked(alignment, best.site, along, chosen)
    names = [f"{f} {alignment.atlas.labels[int(f)] or ''}".strip() for f in chosen]
    return list(figures.detection_figures(best.site, method, scores, positive, names))


def _ranked(
    alignment: Alignment, site: Site, along: Float[np.ndarray, "q d_s"], features: Int[np.ndarray, " q"]
) -> tuple[Float[np.ndarray, "q n"], Bool[np.ndarray, "q n"]]:
    """Score some held-out sentences as Table 3 does, by programs that an evaluation has compiled already."""
    stream, scores, positive = alignment.stream("eval"), [], []
    for subject, atlas in stream.only(stream.first + np.arange(min(CURVE_SENTENCES, stream.size))).batches():
        rows = np.asarray(subject.index) >= 0
        acts = np.asarray(encode_peaks(alignment.subject, subject)[site].values, np.float32)[rows]
        scores.append(along @ unit(acts).T)
        positive.append(np.asarray(encode_batch(alignment.atlas, atlas)[alignment.atlas.site])[rows][:, features].T > 0)
    return np.concatenate(scores, axis=1), np.concatenate(positive, axis=1)


def _translations(source: Source) -> list[Part]:
    parts: list[Part] = []
    if source.alignment is not None:
        run = source.alignment
        steering = {(site, f"{m}:{run.settings.steer_pooling}"): t for (site, m), t in run.steering.items()}
        translations = {**run.translations, **steering}
        parts += figures.spectrum_figures(translations)
        parts += [table for table in [certificate_table(translations)] if table.rows]
    parts += source.of("tables/whitened.json", lambda d: [stored.choice(d)])
    return parts


def _curves(source: Source) -> list[Part]:
    with_table = lambda make, draw: lambda d: [*draw(make(d)), *_tables(make(d))]
    learning = with_table(stored.curve, figures.learning_figures)
    domains = with_table(stored.domains, figures.domain_figures)
    layers = with_table(stored.layers, figures.layer_figures)
    what = "is not measured for this run."
    return [
        *source.of(
            "tables/curve.json", learning, "evaluate curve {}", f"Quality by the number of fit sentences {what}"
        ),
        *source.of("tables/domains.json", domains, "evaluate domains {}", f"Quality across domains {what}"),
        *source.of("tables/layers.json", layers, "evaluate layers {}", f"Quality by layer {what}"),
    ]


def _tables(record: Any) -> list[Table]:
    return record.tables() if hasattr(record, "tables") else [record.table()]


def _retrieval(source: Source, paper: bool) -> list[Part]:
    def parts(d: Any) -> list[Part]:
        retrieval = stored.retrieval(d)
        table = retrieval.table()
        if paper:
            _, table = retrieval_beside_paper(retrieval, source.facts.translations[0]["atlas features"])
        return [*figures.retrieval_figures(retrieval), table]

    return source.of("tables/retrieval.json", parts, "evaluate retrieval {}", "Retrieval is not measured for this run.")


def _steering(source: Source) -> list[Part]:
    def table5(d: Any) -> list[Part]:
        evaluation = stored.evaluation(d)
        return [*(f"{said}." for said in evaluation.warnings()), *evaluation.tables()]

    parts: list[Part] = []
    for path in sorted((source.run / "steering").glob("table-*.json")):
        parts += source.of(f"steering/{path.name}", table5)
    if not parts:
        parts.append(source.hint("Table 5 is not measured for this run.", "evaluate steering {}"))
    parts += source.of("steering/settings.json", lambda d: _doses(d, _generations(source)))
    causality = lambda d: [*figures.causality_figures(stored.causality(d)), stored.causality(d).table()]
    missing = "Causality is not measured for this run."
    return parts + source.of("tables/causality.json", causality, "evaluate causality {}", missing)


def _generations(source: Source) -> list[Row]:
    return read_rows(source.run / "steering" / "generations.jsonl")


def _doses(settings: Any, rows: list[Row]) -> list[Part]:
    """Activation of the concept and perplexity by strength, a line a method, two plots a group of sites."""
    if not rows:
        return []
    base = {name: [r for r in rows if r.cell.method == name and not r.cell.sites] for name in (UNSTEERED, NATIVE)}
    figures_of_doses: list[Part] = []
    for sites in dict.fromkeys(r.cell.sites for r in rows if r.cell.sites):
        own = [r for r in rows if r.cell.sites == sites and r.cell.concept]
        points = [(r.cell.method, r.cell.strength, r.activations[r.cell.concept], r.perplexity) for r in own]
        for method in dict.fromkeys(r.cell.method for r in own):
            unsteered = base[NATIVE if method == NATIVE else UNSTEERED]
            points += [(method, 0.0, float(np.mean(list(r.activations.values()))), r.perplexity) for r in unsteered]
        figures_of_doses += figures.dose_figures(points, MEANING[settings["unit"]], f" at {sites}")
    return figures_of_doses


def _coverage(source: Source) -> list[Part]:
    def parts(d: Any) -> list[Part]:
        measured = stored.coverage(d)
        return [f"{note}." for note in [measured.note()] if note] + [facts_table("Coverage", measured.to_dict())]

    stored_parts = source.of("tables/coverage.json", parts)
    return stored_parts or (parts(coverage(source.alignment).to_dict()) if source.alignment else [])


def _explored(source: Source) -> list[Part]:
    def parts(d: Any) -> list[Part]:
        concepts = stored.concepts(d)
        name = lambda c, s: c.text if s.along == "concept" else f"{c.text}, {s.along} direction"
        rows = [(name(c, s), s.strength, s.concept, s.perplexity) for c in concepts for s in c.steered]
        drawn = figures.dose_figures(rows, MEANING[concepts[0].unit]) if rows else []
        return [*drawn, *(table for c in concepts for table in c.tables())]

    return source.of("tables/concepts.json", parts)


def _other(source: Source) -> list[Part]:
    """Tables that no other section shows, so that a newer experiment is not left out."""
    parts: list[Part] = []
    for path in sorted((source.run / "tables").glob("*.json")):
        if path.stem not in KNOWN:
            show = lambda d, name=path.stem: [t for t in [stored.rows_of(name, d)] if t]
            parts += source.of(f"tables/{path.name}", show)
    return parts


def _aligned(source: Source) -> list[Part]:
    run, *others = source.facts.tables()
    prints = Record.read(source.run).fingerprints
    rows = [
        (space, str(of["dtype"]), name, ", ".join(f"{x:.4g}" for x in values[:4]) + ", ...")
        for space, of in prints.items()
        for name, values in of["values"].items()
    ]
    columns = Column("space"), Column("dtype"), Column("quantity"), Column("projections")
    caption = (
        "checksums of the forward pass on a fixed text, by which a run notices that a model computes something else"
    )
    return [run, *others, *([Table("Fingerprints", columns, rows, caption)] if rows else [])]


def steered_texts(source: Source) -> list[SteeredTexts]:
    """Return the continuations that the run holds; what is damaged has been told by a section."""
    sites = [Site.parse(s) for s in dict.fromkeys(r["site"] for r in source.facts.translations)]
    shown = source.of("tables/concepts.json", lambda d: of_concepts(stored.concepts(d), sites))
    evaluated = source.of(
        "steering/settings.json", lambda d: of_evaluation(stored.steering_settings(d), _generations(source))
    )
    return [x for x in [*shown, *evaluated] if isinstance(x, SteeredTexts)]


def aligned_pair(source: Source) -> tuple[str, str]:
    """Return the names of subject and atlas."""
    sources = read_json(source.run / RUN)["sources"]
    return model_name(sources["subject"]["path"]), model_name(sources["atlas"]["path"])


def model_name(path: str) -> str:
    """Return the last part of a path, or the repository that a directory of the hub's cache is of.

    Example:
      >>> from atlas_jax.report._content import model_name
      >>> model_name("/models/llama"), model_name("/cache/models--google--gemma-2-2b/snapshots/c5ebcd40")
      ('llama', 'google/gemma-2-2b')
    """
    cached = re.search(r"models--(.+?)--(.+?)/snapshots/", path)
    return "/".join(cached.groups()) if cached else Path(path).name
