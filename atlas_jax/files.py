"""What goes wrong with files, in a sentence: those that cannot be written, and those that are damaged."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from atlas_jax.errors import AtlasError, DamagedError, UnwritableError

_FULL = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO"  # their words are looked for in errors of libraries too
_NO_PLACE = "ENOTDIR EEXIST EISDIR ENOENT ENAMETOOLONG EBUSY"
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RecursionError)


@contextlib.contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Say in a sentence why nothing can be written to ``path``, when that ends the block.

    Raises:
      UnwritableError: for a full disk, a place that does not exist or may not be written to, and the like.
    """
    try:
        yield
    except UnwritableError as e:  # what is written in parts is named as a whole
        raise UnwritableError(path, e.reason) from e
    except AtlasError:
        raise
    except Exception as e:
        if (reason := why_unwritable(e)) is None or _is_elsewhere(e, Path(path).resolve()):
            raise
        raise UnwritableError(path, reason) from e


def _is_elsewhere(error: Exception, place: Path) -> bool:
    """Whether an error names files, and none of them is the place, above it, or begins with its name."""
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    files = [Path(name).resolve() for name in names if isinstance(name, str)]
    ours = lambda file: (
        file in place.parents or str(file).startswith((str(place), str(place.parent / f".{place.name}")))
    )
    return bool(files) and not any(map(ours, files))


def why_unwritable(error: Exception) -> str | None:
    """The system's words for what kept a file from being written, None for a fault of another kind.

    Libraries raise errors of their own, with the system's words or nothing but a count in them.

    Example:
      >>> why_unwritable(OSError("4096 requested and 512 written"))
      'No space left on device'
    """
    numbers = lambda names: [getattr(errno, name) for name in names.split()]
    if isinstance(error, OSError) and error.errno in numbers(f"{_FULL} {_NO_PLACE}"):
        return os.strerror(error.errno)
    if re.search(r"\d+ requested and \d+ written", str(error)):  # numpy
        return os.strerror(errno.ENOSPC)
    return next((words for words in map(os.strerror, numbers(_FULL)) if words in str(error)), None)


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Say in a sentence which file is damaged, when what it holds ends the block.

    Args:
      path: the file; where the block names one itself, that is the one.
      remedy: what to do about it.

    Raises:
      DamagedError: for whatever a missing or damaged file makes its reader raise.

    Example:
      >>> with reading(Path("rate.npy"), "align again"):
      ...     np.load("rate.npy")
      Traceback (most recent call last):
      atlas_jax.errors.DamagedError: 'rate.npy' is missing; align again
    """
    try:
        yield
    except DamagedError as e:
        raise DamagedError(e.path, e.reason, remedy) from e
    except FileNotFoundError as e:
        raise DamagedError(path, "missing", remedy) from e
    except (*_DAMAGE, SafetensorError) as e:
        what = f"it has no {e}" if isinstance(e, KeyError) else " ".join(str(e).split()) or type(e).__name__
        raise DamagedError(path, f"damaged ({what})", remedy) from e


def read_json(path: Path, remedy: str = "run the command that writes it again") -> Any:
    """Read JSON.

    Raises:
      DamagedError: if the file is missing or damaged, with the remedy.

    Example:
      >>> read_json(SUBJECT / "config.json")["model_type"]
      'llama'
    """
    with reading(path, remedy):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def read_object(
    path: Path, missing: dict[str, Any] | None = None, remedy: str = "download the file again"
) -> dict[str, Any]:
    """Read a JSON object; ``missing`` stands for a file that is not there.

    Raises:
      DamagedError: if the file is not there and nothing stands for it, is damaged, or holds something else.

    Example:
      >>> read_object(SUBJECT / "nothing.json", missing={})
      {}
    """
    if missing is not None and not path.is_file():
        return missing
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise DamagedError(path, "damaged (it holds no JSON object)", remedy)
    return content


def write_json(path: Path, content: Any, *, sort_keys: bool = True) -> None:
    """Write JSON, with sorted keys so that equal contents are equal files, unless they have an order of their own.

    Example:
      >>> write_json(tmp / "generation_config.json", {"eos_token_id": 2}, sort_keys=False)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
