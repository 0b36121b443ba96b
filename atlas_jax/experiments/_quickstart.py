"""The whole job in one call: align, measure, identify and steer, each step a function of its own."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.artifacts import run_directory, write_json
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._identify import Identified, identify
from atlas_jax.experiments._quality import BAND, Quality, best_method, choose_features, translation_quality
from atlas_jax.experiments._steering import Steered, Unit, steer
from atlas_jax.labels import Hit
from atlas_jax.pipeline import Alignment, AlignSettings, Chooser, Pair, Stage, align
from atlas_jax.types import Site

METHODS = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "random")
FEATURES = 100


class Concept(NamedTuple):
    """One concept, from its words to steered text.

    Attributes:
      text: the words searched for.
      hits: the atlas features whose labels match, with their weights in the query.
      site: where its subject features were looked for.
      method: the translation used.
      identified: the subject features.
      steered: continuations by prompt and strength.
      unit: of the strengths, see :func:`steer`.
    """

    text: str
    hits: list[Hit]
    site: Site
    method: str
    identified: list[Identified]
    steered: list[Steered]
    unit: Unit = "raw"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "text": self.text,
            "atlas_features": [h._asdict() for h in self.hits],
            "site": str(self.site),
            "method": self.method,
            "identified": [i.as_json() for i in self.identified],
            "unit": self.unit,
            "steered": [s._asdict() for s in self.steered],
        }


def measure(alignment: Alignment, *, stage: Stage, features: int = FEATURES) -> tuple[Alignment, Quality]:
    """The quality table of an alignment, and the alignment with its maximally activating held-out sentences."""
    chosen = choose_features(alignment.rate, count=features, band=BAND, seed=alignment.settings.seed)
    quality, scored = translation_quality(
        alignment.stream("eval"), alignment.translations, chosen, band=BAND, progress=stage("measure")
    )
    return dataclasses.replace(alignment, top=scored.top), quality


def explore(
    alignment: Alignment,
    text: str,
    method: str,
    *,
    steer_sites: Sequence[Site],
    prompts: Sequence[str],
    strengths: Sequence[float],
    atlas_features: int = 3,
    max_new_tokens: int = 40,
    unit: Unit = "raw",
) -> Concept:
    """One concept through the whole chain: label search, query, identification, steering at some sites.

    Subject features are shown for the site where the most similar one is found.
    """
    hits = alignment.atlas.search(text, atlas_features)
    if not hits:
        raise AtlasError(f"no label of this atlas matches '{text}'; try other words, or give feature ids")
    query = alignment.atlas.query([h.index for h in hits], [h.weight for h in hits])
    at = lambda site: alignment.translation(site, method)
    site = max(alignment.subject.sites, key=lambda s: float(at(s).top_features(query, 1).scores[0]))
    tokenizer = alignment.subject.model.tokenizer
    found = identify(at(site), query, alignment.top[site], alignment.corpus.sentence, tokenizer)
    steered = steer(
        alignment.subject.model,
        alignment.atlas,
        {s: at(s) for s in steer_sites},
        query,
        prompts,
        strengths,
        max_new_tokens=max_new_tokens,
        seed=alignment.settings.seed,
        unit=unit,
    )
    return Concept(text, hits, site, method, found, steered, unit)


class Result(NamedTuple):
    """What a quickstart found, and where it was written."""

    alignment: Alignment
    quality: Quality
    concepts: list[Concept]
    directory: Path


def quickstart(
    pair: Pair,
    corpus: Corpus,
    settings: AlignSettings,
    out: str | Path,
    *,
    concepts: Sequence[str],
    prompts: Sequence[str],
    strengths: Sequence[float],
    stage: Stage,
    note: Callable[[str], None] = lambda text: None,
    chooser: Chooser | None = None,
) -> Result:
    """Align a subject to an atlas, measure every method, and take concepts through identification and steering.

    Concepts use the method of highest AP. Steering acts on the sites of the residual stream, or on all sites where
    there is none; strengths are in mean token norms of a site.

    Raises:
      AtlasError: for anything wrong with the text, the methods, a concept or the place to write to.
    """
    with run_directory(out) as directory:
        alignment, quality = measure(align(pair, corpus, settings, stage=stage, chooser=chooser), stage=stage)
        method = best_method(quality)
        residual = [s for s in alignment.subject.sites if s.point.startswith("resid")]
        sites = residual or alignment.subject.sites
        note("searching, identifying and steering")
        explored = [
            explore(alignment, text, method, steer_sites=sites, prompts=prompts, strengths=strengths, unit="norm")
            for text in concepts
        ]
        alignment.save(directory)
        write_json(directory / "tables" / "quality.json", quality.as_json())
        write_json(directory / "tables" / "concepts.json", [c.as_json() for c in explored])
    return Result(alignment, quality, explored, Path(out))
