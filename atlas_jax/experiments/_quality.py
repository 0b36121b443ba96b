"""Translation quality, the protocol of Table 3: does a translated feature rank the sentences that fire it first?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.metrics import Interval, bootstrap_mean, detection
from atlas_jax.pipeline import Pass, Scored, score_sentences
from atlas_jax.progress import Progress
from atlas_jax.translation import Translation
from atlas_jax.types import Site

BAND = (0.005, 0.2)  # positive rates, on the fit half, between which atlas features are drawn


class QualityRow(NamedTuple):
    """AUROC and AP of one method at one site: means over features with 95% bootstrap intervals."""

    site: Site
    method: str
    auroc: Interval
    average_precision: Interval


class Quality(NamedTuple):
    """A table of translation quality.

    Attributes:
      rows: one a site and method.
      features: the atlas features that were translated.
      band: the positive rates, on the fit half, between which they were drawn.
      chance: the AP of chance, the mean positive rate on the evaluation half.
      sentences: how many sentences were ranked.
    """

    rows: list[QualityRow]
    features: list[int]
    band: tuple[float, float]
    chance: float
    sentences: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [
            {"site": str(r.site), "method": r.method, "auroc": r.auroc._asdict(), "ap": r.average_precision._asdict()}
            for r in self.rows
        ]
        return self._asdict() | {"rows": rows}


def choose_features(
    rate: Float[np.ndarray, " d_c"], *, count: int, band: tuple[float, float], seed: int
) -> Int[np.ndarray, " q"]:
    """Draw atlas features whose share ``rate`` of positive sentences lies in a band, ascending.

    Raises:
      AtlasError: if no feature does.
    """
    usable = np.flatnonzero((rate >= band[0]) & (rate <= band[1]))
    if not len(usable):
        raise AtlasError(f"no atlas feature fires in {band[0]:.1%} to {band[1]:.1%} of the sentences; give more text")
    return np.sort(np.random.default_rng(seed).choice(usable, min(count, len(usable)), replace=False))


def translation_quality(
    stream: Pass,
    translations: Mapping[tuple[Site, str], Translation],
    features: Int[np.ndarray, " q"],
    *,
    band: tuple[float, float],
    progress: Progress | None = None,
) -> tuple[Quality, Scored]:
    """Table 3 for every site and method, and the pass it was computed from.

    A sentence's score for a feature is the cosine of its pooled subject activations with the translated one-hot
    query (Eq. 3); it is positive if the feature fires anywhere in it. Scores stay in the order of sentence ids.
    """
    sites = list(dict.fromkeys(site for site, _ in translations))
    methods = list(dict.fromkeys(method for _, method in translations))
    queries = one_hot(features, next(iter(translations.values())).d_c)
    directions = {
        site: jnp.concatenate([translations[site, method].similarity(queries) for method in methods]) for site in sites
    }
    scored = score_sentences(stream, directions, features, progress=progress)
    rows = [
        _row(site, method, scored.scores[site][i * len(features) : (i + 1) * len(features)], scored.positive)
        for site in sites
        for i, method in enumerate(methods)
    ]
    chance = float(scored.positive.mean())
    return Quality(rows, features.tolist(), band, chance, scored.positive.shape[1]), scored


def one_hot(features: Int[np.ndarray, " q"], width: int) -> Float[np.ndarray, "q d_c"]:
    """The concept queries of single atlas features."""
    queries = np.zeros((len(features), width), np.float32)
    queries[np.arange(len(features)), features] = 1.0
    return queries


def _row(site: Site, method: str, scores: np.ndarray, positive: np.ndarray) -> QualityRow:
    found = detection(scores, positive)
    return QualityRow(site, method, bootstrap_mean(found.auroc), bootstrap_mean(found.average_precision))


def best_method(quality: Quality) -> str:
    """The method of the row with the highest AP; ties go to the first."""
    return max(quality.rows, key=lambda row: row.average_precision.mean).method
