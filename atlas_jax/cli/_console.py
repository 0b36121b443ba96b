"""Progress on standard error, results on standard output as tables or JSON."""

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bars,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from atlas_jax.cli._layout import render
from atlas_jax.progress import Progress
from atlas_jax.table import Table

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_UNPAIRED = re.compile(r"[\ud800-\udfff]")


def plain(text: str) -> str:
    r"""Remove control characters, and put U+FFFD for halves of surrogate pairs, so that a terminal only shows a text.

    Example:
      >>> from atlas_jax.cli._console import plain
      >>> plain("a \x1b[31mdog\x00")
      'a [31mdog'
    """
    return _UNPAIRED.sub("\ufffd", _CONTROL.sub("", text))


class _Console(Console):
    """A console that prints labels, sentences and generated text as they are: no markup, no emoji codes, no escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with :func:`plain` text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


out = _Console()
err = _Console(stderr=True)
WIDE = 100_000  # characters: wider than any table


def emit(as_json: bool, data: Any, *tables: Table) -> None:
    """Print plain JSON for machines, or tables for people."""
    if as_json and not out.quiet:
        out.file.write(json.dumps(data, indent=1, default=str) + "\n")
    elif not as_json:
        for table in tables:
            out.print(render(table, out.width))


@contextmanager
def whole_tables() -> Iterator[None]:
    """Print tables as wide as they are."""
    before, out.width = out.width, WIDE
    try:
        yield
    finally:
        out.width = before


def silence() -> None:
    """Print nothing from now on, as all but the first process of a run do."""
    out.quiet = err.quiet = True


def keep_standard_output() -> None:
    """Leave standard output to this module: prints of libraries (Gloo) go to standard error."""
    out.file = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)


def note(text: str) -> None:
    """Print a line about the progress of the work."""
    err.print(text, style="dim")


def notes(texts: Iterable[str | None]) -> None:
    """Several of them, a line each; None is nothing to say."""
    for text in texts:
        if text is not None:
            note(text)


def warn(text: str) -> None:
    """Print a warning."""
    err.print(Text.assemble(("WARNING", "bold red"), " ", text), highlight=False)


class _Notes(logging.Handler):
    """A log handler that prints records with :func:`note`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        note(record.getMessage())


@contextmanager
def log_shown() -> Iterator[None]:
    """Print the log of the package, from level INFO up, as notes."""
    logger, notes = logging.getLogger("atlas_jax"), _Notes()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)


@contextmanager
def progress_bars(unit: str = "sentences") -> Iterator[Progress]:
    """Show progress bars, one a stage, each with the units and tokens a second and the time left."""
    columns = (
        TextColumn("{task.description:12}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err) as bars:
        begun: dict[str, tuple[TaskID, float, int, int]] = {}

        def progress(stage: str, done: int, total: int, tokens: int) -> None:
            if stage not in begun or done <= begun[stage][2]:
                # A pass may resume from a checkpoint: rates and the time left count from there.
                task = bars.add_task(stage, total=total, completed=done, rate="")
                begun[stage] = task, time.monotonic(), done, tokens
                return
            task, start, *before = begun[stage]
            if seconds := time.monotonic() - start:
                speed = (done - before[0]) / seconds, (tokens - before[1]) / seconds
                bars.update(task, completed=done, rate=f"{speed[0]:,.0f} {unit}/s  {speed[1]:,.0f} tokens/s")

        yield progress
