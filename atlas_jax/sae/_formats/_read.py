"""Locating an SAE's files, reading their arrays, and writing a directory of them."""

import contextlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from atlas_jax.errors import AtlasError
from atlas_jax.files import from_hub

_ARCHIVES = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)
_SKIP = ["*examples*.safetensors"]
Arrays = dict[str, np.ndarray]
LINKS = 40


def locate(path: str | Path) -> Path:
    """Return the local path itself if it exists, otherwise a download of ``owner/repo`` or ``owner/repo/folder``.

    Raises:
      AtlasError: if the path is no hub name either, the download fails or is empty, or it is an archive.
    """
    local = Path(path).expanduser()
    if local.name.endswith(_ARCHIVES) and local.is_file():
        raise AtlasError(f"{local} is an archive: unpack it, and give the folder of the SAE in it")
    if local.exists():
        return local
    parts = str(path).split("/")
    if isinstance(path, Path) or len(parts) < 2 or parts[0] in ("", ".", "..", "~"):
        raise AtlasError(f"there is no SAE at {path}")
    repository, folder = "/".join(parts[:2]), "/".join(parts[2:])
    patterns = [folder, f"{folder}/*"] if folder else None
    root = from_hub(repository, allow_patterns=patterns, ignore_patterns=_SKIP)
    if not (root / folder).exists():
        raise AtlasError(f"the repository {repository} has no folder '{folder}'")
    return root / folder


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """Yield a scratch directory; its files move into ``directory`` if the block succeeds, and vanish if it fails."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sae.", dir=directory) as scratch:
        yield Path(scratch)
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)  # safetensors leaves its files to their owner
            file.replace(directory / file.name)


def read_npz(path: Path) -> Arrays:
    """Read the float32 arrays of an npz file; pickled objects are refused."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with archive:
            return {name: _float32(archive[name]) for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise AtlasError(f"cannot read {path}: {error}") from None


def read_safetensors(path: Path) -> Arrays:
    """Read the arrays of a safetensors file, floats of any width as float32."""
    try:
        with safe_open(path, framework="flax") as archive:
            return {name: _float32(np.asarray(archive.get_tensor(name))) for name in archive.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise AtlasError(f"cannot read {path}: {error}") from None


def read_torch(path: Path) -> dict[str, Any]:
    """Read the state dict in a torch file, tensors as arrays, with ``weights_only`` so that no code in it can run."""
    try:
        import torch
    except ImportError:
        raise AtlasError(f"{path} is a torch file: install torch to read it (pip install torch)") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a bad file, none documented
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AtlasError(f"cannot read {path} as plain torch weights: {reason}") from None
    if not isinstance(state, dict):
        raise AtlasError(f"{path} should hold a state dict, it holds a {type(state).__name__}")
    return {name: _from_torch(value) for name, value in state.items()}


def _from_torch(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    return (value.float() if value.is_floating_point() else value).detach().numpy()


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind in "fV" and array.dtype != np.float32 else array


def pick(arrays: Mapping[str, Any], name: str, where: Path, ndim: int | None = None) -> np.ndarray:
    """Return one array by name; the error names what the file has instead, or what is wrong with the array."""
    if name not in arrays:
        raise AtlasError(f"{where} has no tensor '{name}'; it has {', '.join(map(str, arrays))}")
    array = np.asarray(arrays[name]) if isinstance(arrays[name], int | float) else arrays[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise AtlasError(f"'{name}' in {where} should be an array of numbers")
    if ndim is not None and array.ndim != ndim:
        raise AtlasError(f"'{name}' in {where} should have {ndim} axes, its shape is {array.shape}")
    if not np.isfinite(array).all():
        raise AtlasError(f"'{name}' in {where} holds numbers that are not finite; the file is damaged")
    return array


def names(path: Path) -> tuple[str, ...]:
    """Return the absolute path of a file or folder under each of its names; the end of its links comes first.

    A link with a name of its own may lead to a folder of a release, and a file of a release may be a link to a blob
    with a meaningless name, as in the cache of the Hugging Face hub: any of the names may hold the facts.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.sae._formats._read import names
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     folder, link = Path(directory).resolve() / "layer_3", Path(directory).resolve() / "mine"
      ...     folder.mkdir()
      ...     link.symlink_to(folder)
      ...     names(link) == (str(folder), str(link))
      True
    """
    place = path.absolute()
    steps = [place]
    while place.is_symlink() and len(steps) < LINKS:
        place = place.parent / os.readlink(place)
        steps.append(place)
    followed = [step.parent.resolve() / step.name for step in reversed(steps)]
    return tuple(dict.fromkeys(name.as_posix() for name in [steps[-1].resolve(), *followed, *reversed(steps)]))


def last_match(pattern: str, path: Path) -> re.Match[str] | None:
    """Return the last match of a pattern in the first name of a path that has one.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.sae._formats._read import last_match
      >>> last_match(r"layer_(\\d+)", Path("/layer_1/runs/layer_20/params.npz"))[1]
      '20'
    """
    for name in names(path):
        if matches := list(re.finditer(pattern, name)):
            return matches[-1]
    return None
