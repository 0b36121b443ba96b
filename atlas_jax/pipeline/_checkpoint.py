"""Checkpoints of a pass: each a directory that is there as a whole or not at all, and knows when it is damaged."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from atlas_jax.errors import AtlasError
from atlas_jax.files import differences, sha256, why_unwritable, write_json
from atlas_jax.interrupts import unhurried
from atlas_jax.pipeline._stream import Cursor

MANIFEST, STATE = "manifest.json", "state"
State = TypeVar("State")
KEPT = 2  # the newest, and the one before it in case that one is damaged
EVERY = 300.0  # seconds
_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """The record beside a saved state.

    Attributes:
      cursor: of the pass, as plain numbers.
      fingerprint: of the run.
      files: SHA-256 of every file of the state, by its path in it.
    """

    cursor: list[int]
    fingerprint: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the record itself."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()


class UnusableError(Exception):
    """A checkpoint that differs from what was written; the message names the part."""


def write_checkpoint(path: Path, state: Any, cursor: list[int], fingerprint: Mapping[str, Any]) -> None:
    """Write a state through Orbax with a record of its files; ``path`` appears when all of it is there.

    In a run of several processes each calls this, and writes its own shards.

    Raises:
      AtlasError: if it cannot be written; nothing is left of it then.
    """
    import orbax.checkpoint as ocp

    new = path.with_name(f"{path.name}.new")
    try:
        if jax.process_index() == 0:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        ocp.PyTreeCheckpointer(use_compression=False).save(new / STATE, _named(state))
        if jax.process_index() == 0:
            record = Record(cursor, fingerprint, _digests(new / STATE))
            write_json(new / MANIFEST, {**record._asdict(), "digest": record.digest})
            os.replace(new, path)
    except Exception as e:
        shutil.rmtree(new, ignore_errors=True)
        if (reason := why_unwritable(e)) is None:
            raise
        again = "put that right and give the same command again"
        if any(other.name.isdigit() for other in path.parent.glob("*")):
            again += ", which goes on from the one before it"
        raise AtlasError(f"no checkpoint could be written to '{path.parent}' ({reason}); {again}") from e


def read_record(path: Path) -> Record:
    """Read the record of a checkpoint.

    Raises:
      UnusableError: if it is not what was written.
    """
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        digest = content.pop("digest")
        record = Record(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UnusableError(f"{MANIFEST}: {e}") from e
    if record.digest != digest:
        raise UnusableError(MANIFEST)
    return record


def read_state(path: Path, record: Record, like: Any) -> Any:
    """Read a saved state, every array placed where that of ``like`` is.

    Raises:
      UnusableError: if a file of it is missing or is not what was written, or it has not the arrays of ``like``.
    """
    import orbax.checkpoint as ocp

    try:
        digests = _digests(path / STATE)
    except OSError as e:
        raise UnusableError(str(e)) from e
    if wrong := sorted(name for name in record.files if digests.get(name) != record.files[name]):
        raise UnusableError(f"{STATE}/{wrong[0]}")
    named = _named(like)
    if ocp.PyTreeCheckpointer().metadata(path / STATE).item_metadata.tree.keys() != named.keys():
        raise UnusableError("its state is that of another version of atlas-jax")
    options = ocp.checkpoint_utils.construct_restore_args(named)
    restored = ocp.PyTreeCheckpointer().restore(path / STATE, item=named, restore_args=options)
    return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in named])


def _named(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    with ThreadPoolExecutor() as workers:
        digests = list(workers.map(sha256, files))
    return {p.relative_to(directory).as_posix(): d for p, d in zip(files, digests, strict=True)}


class Checkpoints:
    """The states of a run's passes in one directory, ``PASS/SENTENCES/`` each.

    Continuing from one, and passing over a damaged one, is logged.

    Attributes:
      directory: of the checkpoints.
      every: seconds between two of them.
      fingerprint: of the run; set before a pass begins, plain values only.
      unit: of ``Cursor.sentences``, for the log.

    Example:
      >>> import jax.numpy as jnp
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.pipeline import Checkpoints, Cursor
      >>> tmp = Path(tempfile.mkdtemp())
      >>> checkpoints = Checkpoints(tmp)
      >>> checkpoints.save("fit", Cursor(sentences=8), {"total": jnp.ones(2)})
      >>> cursor, state = checkpoints.restore("fit", {"total": jnp.zeros(2)}, total=16)
      >>> cursor.sentences, state["total"].tolist()
      (8, [1.0, 1.0])
    """

    def __init__(self, directory: str | Path, *, every: float = EVERY, unit: str = "sentences"):
        self.directory, self.every, self.unit = Path(directory).absolute(), every, unit
        self.fingerprint: Mapping[str, Any] = {}
        self._last = time.monotonic()
        self._saved: dict[str, Cursor] = {}

    def restore(self, name: str, like: State, total: int) -> tuple[Cursor, State]:
        """Return where a pass continues: the newest sound checkpoint, or the beginning with the state ``like``.

        Raises:
          AtlasError: if the checkpoint is of another run, naming the differences.
        """
        damaged, newest_first = [], self._paths(name)
        for path in newest_first:
            try:
                record = read_record(path)
                self._check(record.fingerprint)
                state = read_state(path, record, like)
            except UnusableError as e:
                damaged.append(path)
                before = "there is none" if path == newest_first[-1] else "going back to the one"
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
        for old in self._paths(name)[KEPT:] if jax.process_index() == 0 else ():
            shutil.rmtree(old, ignore_errors=True)
        self._saved[name], self._last = cursor, time.monotonic()

    def of_part(self, name: str, **facts: Any) -> "Checkpoints":
        """Return checkpoints of the passes of a part of the run, in a directory of their own here.

        Args:
          name: of the part.
          facts: plain values that tell it from other parts of that name, for its fingerprint.
        """
        part = Checkpoints(self.directory / name, every=self.every, unit=self.unit)
        part.fingerprint = dict(self.fingerprint) | facts
        return part

    def exist(self) -> bool:
        """Return true if there is one of any pass, or of any pass of a part."""
        there = (path for depth in ("*/*", "*/*/*") for path in self.directory.glob(depth))
        return any(path.is_dir() and path.name.isdigit() for path in there)

    def discard(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _paths(self, name: str) -> list[Path]:
        return sorted((p for p in (self.directory / name).glob("*") if p.name.isdigit()), reverse=True)

    def _check(self, theirs: Mapping[str, Any]) -> None:
        if changed := differences(theirs, self.fingerprint):
            raise AtlasError(
                f"'{self.directory}' holds an unfinished run of something else: {changed}; "
                "give what it was started with, or --restart to discard it"
            )


def _agreed(decisions: tuple[bool, bool]) -> tuple[bool, bool]:
    """Return the decision of the first process, in all of them."""
    if jax.process_count() == 1:
        return decisions
    return tuple(multihost_utils.broadcast_one_to_all(np.array(decisions)).tolist())
