"""An alignment with its quality table, in such a way that what fails after the pass does not lose the run."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._quality import BAND, Quality, choose_features, translation_quality
from atlas_jax.files import write_json
from atlas_jax.pipeline import Alignment, Pass, top_sentences
from atlas_jax.processes import is_first
from atlas_jax.progress import Progress
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.types import Site

FEATURES, TOP = 100, 5


def measure(
    alignment: Alignment, *, features: int = FEATURES, progress: Progress | None = None
) -> tuple[Alignment, Quality]:
    """The quality table of an alignment, and the alignment with its maximally activating held-out sentences.

    Raises:
      AtlasError: if the text is too little to measure on.
    """
    chosen = choose_features(alignment.rate, count=features, band=BAND, seed=alignment.settings.seed)
    quality, scored = translation_quality(
        alignment.stream("eval"), alignment.translations, chosen, band=BAND, progress=progress
    )
    return dataclasses.replace(alignment, top=scored.top), quality


class Measured(NamedTuple):
    """An alignment to be saved, whether or not it could be measured.

    Attributes:
      alignment: with its maximally activating held-out sentences, if they were found.
      quality: its quality table, None where there is none.
      fault: what went wrong, to be raised or shown once the alignment is saved.
    """

    alignment: Alignment
    quality: Quality | None
    fault: Exception | None

    def save(self, directory: Path, *, dtype: str = "float32") -> None:
        """Write the run and its quality table; arguments as of :meth:`Alignment.save`."""
        self.alignment.save(directory, dtype=dtype)
        if is_first() and self.quality is not None:
            write_json(directory / "tables" / "quality.json", self.quality.to_dict())

    def tables(self) -> list[Table]:
        """The quality table, the members that were chosen and the certificates, each where there is one."""
        choice, certificates = self.alignment.choice, certificate_table(self.alignment.translations)
        tables = [] if self.quality is None else [self.quality.table()]
        tables += [choice.table()] if choice is not None and choice.members else []
        return tables + ([certificates] if certificates.rows else [])

    def raise_fault(self) -> None:
        """Raise what went wrong, unless it is that there was too little text."""
        if self.fault is not None and not isinstance(self.fault, AtlasError):
            raise self.fault


def measured(alignment: Alignment, *, progress: Progress | None = None) -> Measured:
    """As :func:`measure`, but nothing that goes wrong is raised."""
    faults: list[Exception] = []
    with kept(faults):
        return Measured(*measure(alignment, progress=progress), None)
    with kept(faults):
        eval_half = alignment.stream("eval")
        subject = Pass.of([alignment.subject], eval_half.texts, first=eval_half.first, max_length=eval_half.max_length)
        top = top_sentences(subject, top_k=TOP, progress=progress)
        alignment = dataclasses.replace(alignment, top=top)
    return Measured(alignment, None, faults[0])


def certificate_table(translations: Mapping[tuple[Site, str], Translation]) -> Table:
    """How far each Procrustes solution may be from the best one, by its own certificate."""
    proofs = [(site, method, t.certificate) for (site, method), t in translations.items() if "gap" in t.certificate]
    numbers = lambda proof: ("none" if proof[k] is None else proof[k] for k in ("orthogonality", "gap"))
    return Table(
        "Certificates",
        (
            Column("site"), Column("method"), Column("solver"), Column("rank", "d"),
            Column("residual", ".1e"), Column("gap", ".1e"), Column("accepted"),
        ),
        [(str(site), method, p["solver"], p["rank"], *numbers(p), p["accepted"]) for site, method, p in proofs],
        "what each Procrustes solution proves of itself. residual: how far its rows are from orthonormal; gap: "
        "how far, relatively, it can be from the best there is; accepted: both are within their tolerances",
    )  # fmt: skip


@contextlib.contextmanager
def kept(faults: list[Exception]) -> Iterator[None]:
    """Keep what the block raises, so that what was computed before it can be saved first."""
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - the caller raises it
        faults.append(fault)
