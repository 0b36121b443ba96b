"""Diagnosis: sentences that say what speaks against a result, each only where it applies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.experiments._concept_directions import HOWS
from atlas_jax.experiments._steering import Steered
from atlas_jax.experiments._steering_plan import SteeringSettings, concept_queries
from atlas_jax.files import read_json, reading, write_json
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site

AGAIN = "delete it, or align again with --overwrite"
RARE = 10  # sentences below which a feature is hardly known
UNCOVERED = 0.1  # share of such features from which it is said
LOW_AP = 0.2
EARLY = 0.5  # share of the layers
LOST = 2.0  # times the perplexity without steering
NEGLIGIBLE = 0.1  # of the largest weight of a query: what weighs less is none of its features
LISTED = 5


class Coverage(NamedTuple):
    """Coverage of the atlas features by the sentences aligned on.

    Attributes:
      sentences: how many were aligned on.
      least: sentences in which a feature has to fire to count as covered.
      features: of the atlas.
      rare: how many fire in fewer sentences than that.
      never: how many of these fire in none.

    Example:
      >>> from atlas_jax.experiments import Coverage
      >>> Coverage(sentences=1000, least=10, features=4, rare=1, never=0).share
      0.25
    """

    sentences: int
    least: int
    features: int
    rare: int
    never: int

    @classmethod
    def from_counts(cls, counts: Int[np.ndarray, " d_c"], sentences: int, *, least: int = RARE) -> "Coverage":
        """Count the features that fire in fewer than ``least`` sentences.

        Example:
          >>> import numpy as np
          >>> from atlas_jax.experiments import Coverage
          >>> Coverage.from_counts(np.array([0, 9, 10, 500]), 1000)
          Coverage(sentences=1000, least=10, features=4, rare=2, never=1)
        """
        return cls(sentences, least, len(counts), int((counts < least).sum()), int((counts == 0).sum()))

    @property
    def share(self) -> float:
        """Share of the atlas features that are rare."""
        return self.rare / self.features

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"share": self.share}

    def save(self, run: Path) -> None:
        """Write it into a run, as ``tables/coverage.json``."""
        write_json(run / "tables" / "coverage.json", self.to_dict())

    def note(self) -> str | None:
        """Say that many features are not covered; None where few are."""
        if self.share < UNCOVERED:
            return None
        return (
            f"{self.share:.0%} of the {self.features} atlas features fire in fewer than {self.least} of the "
            f"{self.sentences} sentences aligned on, {self.never} in none: what is found for these means little; "
            "more text, or text of other kinds, covers more"
        )


def firing_counts(alignment: Alignment) -> Int[np.ndarray, " d_c"]:
    """Count the sentences of the fit half in which each atlas feature fires."""
    return np.rint(np.asarray(alignment.rate, np.float64) * sentences_aligned(alignment)).astype(np.int64)


def sentences_aligned(alignment: Alignment) -> int:
    """Count the sentences in the statistics of an alignment."""
    return len(alignment.corpus.fit) - len(alignment.left_out)


def coverage(alignment: Alignment, *, least: int = RARE) -> Coverage:
    """Measure how well the sentences aligned on cover the atlas.

    Args:
      alignment: fitted.
      least: sentences in which a feature has to fire.

    Example:
      >>> from atlas_jax.experiments import coverage
      >>> from atlas_jax.pipeline import Alignment
      >>> coverage(Alignment.load("runs/quickstart")).share       # doctest: +SKIP
      0.012
    """
    return Coverage.from_counts(firing_counts(alignment), sentences_aligned(alignment), least=least)


def stored_ap(run: Path) -> dict[tuple[str, str], float]:
    """Read the AP of every site and method from ``tables/quality.json`` of a run; empty where it was not measured.

    Raises:
      DamagedError: if the table is damaged.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.experiments import stored_ap
      >>> stored_ap(Path("runs/quickstart"))["mlp_act.2", "procrustes"]       # doctest: +SKIP
      0.31
    """
    table = run / "tables" / "quality.json"
    if not table.is_file():
        return {}
    with reading(table, AGAIN):
        return {(row["site"], row["method"]): float(row["ap"]["mean"]) for row in read_json(table)["rows"]}


def diagnose(
    alignment: Alignment,
    sites: Sequence[Site],
    method: str,
    *,
    query: Float[Array | np.ndarray, " d_c"] | None = None,
    ap: Mapping[tuple[str, str], float] | None = None,
    steered: bool = False,
) -> list[str]:
    """Say what speaks against a result before it is looked at.

    Args:
      alignment: what is used.
      sites: the sites in use.
      method: the translation in use.
      query: the concept query, where there is one.
      ap: AP by site and method, see :func:`stored_ap`.
      steered: whether the sites are steered at.

    Returns:
      A sentence each for features of the query that the corpus hardly activates, a translation of low AP, and, where
      it is steered, a query of a single feature and early layers alone; often none.

    Example:
      >>> from atlas_jax.experiments import diagnose
      >>> from atlas_jax.pipeline import Alignment
      >>> run = Alignment.load("runs/quickstart")                 # doctest: +SKIP
      >>> diagnose(run, run.subject.sites, "procrustes", query=run.atlas.query([17]), steered=True)  # doctest: +SKIP
      ['the query is a single atlas feature, ...']
    """
    sentences = []
    if ap:
        measured = {s: ap[str(s), method] for s in sites if (str(s), method) in ap}
        sentences.append(weak_translation(measured, method))
    if query is not None:
        sentences.append(uncovered(query, firing_counts(alignment), sentences_aligned(alignment)))
    if steered:
        sentences.append(None if query is None else single_feature(query))
        sentences.append(early_layers(sites, alignment.subject.model.config.num_layers))
    return [sentence for sentence in sentences if sentence is not None]


def diagnose_steering(
    alignment: Alignment, settings: SteeringSettings, *, ap: Mapping[tuple[str, str], float] | None = None
) -> list[str]:
    """Say what speaks against an evaluation of steering before it is made.

    Args:
      alignment: the run.
      settings: of the evaluation.
      ap: AP by site and method, see :func:`stored_ap`.

    Returns:
      A sentence each for concepts that the corpus hardly activates, concepts of a single feature, translations of low
      AP, and groups of early layers alone.

    Raises:
      AtlasError: for features that the atlas does not have, and for sites or methods that were not aligned.

    Example:
      >>> from atlas_jax.experiments import diagnose_steering
      >>> diagnose_steering(alignment, settings)                                # doctest: +SKIP
      ["10 of 10 concepts are a single atlas feature, and steering along one often repeats tokens; ..."]
    """
    counts, sentences = firing_counts(alignment), sentences_aligned(alignment)
    queries = concept_queries(alignment.atlas, settings.concepts)
    rare = {name: uncovered(query, counts, sentences) for name, query in queries.items()}
    warnings = [f"concept '{name}': {said}" for name, said in rare.items() if said]
    if single := sum(single_feature(query) is not None for query in queries.values()):
        warnings.append(
            f"{single} of {len(queries)} concepts are a single atlas feature, and steering along one often repeats "
            "tokens; combine related features"
        )
    groups = [[Site.parse(site) for site in group] for group in settings.sites]
    for method in (m for m in settings.methods if m not in HOWS):
        sites = dict.fromkeys(alignment.translation(site, method).site for group in groups for site in group)
        warnings += diagnose(alignment, list(sites), method, ap=ap)
    early = [early_layers(group, alignment.subject.model.config.num_layers) for group in groups]
    return warnings + [said for said in dict.fromkeys(early) if said]


def query_features(query: Float[Array | np.ndarray, " d_c"]) -> Int[np.ndarray, " f"]:
    """Find the features a query is made of: those that weigh at least a tenth of the largest weight."""
    size = np.abs(np.asarray(query, np.float64))
    return np.flatnonzero((size > 0) & (size >= NEGLIGIBLE * size.max()))


def uncovered(
    query: Float[Array | np.ndarray, " d_c"], counts: Int[np.ndarray, " d_c"], sentences: int, *, least: int = RARE
) -> str | None:
    """Say which features of a query hardly fire in the sentences aligned on.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments._diagnosis import uncovered
      >>> uncovered(np.array([1.0, 1.0, 0.0]), np.array([50, 3, 0]), 1000)[:70]
      'of the 2 atlas features of this query 1 fires in fewer than 10 of the '
    """
    features = query_features(query)
    rare = features[counts[features] < least].tolist()
    if not rare:
        return None
    listed = ", ".join(map(str, rare[:LISTED])) + (", ..." if len(rare) > LISTED else "")
    of = f"of the {len(features)} atlas features of this query {len(rare)}"
    return (
        f"{'the atlas feature of this query' if len(features) == 1 else of} {'fires' if len(rare) == 1 else 'fire'} in "
        f"fewer than {least} of the {sentences} sentences aligned on ({listed}), so little is known of the subject's "
        "side of it; align on text that has the concept"
    )


def weak_translation(ap: Mapping[Site, float], method: str) -> str | None:
    """Say at which sites a method's AP on held-out sentences is low.

    Example:
      >>> from atlas_jax.experiments._diagnosis import weak_translation
      >>> from atlas_jax.types import Site
      >>> weak_translation({Site("mlp_act", 2): 0.12}, "covariance")[:52]
      'the AP of covariance on held-out sentences is 0.12 a'
    """
    low = {site: value for site, value in ap.items() if value < LOW_AP}
    if not low:
        return None
    listed = ", ".join(f"{value:.2f} at {site}" for site, value in low.items())
    return (
        f"the AP of {method} on held-out sentences is {listed}, below {LOW_AP}: what it finds there may be another "
        "concept; compare methods and sites with atlas-jax evaluate quality"
    )


def weak_sites(ap: Mapping[tuple[str, str], float]) -> str | None:
    """Say at which sites even the best method has a low AP.

    Example:
      >>> from atlas_jax.experiments._diagnosis import weak_sites
      >>> weak_sites({("mlp_act.0", "ridge"): 0.1, ("mlp_act.2", "ridge"): 0.4, ("mlp_act.2", "random"): 0.1})[:48]
      'no method has an AP of 0.2 or more at mlp_act.0:'
    """
    best: dict[str, float] = {}
    for (site, _), value in ap.items():
        best[site] = max(best.get(site, 0.0), value)
    low = [site for site, value in best.items() if value < LOW_AP]
    if not low:
        return None
    return f"no method has an AP of {LOW_AP} or more at {', '.join(low)}: align on more text, or choose other sites"


def single_feature(query: Float[Array | np.ndarray, " d_c"]) -> str | None:
    """Say that a query to steer along is a single feature."""
    if len(query_features(query)) != 1:
        return None
    return "the query is a single atlas feature, and steering along one often repeats tokens; combine related features"


def early_layers(sites: Sequence[Site], layers: int) -> str | None:
    """Say that only early layers are steered.

    Example:
      >>> from atlas_jax.experiments._diagnosis import early_layers
      >>> from atlas_jax.types import Site
      >>> early_layers([Site("mlp_act", 30)], 32), early_layers([Site("mlp_act", 3)], 32)[:46]
      (None, 'only layers up to 3 of 0 to 31 are steered, wh')
    """
    last = max(site.layer for site in sites)
    if (last + 1) > EARLY * layers or layers == 1:
        return None
    return (
        f"only layers up to {last} of 0 to {layers - 1} are steered, where the paper finds little more effect than "
        "of random directions; add a later site"
    )


def beyond_sense(perplexities: Mapping[float, float | None], *, factor: float = LOST) -> str | None:
    """Say from which strengths on steered text loses its sense.

    Args:
      perplexities: of the continuations under the unsteered subject, by strength; that of 0 is the measure, and what
        is None or not finite is left out.
      factor: how many times that perplexity is too much.

    Example:
      >>> from atlas_jax.experiments import beyond_sense
      >>> beyond_sense({0.0: 10.0, 1.0: 12.0, 10.0: 35.0, -10.0: 15.0})
      'perplexity is more than 2 times that of unsteered text at strength 10 (3.5 times): stay below'
    """
    base = perplexities.get(0.0)
    if not base:
        return None
    known = {at: x / base for at, x in perplexities.items() if x is not None and np.isfinite(x)}
    lost = [(at, times) for at, times in sorted(known.items()) if times > factor]
    if not lost:
        return None
    listed = ", ".join(f"{at:g} ({times:.1f} times)" for at, times in lost)
    strengths = "strength" if len(lost) == 1 else "strengths"
    return f"perplexity is more than {factor:g} times that of unsteered text at {strengths} {listed}: stay below"


def median_perplexities(steered: Sequence[Steered]) -> dict[float, float | None]:
    """Take the median perplexity over prompts by strength; None where no continuation has a token.

    Example:
      >>> from atlas_jax.experiments import Steered, median_perplexities
      >>> median_perplexities([Steered("A", 0.0, "dog", 1.0, 7.0), Steered("The", 0.0, "cat", 1.0, 9.0)])
      {0.0: 8.0}
    """
    steered = [s for s in steered if s.along == "concept"]
    perplexities: dict[float, list[float]] = {s.strength: [] for s in steered}
    for s in steered:
        perplexities[s.strength] += [] if s.perplexity is None else [s.perplexity]
    return {strength: float(np.median(values)) if values else None for strength, values in perplexities.items()}
