"""All steps in one call: align, measure, identify and steer, each a function of its own."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.corpus import Corpus
from atlas_jax.experiments._dose import default_strengths, with_strengths
from atlas_jax.experiments._identify import Identified, concept_query, hits_table, identified_table, identify
from atlas_jax.experiments._quality import Quality, alignment_tables, kept, measured
from atlas_jax.experiments._steering import Steered, Unit, steer, steered_table
from atlas_jax.files import new_directory, write_json
from atlas_jax.labels import Hit
from atlas_jax.pipeline import Alignment, AlignSettings, Chooser, Pair, align
from atlas_jax.progress import Progress
from atlas_jax.table import Table
from atlas_jax.types import Site

METHODS = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "random")
ATLAS_FEATURES = 3  # of a concept
_log = logging.getLogger(__name__)


class Concept(NamedTuple):
    """One concept, from its words to steered text.

    Attributes:
      text: the words searched for.
      hits: the atlas features whose labels match, with their weights in the query.
      site: of its subject features.
      method: of the translation that identified them.
      identified: the subject features.
      steered: continuations by prompt and strength.
      unit: of the strengths, see :func:`steer`.
      steer_method: of the translation that was steered along, with its pooling in words.

    Example:
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Concept
      >>> from atlas_jax.labels import Hit
      >>> concept = Concept("dogs", [Hit(3, "a dog's bark", 9.0, 1.0)], Site("resid_post", 2), "ridge", [], [])
      >>> [table.title for table in concept.tables()][0]
      "Concept 'dogs': atlas features"
    """

    text: str
    hits: list[Hit]
    site: Site
    method: str
    identified: list[Identified]
    steered: list[Steered]
    unit: Unit = "raw"
    steer_method: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "text": self.text,
            "atlas_features": [h._asdict() for h in self.hits],
            "site": str(self.site),
            "method": self.method,
            "identified": [i.to_dict() for i in self.identified],
            "unit": self.unit,
            "steer_method": self.steer_method,
            "steered": [s._asdict() for s in self.steered],
        }

    as_json = to_dict

    def tables(self) -> list[Table]:
        """Tabulate the atlas features, the subject features and the steered text."""
        name, where = f"Concept '{self.text}'", f"{self.site}, {self.method}"
        return [
            hits_table(f"{name}: atlas features", self.hits),
            identified_table(f"{name}: subject features at {where}", self.identified),
            steered_table(f"{name}: steering by {self.steer_method or self.method}", self.steered, self.unit),
        ]


def run_concept(
    alignment: Alignment,
    text: str,
    method: str | None = None,
    *,
    steer_sites: Sequence[Site],
    prompts: Sequence[str],
    strengths: Sequence[float],
    atlas_features: int = ATLAS_FEATURES,
    max_new_tokens: int = 40,
    unit: Unit = "raw",
) -> Concept:
    """Take one concept through the whole chain: label search, query, identification, steering at some sites.

    Subject features are those of the site with the most similar one. ``method`` is for both; without it each uses the
    translation that is recommended for it.

    Raises:
      AtlasError: if no label matches the text.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import run_concept  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> options = {"prompts": ["The"], "strengths": [0.0, 1.0], "unit": "norm"}  # doctest: +SKIP
      >>> concept = run_concept(run, "font", "procrustes", steer_sites=run.subject.sites, **options)  # doctest: +SKIP
      >>> concept.method  # doctest: +SKIP
      'procrustes'
    """
    query, hits, _ = concept_query(alignment.atlas, concept=text, k=atlas_features)
    of = lambda use: (method,) if method else alignment.recommended(use)
    at = lambda site, use="identify": alignment.translation(site, *of(use))
    along = {s: at(s, "steer") for s in steer_sites}
    site = max(alignment.subject.sites, key=lambda s: float(at(s).top_features(query, 1).scores[0]))
    tokenizer = alignment.subject.model.tokenizer
    identified = identify(at(site), query, alignment.strongest(site), alignment.corpus.sentence, tokenizer)
    steered = steer(
        alignment.subject.model,
        alignment.atlas,
        along,
        query,
        prompts,
        strengths,
        max_new_tokens=max_new_tokens,
        seed=alignment.settings.seed,
        unit=unit,
        random=True,
    )
    described = next(iter(along.values())).described
    return Concept(text, hits, site, at(site).method, identified, steered, unit, described)


class Result(NamedTuple):
    """The results of a quickstart, where they were written, and why there is no quality table if there is none."""

    alignment: Alignment
    quality: Quality | None
    concepts: list[Concept]
    directory: Path
    fault: Exception | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the tables as plain values."""
        choice, quality = self.alignment.choice, self.quality
        values = {"quality": quality and quality.to_dict(), "concepts": [c.to_dict() for c in self.concepts]}
        return values if choice is None else values | {"chosen": choice.record["chosen"]}

    def tables(self) -> list[Table]:
        """Return tables of the quality, the chosen members and the concepts, each where there is one."""
        concepts = [table for concept in self.concepts for table in concept.tables()]
        return alignment_tables(self.alignment, self.quality) + concepts


def quickstart(
    pair: Pair,
    corpus: Corpus,
    settings: AlignSettings,
    out: str | Path,
    *,
    concepts: Sequence[str],
    prompts: Sequence[str],
    strengths: Sequence[float] | None = None,
    progress: Progress | None = None,
    chooser: Chooser | None = None,
    overwrite: bool = False,
) -> Result:
    """Align a subject to an atlas, measure every method, and take concepts through identification and steering.

    Concepts use the translations recommended for each use. Steering acts on the sites of the residual stream, or on all
    sites where there is none; strengths are in mean token norms of a site, by default shares of the suggested one. The
    run is written when its translations are there, even if a later step fails.

    Raises:
      AtlasError: for anything wrong with the text, the methods, a concept or the place to write to.

    Example:
      >>> from pathlib import Path  # doctest: +SKIP
      >>> from atlas_jax import AlignSettings, build_corpus, load_pair  # doctest: +SKIP
      >>> from atlas_jax.bundled import ATLAS, SUBJECT  # doctest: +SKIP
      >>> from atlas_jax.experiments import quickstart  # doctest: +SKIP
      >>> settings = AlignSettings(("mlp_act.1",), ("procrustes",))  # doctest: +SKIP
      >>> corpus = build_corpus([Path("my_text.txt").read_text()])  # doctest: +SKIP
      >>> options = {"concepts": ["dictionary"], "prompts": ["The"], "strengths": [0.0, 1.0]}  # doctest: +SKIP
      >>> pair = load_pair(SUBJECT, ATLAS, settings)  # doctest: +SKIP
      >>> result = quickstart(pair, corpus, settings, "runs/mine", **options)  # doctest: +SKIP
    """
    for text in concepts:
        concept_query(pair.atlas, concept=text)
    with new_directory(out, overwrite=overwrite) as directory:
        aligned = with_strengths(align(pair, corpus, settings, progress=progress, chooser=chooser))
        run = measured(aligned, progress=progress)
        alignment = run.alignment
        residual = [s for s in alignment.subject.sites if s.point.startswith("resid")]
        steered = residual or list(alignment.subject.sites)
        if strengths is None:
            suggested, reason = default_strengths(alignment, steered)
            _log.info(reason)
            strengths = [0.0, *suggested]
        options = {"prompts": prompts, "strengths": strengths}
        _log.info("searching, identifying and steering")
        explored, faults = [], []
        with kept(faults):
            explored = [run_concept(alignment, c, steer_sites=steered, unit="norm", **options) for c in concepts]
        run.save(directory)
        write_json(directory / "tables" / "concepts.json", [c.to_dict() for c in explored])
    run.raise_fault()
    for fault in faults:
        raise fault
    return Result(alignment, run.quality, explored, Path(out), run.fault)
