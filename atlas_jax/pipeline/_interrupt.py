"""Signals that wait until the state of a pass is whole."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def postponed_interrupts() -> Iterator[Callable[[], bool]]:
    """While the block runs, Ctrl-C and SIGTERM only make the function it gets return True; a second one acts at once.

    Signals reach the main thread alone; in another one the function returns False.

    Raises:
      KeyboardInterrupt: at the end of the block, if a signal came and the block did not stop for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = {s: signal.getsignal(s) for s in SIGNALS}

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def postpone(number: int, frame: object) -> None:
        came.set()
        restore()

    for s in SIGNALS:
        signal.signal(s, postpone)
    try:
        yield came.is_set
    finally:
        restore()
    if came.is_set():
        raise KeyboardInterrupt
