"""Ctrl-C and SIGTERM: work is saved where it can be, and the process ends in seconds.

In Python both act as always, except that :func:`postponed_interrupts` lets a pass reach a point where its state is
complete. The command line takes them over with :func:`take_over`. No exception is raised then in the main thread,
which may be inside a callback that swallows it, or a compilation of a minute: another thread waits for the signal
and ends the process, at once outside of such a pass and after :data:`GRACE` seconds inside of one.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0  # seconds a pass has to reach a point where its state is complete; saving it may take longer

_cleanups: list[Callable[[], None]] = []
_passes: "list[_Postponed]" = []
_taken_over = False
_received: int = signal.SIGINT
_farewell: Callable[[], str] = lambda: "interrupted"


class _Postponed:
    """A block that signals do not interrupt."""

    def __init__(self) -> None:
        self.came, self.heeded, self.saving = threading.Event(), threading.Event(), False

    def stopped(self) -> bool:
        """Return True if a signal came; the block then saves its state, however long that takes."""
        if self.came.is_set():
            self.heeded.set()
        return self.came.is_set()


@contextlib.contextmanager
def postponed_interrupts() -> Iterator[Callable[[], bool]]:
    """Postpone Ctrl-C and SIGTERM: the function given to the block then returns True; a second signal acts at once.

    Signals reach the main thread alone; in another one the function returns False.

    Raises:
      KeyboardInterrupt: at the end of the block, if a signal came and the block did not stop for it.

    Example:
      >>> from atlas_jax.interrupts import postponed_interrupts
      >>> with postponed_interrupts() as stopped:
      ...     steps = [step for step in range(3) if not stopped()]
      >>> steps
      [0, 1, 2]
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    block = _Postponed()
    with _listed(block) if _taken_over else _handled(block):
        yield block.stopped
    if block.came.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _listed(block: _Postponed) -> Iterator[None]:
    _passes.append(block)
    try:
        yield
    finally:
        _passes.remove(block)
        block.heeded.set()


@contextlib.contextmanager
def _handled(block: _Postponed) -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in SIGNALS}

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def postpone(number: int, frame: FrameType | None) -> None:
        block.came.set()
        restore()

    for s in SIGNALS:
        signal.signal(s, postpone)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Let a signal wait for the end of the block, which saves the state of the pass around it.

    Example:
      >>> from atlas_jax.interrupts import postponed_interrupts, unhurried
      >>> with postponed_interrupts() as stopped:
      ...     with unhurried():
      ...         saved = not stopped()
      >>> saved
      True
    """
    for block in _passes:
        block.saving = True
    try:
        yield
    finally:
        for block in _passes:
            block.saving = False


@contextlib.contextmanager
def before_leaving(cleanup: Callable[[], None]) -> Iterator[None]:
    """Call ``cleanup`` if a signal ends the process while the block runs.

    Example:
      >>> from atlas_jax.interrupts import before_leaving
      >>> with before_leaving(lambda: print("temporary files removed")):
      ...     print("at work")
      at work
    """
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


def say_at_end(farewell: Callable[[], str]) -> None:
    """Set the sentence that is printed when a signal ends the process.

    Example:
      >>> from atlas_jax.interrupts import say_at_end
      >>> say_at_end(lambda: "interrupted")
    """
    global _farewell
    _farewell = farewell


def take_over() -> None:
    """Start a thread that waits for signals and ends the process; call it once, before anything slow.

    Example:
      >>> from atlas_jax.interrupts import take_over
      >>> take_over()  # doctest: +SKIP
    """
    global _taken_over
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    block, unblock = (partial(signal.pthread_sigmask, how, SIGNALS) for how in (signal.SIG_BLOCK, signal.SIG_UNBLOCK))
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=_give_back)
    threading.Thread(target=_wait_for_signals, args=(reads,), name="signals", daemon=True).start()
    _taken_over = True
    take_back()


def take_back() -> None:
    """Undo a library's changes to the signals since :func:`take_over`, such as those of JAX's distributed runtime.

    Example:
      >>> from atlas_jax.interrupts import take_back
      >>> take_back()  # does nothing in a process whose signals were not taken over
    """
    for s in SIGNALS if _taken_over else ():
        signal.signal(s, lambda number, frame: None)


def _give_back() -> None:
    """Restore signals in a forked process, where they must not end the parent."""
    global _taken_over
    _taken_over = False
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _wait_for_signals(pipe: int) -> None:
    global _received
    while read := os.read(pipe, 1):
        if read[0] not in SIGNALS:
            continue
        block, _received = _passes[-1] if _passes else None, read[0]
        if block is None or block.came.is_set():
            leave()
        block.came.set()
        _say("stopping as soon as the state is saved; once more to stop at once")
        threading.Thread(target=_leave_late, args=(block,), daemon=True).start()


def _leave_late(block: _Postponed) -> None:
    while not block.heeded.wait(GRACE):
        if not block.saving:
            leave()


def leave() -> None:
    """End the process as after a signal: helpers stopped, temporary files removed, a sentence on standard error.

    The interpreter is not shut down, for that could wait for work in progress. Does nothing unless signals were taken
    over: only a process of the command line ends.

    Example:
      >>> from atlas_jax.interrupts import leave
      >>> leave()  # does nothing in a process whose signals were not taken over
    """
    if not _taken_over:
        return
    try:
        if multiprocessing := sys.modules.get("multiprocessing"):
            for child in multiprocessing.active_children():
                child.kill()
        for cleanup in reversed(_cleanups):
            with contextlib.suppress(OSError):
                cleanup()
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
        _say(_farewell())
    finally:
        os._exit(128 + _received)


def _say(sentence: str) -> None:
    """Print without Python's own streams, whose locks another thread may hold."""
    os.write(2, f"atlas-jax: {sentence}\n".encode())
