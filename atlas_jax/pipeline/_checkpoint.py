"""Checkpoints of a run: saved now and then, kept two deep, refused to another run, passed over when damaged."""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from atlas_jax.artifacts import differences
from atlas_jax.errors import AtlasError
from atlas_jax.interrupts import unhurried
from atlas_jax.pipeline._checkpoint_files import UnusableError, read_record, read_state, write_checkpoint
from atlas_jax.pipeline._pass import Cursor

State = TypeVar("State")
KEPT = 2  # the newest, and the one before it in case that one is damaged
EVERY = 300.0  # seconds
_log = logging.getLogger(__name__)


class Checkpoints:
    """The states of a run's passes in one directory, ``PASS/SENTENCES/`` each.

    That a run goes on from one, or passes a damaged one over, is logged.

    Attributes:
      directory: where they are.
      every: seconds between two of them.
      fingerprint: what the run is of; set before a pass begins, plain values only.
      unit: what ``Cursor.sentences`` counts, for what is logged.
    """

    def __init__(self, directory: str | Path, *, every: float = EVERY, unit: str = "sentences"):
        self.directory, self.every, self.unit = Path(directory).absolute(), every, unit
        self.fingerprint: Mapping[str, Any] = {}
        self._last = time.monotonic()
        self._saved: dict[str, Cursor] = {}

    def restore(self, name: str, like: State, total: int) -> tuple[Cursor, State]:
        """Where a pass goes on: the newest sound checkpoint, or the beginning with the state ``like``.

        Raises:
          AtlasError: if the checkpoint is of another run, naming the differences.
        """
        damaged, found = [], self._found(name)
        for path in found:
            try:
                record = read_record(path)
                self._check(record.fingerprint)
                state = read_state(path, record, like)
            except UnusableError as e:
                damaged.append(path)
                before = "there is none" if path == found[-1] else "going back to the one"
                _log.warning(f"the checkpoint '{path}' is damaged ({e}); {before} before it")
                continue
            cursor = self._saved[name] = Cursor(*record.cursor)
            _log.info(f"going on with the {name} pass after {cursor.sentences:,} of {total:,} {self.unit}")
            break
        else:
            cursor, state = Cursor(), like
            if damaged:
                _log.warning(f"no sound checkpoint of the {name} pass is left; beginning it again")
        for path in damaged:
            shutil.rmtree(path, ignore_errors=True)
        self._last = time.monotonic()
        return cursor, state

    def offer(self, name: str, cursor: Cursor, state: Any, *, stop: bool = False) -> None:
        """Save a state if it is time to.

        Args:
          name: of the pass.
          cursor: where it stands.
          state: complete, and not donated before this returns.
          stop: save it now and stop. In a run of several processes the first decides for all.

        Raises:
          KeyboardInterrupt: if ``stop``.
          AtlasError: as :meth:`save`.
        """
        late = time.monotonic() - self._last >= self.every
        save, stop = _agreed((late or stop, stop))
        if save:
            self.save(name, cursor, state)
        if stop:
            _log.info(f"saved the {name} pass after {cursor.sentences:,} {self.unit}")
            raise KeyboardInterrupt

    def save(self, name: str, cursor: Cursor, state: Any) -> None:
        """Save a state, and drop those before the last two.

        Raises:
          AtlasError: if it cannot be written; those before it stay.
        """
        if self._saved.get(name) == cursor:
            return
        path = self.directory / name / f"{cursor.sentences:012d}"
        with unhurried():
            write_checkpoint(path, state, list(cursor), self.fingerprint)
        for old in self._found(name)[KEPT:] if jax.process_index() == 0 else ():
            shutil.rmtree(old, ignore_errors=True)
        self._saved[name], self._last = cursor, time.monotonic()

    def exist(self) -> bool:
        """Whether there is one of any pass."""
        return any(path.is_dir() and path.name.isdigit() for path in self.directory.glob("*/*"))

    def discard(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _found(self, name: str) -> list[Path]:
        return sorted((p for p in (self.directory / name).glob("*") if p.name.isdigit()), reverse=True)

    def _check(self, theirs: Mapping[str, Any]) -> None:
        if changed := differences(theirs, self.fingerprint):
            raise AtlasError(
                f"'{self.directory}' holds an unfinished run of something else: {changed}; "
                "give what it was started with, or --restart to discard it"
            )


def _agreed(decisions: tuple[bool, bool]) -> tuple[bool, bool]:
    """What the first process decided, in all of them."""
    if jax.process_count() == 1:
        return decisions
    return tuple(multihost_utils.broadcast_one_to_all(np.array(decisions)).tolist())
