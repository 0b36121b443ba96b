"""What goes wrong with files, in a sentence: those that cannot be written, and those that are damaged."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from atlas_jax.errors import AtlasError, DamagedError

_FULL = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO"  # their words are looked for in errors of libraries too
_NO_PLACE = "ENOTDIR EEXIST EISDIR ENOENT ENAMETOOLONG EBUSY"
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RecursionError)


@contextlib.contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Say in a sentence why nothing can be written to ``path``, when that ends the block.

    Raises:
      AtlasError: for a full disk, a place that does not exist or may not be written to, and the like.
    """
    try:
        yield
    except AtlasError:
        raise
    except Exception as e:
        if (reason := why_unwritable(e)) is None or _is_elsewhere(e, Path(path).resolve()):
            raise
        raise AtlasError(f"'{path}' cannot be written ({reason}); make room or choose another place") from e


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
