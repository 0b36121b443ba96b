"""Progress on standard error, results on standard output as tables or JSON."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

out = Console()
err = Console(stderr=True)


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
    err.print(f"[dim]{text}[/dim]")


@contextmanager
def stages() -> Iterator[Callable[..., Callable[[int, int, int], None]]]:
    """Progress bars of named passes, each with sentences (or another unit) and tokens a second and the time left."""
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
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
