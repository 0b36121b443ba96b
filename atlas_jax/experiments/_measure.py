"""An alignment with its quality table, in such a way that what fails after the pass does not lose the run."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._quality import BAND, Quality, choose_features, translation_quality
from atlas_jax.files import write_json
from atlas_jax.pipeline import Alignment, Pass, top_sentences
from atlas_jax.processes import is_first
from atlas_jax.progress import Progress

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
            write_json(directory / "tables" / "quality.json", self.quality.as_json())

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


@contextlib.contextmanager
def kept(faults: list[Exception]) -> Iterator[None]:
    """Keep what the block raises, so that what was computed before it can be saved first."""
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - the caller raises it
        faults.append(fault)
