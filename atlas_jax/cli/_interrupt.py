"""Ctrl-C that lets the work at hand be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from atlas_jax.cli._console import err


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within the block, a first Ctrl-C only makes the given function true; a second one interrupts at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        err.print("stopping after this step; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
