"""Files and directories: damage is reported in words, and all is written whole or not at all."""

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from atlas_jax.errors import AtlasError, DamagedError, UnwritableError
from atlas_jax.interrupts import before_leaving

_FULL = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO"  # their words are looked for in errors of libraries too
_NO_PLACE = "ENOTDIR EEXIST EISDIR ENOENT ENAMETOOLONG EBUSY"
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RecursionError)
RUN = "run.json"
LOCK = "lock"
_CORPUS = ("corpus.json", "fit.arrow", "eval.arrow")
_SAE = ("training.json", RUN, "curves.png", "params.npz", "sae.json", "saelens/cfg.json", "saelens/sae_*.safetensors")
_MODEL = ("model/*.json", "model/*.safetensors", "model/*.model", "model/*.jinja")


@contextlib.contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Raise, in one sentence, the reason why nothing can be written to ``path``, when that ends the block.

    Raises:
      UnwritableError: for a full disk, a place that does not exist or may not be written to, and the like.

    Example:
      >>> import errno
      >>> from atlas_jax.errors import UnwritableError
      >>> from atlas_jax.files import writable
      >>> try:
      ...     with writable("/runs/llama"):
      ...         raise OSError(errno.ENOSPC, "No space left on device")
      ... except UnwritableError as e:
      ...     print(e.reason)
      No space left on device
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
    """Return true if an error names files, and none of them is the place, above it, or begins with its name."""
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    files = [Path(name).resolve() for name in names if isinstance(name, str)]
    ours = lambda file: (
        file in place.parents or str(file).startswith((str(place), str(place.parent / f".{place.name}")))
    )
    return bool(files) and not any(map(ours, files))


def why_unwritable(error: Exception) -> str | None:
    """Return the system's words for what kept a file from being written, None for a fault of another kind.

    Libraries raise errors of their own, with the system's words or nothing but a count in them.

    Example:
      >>> from atlas_jax.files import why_unwritable
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
    """Raise, in one sentence, which file is damaged, when its content ends the block.

    Args:
      path: the file; where the block names one itself, that is the one.
      remedy: what to do about it.

    Raises:
      DamagedError: for whatever a missing or damaged file makes its reader raise.

    Example:
      >>> import numpy as np
      >>> from pathlib import Path
      >>> from atlas_jax.files import reading
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
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.files import read_json
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
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.files import read_object
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
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import read_json, write_json
      >>> tmp = Path(tempfile.mkdtemp())
      >>> write_json(tmp / "config.json", {"b": 1, "a": 2})
      >>> list(read_json(tmp / "config.json"))
      ['a', 'b']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


class Kind(NamedTuple):
    """A kind of finished directory.

    Attributes:
      marker: the file that only a finished one has.
      files: patterns of the files that are written into it; all others in there are someone else's.

    Example:
      >>> from atlas_jax.files import Kind
      >>> Kind("run.json", ("run.json", "rate.npy")).marker
      'run.json'
    """

    marker: str
    files: tuple[str, ...]


KINDS = {  # a trained SAE has a run.json too, so it comes first
    "a trained SAE": Kind("training.json", _SAE),
    "a run": Kind(
        RUN,
        (
            RUN,
            "rate.npy",
            "report.html",
            "top/*.safetensors",
            "translations/*/translation.*",
            "tables/*.json",
            *(f"corpus/{f}" for f in _CORPUS),
        ),
    ),
    "a Concept Atlas": Kind(
        "atlas.json", ("atlas.json", "labels.jsonl", "mean.npy", "sae/*", "index/*.npy", "index/*.json", *_MODEL)
    ),
    "a bridge": Kind("bridge.json", ("bridge.json", "translation.*", "procrustes/translation.*")),
    "a corpus": Kind("corpus.json", _CORPUS),
    "a verbalizer": Kind("nla_meta.yaml", ("nla_meta.yaml", "*.json", "*.safetensors", "*.jinja")),
    "stored activations": Kind("activations.json", ("activations.json", "*.safetensors")),
}


def partial_directory(path: str | Path) -> Path:
    """Return the directory in which ``path`` is made: beside it, its name with ``.partial`` at the end.

    Checkpoints are kept there too. It is gone once the directory is complete.

    Example:
      >>> from atlas_jax.files import partial_directory
      >>> partial_directory("/runs/llama").as_posix()
      '/runs/llama.partial'
    """
    target = Path(path).resolve()
    return target.with_name(f"{target.name}.partial")


def kind_at(path: str | Path) -> str | None:
    """Return the kind of finished directory at ``path``, None where there is none.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import kind_at
      >>> tmp = Path(tempfile.mkdtemp())
      >>> _ = (tmp / "run.json").write_text("{}")
      >>> kind_at(tmp)
      'a run'
    """
    return next((kind for kind, (marker, _) in KINDS.items() if (Path(path) / marker).is_file()), None)


def check_place(path: str | Path, kind: str | None = None, *, overwrite: bool = False) -> None:
    """Refuse a place that cannot be written to, or where something else is; call it before any work.

    Args:
      path: where something is to be written.
      kind: a key of :data:`KINDS`, None for a file.
      overwrite: whether a finished one of the same kind may be replaced.

    Raises:
      AtlasError: saying what is there, or why nothing can be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import check_place
      >>> tmp = Path(tempfile.mkdtemp())
      >>> check_place(tmp / "run", "a run")
      >>> check_place("/", "a run")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: '/' exists and is not a run; choose another place
    """
    path = Path(path)
    with writable(path):
        if kind is None:
            _check_file(path, overwrite)
        else:
            _check_directory(path, kind, overwrite)
        _probe(path)


def _check_file(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise AtlasError(f"'{path}' is a directory; name a file")
    if path.exists() and not overwrite:
        raise AtlasError(f"'{path}' exists already; choose another name, or replace it with --overwrite")


def _check_directory(path: Path, kind: str, overwrite: bool) -> None:
    present = kind_at(path)
    if present == kind and not overwrite:
        raise AtlasError(f"'{path}' holds {kind} already; choose another place, or replace it with --overwrite")
    if present not in (kind, None):
        raise AtlasError(f"'{path}' holds {present}, not {kind}; choose another place")
    if present is None and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AtlasError(f"'{path}' exists and is not {kind}; choose another place")
    if path.is_mount():
        raise AtlasError(f"'{path}' is where a disk is mounted; choose a directory in it")


def _probe(path: Path) -> None:
    """Write where the partial directory goes, and leave nothing behind."""
    partial = partial_directory(path)
    made = [p for p in (partial, *partial.parents) if not os.path.lexists(p)]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=partial).close()
    finally:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()


@contextlib.contextmanager
def new_directory(path: str | Path, kind: str = "a run", *, overwrite: bool = False) -> Iterator[Path]:
    """Make a new directory to write into, moved to ``path`` when the block ends without an error.

    A finished one already at ``path`` is replaced if ``overwrite``, and kept if the block fails; files in it that are
    not of its kind stay. Until the end everything lies in :func:`partial_directory`, which only one process at a time
    may use.

    Args:
      path: where to.
      kind: a key of :data:`KINDS`.
      overwrite: whether a finished one of the same kind may be replaced.

    Raises:
      AtlasError: if something else is at ``path``, it cannot be written, the disk is full, or another process is
        writing there.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import RUN, new_directory
      >>> tmp = Path(tempfile.mkdtemp())
      >>> with new_directory(tmp / "run") as directory:
      ...     _ = (directory / RUN).write_text("{}")
      >>> (tmp / "run" / RUN).is_file()
      True
    """
    target, partial = Path(path).resolve(), partial_directory(path)
    new, old = partial / "new", partial / "old"
    check_place(path, kind, overwrite=overwrite)
    with writable(path), _alone(partial), before_leaving(lambda: _tidy(partial, target)):
        _discard(partial, target)
        new.mkdir()
        try:
            yield new
            if target.exists():
                _carry_over(target, new, KINDS[kind].files)
                os.replace(target, old)
            os.replace(new, target)
            shutil.rmtree(partial)
        finally:
            _tidy(partial, target)


def _discard(partial: Path, target: Path) -> None:
    """Remove what is unfinished."""
    if (partial / "old").exists() and not target.exists():  # stopped between the two renames of new_directory
        os.replace(partial / "old", target)
    for name in ("new", "old"):
        shutil.rmtree(partial / name, ignore_errors=True)


def _tidy(partial: Path, target: Path) -> None:
    """Remove what is unfinished, and the directory with it unless there are checkpoints."""
    _discard(partial, target)
    if not any(p.is_file() and p.name != LOCK for p in partial.rglob("*")):
        shutil.rmtree(partial, ignore_errors=True)


def _carry_over(old: Path, new: Path, ours: tuple[str, ...]) -> None:
    """Link into a new directory what others put into the old one."""
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        copy = new / name
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                copy.mkdir(parents=True, exist_ok=True)
        elif not copy.exists() and not any(fnmatch.fnmatchcase(name.as_posix(), pattern) for pattern in ours):
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy, follow_symlinks=False)
            except OSError:  # not every file system has links
                shutil.copy2(path, copy, follow_symlinks=False)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write a file under, moved to ``path`` when the block ends without an error.

    Raises:
      AtlasError: if it cannot be written, or the disk is full.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import new_file
      >>> tmp = Path(tempfile.mkdtemp())
      >>> with new_file(tmp / "labels.jsonl") as file:
      ...     _ = file.write_text("{}")
      >>> (tmp / "labels.jsonl").read_text()
      '{}'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    remove = lambda: temporary.unlink(missing_ok=True)
    with writable(path), before_leaving(remove):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            remove()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a directory's lock, which ends with the process however that ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise AtlasError(f"another process is writing to '{directory}'; wait for it") from e
        yield


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how two descriptions of work differ; nothing where they agree.

    Example:
      >>> from atlas_jax.files import differences
      >>> differences({"seed": 0, "methods": ["ridge"]}, {"seed": 5, "methods": ("ridge",)})
      'seed was 0 and is 5'
    """
    was, now = (json.loads(json.dumps(dict(x), default=str)) for x in (was, now))
    short = lambda value: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    changed = [k for k in sorted({*was, *now}) if was.get(k) != now.get(k)]
    return "; ".join(f"{k} was {short(was.get(k))} and is {short(now.get(k))}" for k in changed)


def sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import sha256
      >>> tmp = Path(tempfile.mkdtemp())
      >>> (tmp / "empty").touch()
      >>> sha256(tmp / "empty")[:8]
      'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_hash(path: str | Path) -> str:
    """A digest of the names and contents of all files below a directory.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.files import directory_hash
      >>> tmp = Path(tempfile.mkdtemp())
      >>> before = directory_hash(tmp)
      >>> (tmp / "new").touch()
      >>> before == directory_hash(tmp)
      False
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + bytes.fromhex(sha256(file)))
    return digest.hexdigest()


def local_or_hub(name: str | os.PathLike) -> Path:
    """Return a local path as it is, and the directory of a hub repository where the name can only be one's.

    Example:
      >>> from atlas_jax.files import local_or_hub
      >>> local_or_hub("runs/a/b").as_posix()
      'runs/a/b'
    """
    path = Path(name)
    parent = path.parent
    if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not parent.exists():
        return path if path.suffix in (".safetensors", ".json") else from_hub(name)
    return path


def from_hub(repository: str, **options: Any) -> Path:
    """Return the local directory of a Hugging Face repository, fetched where it is not there yet.

    Args:
      repository: ``owner/name``.
      **options: of ``huggingface_hub.snapshot_download``: revision, allow_patterns, ignore_patterns.

    Raises:
      AtlasError: if the hub does not give it.

    Example:
      >>> from atlas_jax.files import from_hub  # doctest: +SKIP
      >>> from_hub("Qwen/Qwen3-0.6B", allow_patterns=["*.json"]).is_dir()  # doctest: +SKIP
      True
    """
    from huggingface_hub import snapshot_download

    remedy = "check the name, the network, and for gated repositories that you are logged in and were granted access"
    with asking_hub(f"'{repository}' is no local path and could not be fetched from the hub", remedy):
        return Path(snapshot_download(repository, **options))


@contextlib.contextmanager
def asking_hub(failure: str, remedy: str) -> Iterator[None]:
    """Turn what the Hugging Face hub refuses, and faults of the network and the disk, into one sentence.

    Raises:
      AtlasError: ``failure (reason); remedy``.

    Example:
      >>> from atlas_jax.files import asking_hub
      >>> with asking_hub("'me/dogs' could not be fetched", "check the network"):
      ...     raise TimeoutError("no answer")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: 'me/dogs' could not be fetched (no answer); check the network
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as e:  # no token and no entry are OSErrors
        reason = (str(e).strip().splitlines() or [""])[0] or type(e).__name__
        raise AtlasError(f"{failure} ({reason}); {remedy}") from e
