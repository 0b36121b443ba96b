"""Progress on standard error, results on standard output as tables or JSON."""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_UNPAIRED = re.compile(r"[\ud800-\udfff]")


def plain(text: str) -> str:
    r"""Text that a terminal only shows: without control characters, and halves of surrogate pairs as U+FFFD.

    Example:
      >>> plain("a \x1b[31mdog\x00")
      'a [31mdog'
    """
    return _UNPAIRED.sub("\ufffd", _CONTROL.sub("", text))


class _Console(Console):
    """A console that prints labels, sentences and generated text as they are: no markup, no emoji codes, no escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, with :func:`plain` text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


out = _Console()
err = _Console(stderr=True)


def emit(as_json: bool, data: Any, render: Callable[[], Any]) -> None:
    """Print plain JSON for machines, or a rendered table for people."""
    if as_json and not out.quiet:
        out.file.write(json.dumps(data, indent=1, default=str) + "\n")
    elif not as_json:
        out.print(render())


def silence() -> None:
    """Print nothing from here on: in a run of several processes, all but the first."""
    out.quiet = err.quiet = True


def keep_standard_output() -> None:
    """Leave standard output to this module: what libraries print there (Gloo does) goes to standard error."""
    out.file = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)


def note(text: str) -> None:
    """A line about what is going on."""
    err.print(text, style="dim")


def warn(text: str) -> None:
    """A line about what is wrong."""
    err.print(Text.assemble(("WARNING", "bold red"), " ", text), highlight=False)


@contextmanager
def stages() -> Iterator[Callable[..., Callable[[int, int, int], None]]]:
    """Progress bars of named passes, each with sentences (or another unit) and tokens a second and the time left."""
    columns = (
        TextColumn("{task.description:12}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bars:

        def stage(name: str, unit: str = "sentences") -> Callable[[int, int, int], None]:
            task, start = bars.add_task(name, total=None, rate=""), None

            def advance(done: int, total: int, tokens: int) -> None:
                nonlocal start
                if start is None:  # a pass may go on from a checkpoint: rates and the time left count from there
                    start = time.monotonic(), done, tokens
                    bars.reset(task, completed=done, total=total)
                elif seconds := time.monotonic() - start[0]:
                    speed = (done - start[1]) / seconds, (tokens - start[2]) / seconds
                    rate = f"{speed[0]:,.0f} {unit}/s  {speed[1]:,.0f} tokens/s"
                    bars.update(task, completed=done, rate=rate)

            return advance

        yield stage
