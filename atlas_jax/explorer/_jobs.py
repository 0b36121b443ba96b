"""One queue of generations: one runs, the others wait, and each can be cancelled."""

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from atlas_jax.errors import AtlasError

Emit = Callable[[str, dict[str, Any]], None]


class CancelledError(Exception):
    """Raised within a job that was cancelled."""


class BusyError(AtlasError):
    """Refusal of a job because too many wait."""


class Job:
    """A generation that waits or runs.

    Attributes:
      id: its number.
      emit: called with the name and the content of everything that happens to it.
    """

    def __init__(self, number: int, emit: Emit):
        self.id, self.emit, self._cancelled = number, emit, threading.Event()

    def cancel(self) -> None:
        """Have it end at its next token, or before it begins."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise :class:`CancelledError` if it was cancelled."""
        if self._cancelled.is_set():
            raise CancelledError


class Jobs:
    """Jobs, run one after another by a thread.

    Example:
      >>> from atlas_jax.explorer._jobs import Jobs
      >>> jobs, seen = Jobs(most=2), []
      >>> job, ahead = jobs.submit(lambda job: job.emit("tokens", {}), lambda name, content: seen.append(name))
      >>> jobs.close()
      >>> ahead, seen
      (0, ['started', 'tokens', 'done'])
    """

    def __init__(self, most: int):
        self._most, self._numbers, self._lock = most, itertools.count(1), threading.Lock()
        self._there: dict[int, Job] = {}
        self._executor = ThreadPoolExecutor(1, "generation")

    def submit(self, work: Callable[[Job], None], emit: Emit) -> tuple[Job, int]:
        """Queue a job; return it with the number of jobs ahead of it.

        Raises:
          BusyError: if too many wait already.
        """
        with self._lock:
            if (ahead := len(self._there)) > self._most:
                raise BusyError(f"{ahead} generations wait or run already; try again when some are done")
            job = Job(next(self._numbers), emit)
            self._there[job.id] = job
        self._executor.submit(self._run, job, work)
        return job, ahead

    def cancel(self, number: int) -> bool:
        """Cancel a job; false where there is none of that number, which may be done by now."""
        with self._lock:
            job = self._there.get(number)
        if job is not None:
            job.cancel()
        return job is not None

    def close(self) -> None:
        """Take no more jobs, and wait for those there are."""
        self._executor.shutdown()

    def cancel_all(self) -> None:
        """Cancel all there are."""
        with self._lock:
            for job in self._there.values():
                job.cancel()

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            name, content = _outcome(job, work)
        finally:
            with self._lock:
                del self._there[job.id]
        job.emit(name, content)


def _outcome(job: Job, work: Callable[[Job], None]) -> tuple[str, dict[str, Any]]:
    try:
        job.check()
        job.emit("started", {})
        work(job)
    except CancelledError:
        return "cancelled", {}
    except AtlasError as error:
        return "error", {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - the next job has to run, and the page says what became of this one
        logging.getLogger(__name__).exception("a generation failed")
        return "error", {"error": f"the generation failed ({type(error).__name__}: {error})"}
    return "done", {}
