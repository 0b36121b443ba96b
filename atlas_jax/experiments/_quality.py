"""Translation quality, the protocol of Table 3: does a translated feature rank the sentences that fire it first?"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._diagnosis import coverage
from atlas_jax.experiments._paper import is_papers, paper
from atlas_jax.files import write_json
from atlas_jax.metrics import Interval, bootstrap_mean, detection
from atlas_jax.pipeline import Alignment, Scored, SentenceStream, score_sentences, top_sentences
from atlas_jax.progress import Progress
from atlas_jax.sae import SAEConfig
from atlas_jax.sharding import is_first
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.types import Site

AnyArray = Array | np.ndarray
BAND = (0.005, 0.2)  # positive rates, on the fit half, between which atlas features are drawn
FEATURES, TOP = 100, 5


class QualityRow(NamedTuple):
    """AUROC and AP of one method at one site: means over features with 95% bootstrap intervals.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import QualityRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = QualityRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> round(row.auroc.mean, 2)
      0.85
    """

    site: Site
    method: str
    auroc: Interval
    average_precision: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        intervals = {"auroc": self.auroc._asdict(), "ap": self.average_precision._asdict()}
        return {"site": str(self.site), "method": self.method} | intervals


class Quality(NamedTuple):
    """A table of translation quality.

    Attributes:
      rows: one a site and method.
      features: the atlas features that were translated.
      band: the positive rates, on the fit half, between which they were drawn; None where they are the paper's.
      chance: the AP of chance, the mean positive rate on the evaluation half.
      sentences: how many sentences were ranked.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Quality, QualityRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = QualityRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> table = Quality([row], features=[3, 5], band=(0.005, 0.2), chance=0.04, sentences=100).table()
      >>> table.rows[0][:2]
      ('mlp_act.1', 'ridge')
    """

    rows: list[QualityRow]
    features: list[int]
    band: tuple[float, float] | None
    chance: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"rows": [r.to_dict() for r in self.rows]}

    as_json = to_dict

    def table(self) -> Table:
        """Tabulate AUROC and AP of every method at every site as in Table 3, the best AP of a site standing out."""
        columns = Column("site"), Column("method"), Column("AUROC", ".3f"), Column("AP", ".3f")
        rows = [(str(r.site), r.method, r.auroc[:3], r.average_precision[:3]) for r in self.rows]
        best = best_rows(self.rows, [r.site for r in self.rows])
        return Table("Translation quality", columns, rows, quality_caption(*self[1:]), best)


def best_rows(rows: Sequence[QualityRow], groups: Sequence[Any]) -> frozenset[int]:
    """Return the places of the rows whose AP is the highest of their group."""
    highest: dict[Any, float] = {}
    for row, group in zip(rows, groups, strict=True):
        highest[group] = max(highest.get(group, 0.0), row.average_precision.mean)
    return frozenset(
        i for i, (r, g) in enumerate(zip(rows, groups, strict=True)) if r.average_precision.mean == highest[g]
    )


def quality_caption(features: list[int], band: tuple[float, float] | None, chance: float, sentences: int) -> str:
    """Say what a table of quality is over."""
    drawn = "of the paper (A.6.1)"
    if band is not None:
        drawn = f"that fire in {band[0]:.1%} to {band[1]:.0%} of the sentences"
    return (
        f"mean over {len(features)} atlas features {drawn}, 95% bootstrap interval over features; "
        f"{sentences} held-out sentences; AP of chance {chance:.3f}"
    )


def choose_features(
    rate: Float[np.ndarray, " d_c"], *, count: int, band: tuple[float, float], seed: int
) -> Int[np.ndarray, " q"]:
    """Draw atlas features whose share ``rate`` of positive sentences lies in a band, ascending.

    Raises:
      AtlasError: if no feature does.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments import choose_features
      >>> choose_features(np.array([0.0, 0.1, 0.9, 0.1]), count=5, band=(0.005, 0.2), seed=0).tolist()
      [1, 3]
    """
    usable = np.flatnonzero((rate >= band[0]) & (rate <= band[1]))
    if not len(usable):
        raise AtlasError(f"no atlas feature fires in {band[0]:.1%} to {band[1]:.1%} of the sentences; give more text")
    return np.sort(np.random.default_rng(seed).choice(usable, min(count, len(usable)), replace=False))


def evaluated_features(
    sae: SAEConfig, rate: Float[np.ndarray, " d_c"], *, count: int | None, seed: int
) -> tuple[Int[np.ndarray, " q"], tuple[float, float] | None]:
    """The atlas features of Table 3, and the band they were drawn from; the paper's own where its atlas is used."""
    if count is None and is_papers(sae):
        return np.array(paper().features), None
    return choose_features(rate, count=count or FEATURES, band=BAND, seed=seed), BAND


def translation_quality(
    stream: SentenceStream,
    translations: Mapping[tuple[Site, str], Translation],
    features: Int[np.ndarray, " q"],
    *,
    band: tuple[float, float] | None,
    progress: Progress | None = None,
) -> tuple[Quality, Scored]:
    """Compute Table 3 for every site and method; return it with the pass it was computed from.

    A sentence's score for a feature is the cosine of its pooled subject activations with the translated one-hot
    query (Eq. 3); it is positive if the feature fires anywhere in it. Scores stay in the order of sentence ids.

    Example:
      >>> import numpy as np  # doctest: +SKIP
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import translation_quality  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> stream = run.stream("eval")  # doctest: +SKIP
      >>> translation_quality(stream, run.translations, np.arange(9), band=(0, 1))[0].features  # doctest: +SKIP
      [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    queries = one_hot(features, next(iter(translations.values())).d_c)
    directions = {key: t.similarity(queries) for key, t in translations.items()}
    scores, scored = score_directions(stream, directions, features, progress=progress)
    rows = [quality_row(*key, part, scored.positive) for key, part in scores.items()]
    chance = float(scored.positive.mean())
    return Quality(rows, features.tolist(), band, chance, scored.positive.shape[1]), scored


def score_directions(
    stream: SentenceStream,
    directions: Mapping[tuple[Site, Any], Float[AnyArray, "q d_s"]],
    features: Int[np.ndarray, " q"],
    *,
    progress: Progress | None = None,
) -> tuple[dict[tuple[Site, Any], Float[np.ndarray, "q n"]], Scored]:
    """Score held-out sentences by many sets of similarity vectors in one pass.

    The scores are held on the host: 4 bytes a set, feature and sentence.

    Args:
      stream: the evaluation half.
      directions: by site and anything else, the similarity vectors of the features.
      features: atlas features.
      progress: called after every batch.

    Returns:
      The scores by the keys of ``directions``, a site at a time, sentences in the order of their ids; and the pass.
    """
    keys: dict[Site, list[tuple[Site, Any]]] = {}
    for key in directions:
        keys.setdefault(key[0], []).append(key)
    together = {site: jnp.concatenate([jnp.asarray(directions[k]) for k in of]) for site, of in keys.items()}
    scored = score_sentences(stream, together, features, progress=progress)
    parts = ((of, np.split(scored.scores[site], len(of))) for site, of in keys.items())
    return {key: part for of, split in parts for key, part in zip(of, split, strict=True)}, scored


def one_hot(features: Int[np.ndarray, " q"], width: int) -> Float[np.ndarray, "q d_c"]:
    """Return the concept queries of single atlas features."""
    queries = np.zeros((len(features), width), np.float32)
    queries[np.arange(len(features)), features] = 1.0
    return queries


def quality_row(
    site: Site, method: str, scores: Float[np.ndarray, "q n"], positive: Bool[np.ndarray, "q n"]
) -> QualityRow:
    """The means over features of how well scores detect the sentences in which each fires."""
    ranked = detection(scores, positive)
    return QualityRow(site, method, bootstrap_mean(ranked.auroc), bootstrap_mean(ranked.average_precision))


def evaluate_quality(
    alignment: Alignment, *, features: int | None = None, progress: Progress | None = None
) -> tuple[Alignment, Quality]:
    """Compute the quality table of an alignment; return the alignment with its maximally activating sentences, and it.

    Args:
      alignment: fitted.
      features: how many atlas features to draw; None for the hundred of the paper where the atlas is the paper's, and
        for a hundred that are drawn where it is another.
      progress: called after every batch.

    Raises:
      AtlasError: if the text is too little to measure on.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import evaluate_quality  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> run, quality = evaluate_quality(run, features=50)  # doctest: +SKIP
      >>> quality.chance < 0.2  # doctest: +SKIP
      True
    """
    sae, seed = alignment.atlas.sae.config, alignment.settings.seed
    chosen, band = evaluated_features(sae, alignment.rate, count=features, seed=seed)
    quality, scored = translation_quality(
        alignment.stream("eval"), alignment.translations, chosen, band=band, progress=progress
    )
    return dataclasses.replace(alignment, top=scored.top), quality


class Measured(NamedTuple):
    """An alignment to be saved, measured or not.

    Attributes:
      alignment: with its maximally activating held-out sentences, if they were computed.
      quality: its quality table, None where there is none.
      fault: the exception, to be raised or shown once the alignment is saved.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import Measured  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> Measured(run, quality=None, fault=None).tables()[0].title  # doctest: +SKIP
      'Certificates'
    """

    alignment: Alignment
    quality: Quality | None
    fault: Exception | None

    def save(self, directory: Path, *, dtype: str = "float32") -> None:
        """Write the run and its quality table; arguments as of :meth:`Alignment.save`."""
        self.alignment.save(directory, dtype=dtype)
        if is_first():
            coverage(self.alignment).save(directory)
        if is_first() and self.quality is not None:
            write_json(directory / "tables" / "quality.json", self.quality.to_dict())

    def tables(self) -> list[Table]:
        """Return tables of the quality, the chosen members and the certificates, each where there is one."""
        certificates = certificate_table(self.alignment.translations)
        return alignment_tables(self.alignment, self.quality) + ([certificates] if certificates.rows else [])

    def raise_fault(self) -> None:
        """Raise the fault, unless it is that there was too little text."""
        if self.fault is not None and not isinstance(self.fault, AtlasError):
            raise self.fault


def measured(alignment: Alignment, *, progress: Progress | None = None) -> Measured:
    """Run :func:`evaluate_quality`, but return an exception instead of raising it.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import measured  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> measured(run).fault is None  # doctest: +SKIP
      True
    """
    faults: list[Exception] = []
    with kept(faults):
        return Measured(*evaluate_quality(alignment, progress=progress), None)
    with kept(faults):
        eval_half = alignment.stream("eval")
        subject = SentenceStream.from_texts(
            [alignment.subject], eval_half.texts, first=eval_half.first, max_length=eval_half.max_length
        )
        top = top_sentences(subject, top_k=TOP, progress=progress)
        alignment = dataclasses.replace(alignment, top=top)
    return Measured(alignment, None, faults[0])


def alignment_tables(alignment: Alignment, quality: Quality | None) -> list[Table]:
    """Return tables of the quality and of the chosen members, each where there is one."""
    choice = alignment.choice
    tables = [] if quality is None else [quality.table()]
    return tables + ([choice.table()] if choice is not None and choice.members else [])


def certificate_table(translations: Mapping[tuple[Site, str], Translation]) -> Table:
    """Tabulate the certificates of Procrustes solutions: how far each may be from the best one."""
    proofs = [(site, method, t.certificate) for (site, method), t in translations.items() if "gap" in t.certificate]
    numbers = lambda proof: ("none" if proof[k] is None else proof[k] for k in ("orthogonality", "gap"))
    return Table(
        "Certificates",
        (
            Column("site"), Column("method"), Column("solver"), Column("rank", "d"),
            Column("residual", ".1e"), Column("gap", ".1e"), Column("within tolerance"),
        ),
        [(str(site), method, p["solver"], p["rank"], *numbers(p), p["within_tolerance"]) for site, method, p in proofs],
        "what each Procrustes solution proves of itself. residual: how far its rows are from orthonormal; gap: "
        "how far, relatively, it can be from the best there is; within tolerance: both are within their tolerances",
    )  # fmt: skip


@contextlib.contextmanager
def kept(faults: list[Exception]) -> Iterator[None]:
    """Keep the exception of the block, so that earlier results can be saved first."""
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - the caller raises it
        faults.append(fault)
