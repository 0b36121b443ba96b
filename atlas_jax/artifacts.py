"""Run directories: complete under their final name, or not there at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atlas_jax.errors import AtlasError

RUN = "run.json"
LOCK = "lock"
UNWRITABLE = {getattr(errno, n) for n in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST")}


def partial_directory(path: str | Path) -> Path:
    """Where a run is made before it is at ``path``: beside it, under its name with ``.partial`` at the end.

    Checkpoints are kept there too. It is gone once the run is complete.

    Example:
      >>> partial_directory("/runs/llama").as_posix()
      '/runs/llama.partial'
    """
    target = Path(path).absolute()
    return target.with_name(f"{target.name}.partial")


@contextlib.contextmanager
def run_directory(path: str | Path) -> Iterator[Path]:
    """A new directory to write a run into, moved to ``path`` when the block ends without an error.

    A run already at ``path`` is replaced, and kept if the block fails. Until the end everything lies in
    :func:`partial_directory`, which only one process at a time may use.

    Raises:
      AtlasError: if something that is not a run is at ``path``, it cannot be written, the disk is full, or another
        process is making a run there.

    Example:
      >>> with run_directory(tmp / "run") as directory:
      ...     write_json(directory / RUN, {"seed": 0})
      >>> (tmp / "run" / RUN).is_file()
      True
    """
    target, partial = Path(path).absolute(), partial_directory(path)
    if target.exists() and not (target / RUN).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise AtlasError(f"'{path}' exists and is not a run; choose another place with --out")
    with _writable(path), _alone(partial):
        directory = partial / "run"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        try:
            yield directory
            if target.exists():
                shutil.rmtree(partial / "old", ignore_errors=True)
                os.replace(target, partial / "old")
            os.replace(directory, target)
            shutil.rmtree(partial)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            if partial.is_dir() and [p.name for p in partial.iterdir()] == [LOCK]:
                shutil.rmtree(partial)


@contextlib.contextmanager
def _writable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        raise AtlasError(f"'{path}' cannot be written ({e.strerror}); make room or choose another --out") from e


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a directory's lock, which ends with the process however that ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise AtlasError(f"another process is making the run in '{directory}'; wait for it") from e
        yield


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal contents are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
      AtlasError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise AtlasError(f"{path} cannot be read ({e}); run the command that writes it again") from e


def directory_hash(path: str | Path) -> str:
    """A digest of the names and contents of all files below a directory.

    Example:
      >>> directory_hash(tmp) == directory_hash(tmp)
      True
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
