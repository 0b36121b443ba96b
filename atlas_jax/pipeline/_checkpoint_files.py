"""One checkpoint on disk: a directory that is there as a whole or not at all, and knows when it is damaged."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from atlas_jax.errors import AtlasError
from atlas_jax.files import why_unwritable, write_json

MANIFEST, STATE = "manifest.json", "state"


class Record(NamedTuple):
    """What lies beside a saved state.

    Attributes:
      cursor: where the pass stood, as plain numbers.
      fingerprint: what the run is of.
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
    """A checkpoint that is not what was written; says which part."""


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
    """The record of a checkpoint.

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
    """A saved state, every array where that of ``like`` is.

    Raises:
      UnusableError: if a file of it is missing or is not what was written, or it has not the arrays of ``like``.
    """
    import orbax.checkpoint as ocp

    try:
        found = _digests(path / STATE)
    except OSError as e:
        raise UnusableError(str(e)) from e
    if wrong := sorted(name for name in record.files if found.get(name) != record.files[name]):
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
        digests = list(workers.map(_sha256, files))
    return {p.relative_to(directory).as_posix(): d for p, d in zip(files, digests, strict=True)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
