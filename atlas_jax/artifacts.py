"""Run directories: complete under their final name, or not there at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atlas_jax.errors import AtlasError

RUN = "run.json"


@contextlib.contextmanager
def run_directory(path: str | Path) -> Iterator[Path]:
    """A new directory to write a run into, moved to ``path`` when the block ends without an error.

    A run already at ``path`` is replaced, and kept if the block fails.

    Raises:
      AtlasError: if something that is not a run is at ``path``, or it cannot be written.

    Example:
      >>> with run_directory(tmp / "run") as directory:
      ...     write_json(directory / RUN, {"seed": 0})
      >>> (tmp / "run" / RUN).is_file()
      True
    """
    target = Path(path).absolute()
    if target.exists() and not (target / RUN).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise AtlasError(f"'{path}' exists and is not a run; choose another place with --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as e:
        raise AtlasError(f"'{path}' cannot be written ({e.strerror}); choose another place with --out") from e
    try:
        yield partial
        partial.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
