"""Attention heads as feature spaces of their own: translation quality and retrieval, head by head."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.checks import as_count
from atlas_jax.experiments._curve import methods_of, queries_of
from atlas_jax.experiments._quality import QualityRow, quality_caption, translation_quality
from atlas_jax.experiments._retrieval import SENTENCES, RetrievalRow, semantic_retrieval
from atlas_jax.pipeline import Alignment, fit_statistics, solve
from atlas_jax.progress import Progress
from atlas_jax.subject import Subject
from atlas_jax.table import Column, Table
from atlas_jax.translators import needs_of
from atlas_jax.types import Site


class Heads(NamedTuple):
    """Translation quality and retrieval of every head of some layers.

    Attributes:
      quality: AUROC and AP, a row a head.
      retrieval: MRR and MPP, in the same order.
      candidates: by site, the features of the head that are ranked in retrieval.
      features: the atlas features that were translated.
      band: the positive rates, on the fit half, between which they were drawn; None where they are the paper's.
      chance: the AP of chance, the mean positive rate on the evaluation half.
      sentences: how many held-out sentences were ranked.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Heads, QualityRow, RetrievalRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> site, value = Site("z", 2, 0), bootstrap_mean(np.array([0.25, 0.75]))
      >>> quality, retrieval = [QualityRow(site, "ridge", value, value)], [RetrievalRow(site, "ridge", value, value)]
      >>> heads = Heads(quality, retrieval, {site: 32}, [3, 5], (0.005, 0.2), chance=0.04, sentences=100)
      >>> heads.matrix("ap").tolist(), next(heads.tables()[1].texts())
      ([[0.5]], ['2', '0.500'])
    """

    quality: list[QualityRow]
    retrieval: list[RetrievalRow]
    candidates: dict[Site, int]
    features: list[int]
    band: tuple[float, float] | None
    chance: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, a row a head."""
        rows = [q.to_dict() | r.to_dict() for q, r in zip(self.quality, self.retrieval, strict=True)]
        candidates = {str(site): count for site, count in self.candidates.items()}
        facts = {name: getattr(self, name) for name in ("features", "band", "chance", "sentences")}
        return {"rows": rows, "candidates": candidates} | facts

    @property
    def layers(self) -> list[int]:
        """The layers, ascending."""
        return sorted({row.site.layer for row in self.quality})

    def matrix(self, measure: str) -> np.ndarray:
        """Return "auroc", "ap", "mrr" or "mpp" as ``[layers, heads]``, as a heatmap shows it."""
        rows = {row["site"]: row[measure]["mean"] for row in self.to_dict()["rows"]}
        heads = range(1 + max(row.site.head for row in self.quality))
        return np.array([[rows[f"z.{layer}.{head}"] for head in heads] for layer in self.layers])

    def tables(self) -> list[Table]:
        """Tabulate AUROC, AP and MRR, a row a layer and a column a head."""
        method = self.quality[0].method
        captions = {
            "auroc": None,
            "ap": quality_caption(self.features, self.band, self.chance, self.sentences)
            + "; intervals are in the JSON",
            "mrr": f"each head's own features ranked among themselves, {min(self.candidates.values())} or more of them",
        }
        tables = []
        for (measure, caption), name in zip(captions.items(), ("AUROC", "AP", "MRR"), strict=True):
            values = self.matrix(measure)
            columns = Column("layer"), *(Column(f"h{i}", ".3f") for i in range(values.shape[1]))
            rows = [(str(layer), *row) for layer, row in zip(self.layers, values.tolist(), strict=True)]
            tables.append(Table(f"{name} of every head by {method}", columns, rows, caption))
        return tables


def quality_by_head(
    alignment: Alignment,
    layers: Sequence[int] | None = None,
    *,
    method: str | None = None,
    features: int | None = None,
    sentences: int = SENTENCES,
    progress: Progress | None = None,
) -> Heads:
    """Measure translation quality and semantic retrieval of single attention heads on a run's corpus.

    One pass over the fit half reads all heads of all layers that are asked for.

    Args:
      alignment: the run; its features and its rules are used.
      layers: where the heads are; all by default.
      method: the translator; the first of the run by default.
      features: atlas features to translate, chosen as :func:`evaluate_quality` does.
      sentences: how many a query of retrieval is averaged over.
      progress: called after every batch.

    Raises:
      AtlasError: for a layer that the subject does not have, an unknown method, or too little text.

    Example:
      >>> from atlas_jax.experiments import quality_by_head
      >>> from atlas_jax.pipeline import Alignment
      >>> quality_by_head(Alignment.load("runs/quickstart"), [2]).matrix("ap")  # doctest: +SKIP
    """
    (method,) = methods_of(alignment, alignment.settings.methods[:1] if method is None else [method])
    model, settings = alignment.subject.model, alignment.settings
    layers = range(model.config.num_layers) if layers is None else [as_count(i, "a layer", least=0) for i in layers]
    sites = [Site("z", layer, head) for layer in layers for head in range(model.config.num_heads)]
    there = dataclasses.replace(alignment, subject=Subject.from_model(model, sites, settings.pooling))
    chosen, band, _ = queries_of(alignment, features)
    stream = there.stream("fit")
    fitted = fit_statistics(stream, needs_of([method]), top_k=settings.top_k, progress=progress)
    translations = solve(stream, fitted, [method], progress=progress)
    held_out = there.stream("eval")
    quality, _ = translation_quality(held_out, translations, chosen, band=band, progress=progress)
    retrieval = semantic_retrieval(held_out, translations, sentences=sentences, progress=progress)
    return Heads(quality.rows, retrieval.rows, retrieval.candidates, *quality[1:])
