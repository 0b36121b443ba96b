"""Where an SAE's files are: a local path, or a folder of a Hugging Face repository."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atlas_jax.errors import AtlasError

_ARCHIVES = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)
_SKIP = ["*examples*.safetensors"]


def locate(path: str | Path) -> Path:
    """The local path itself if it exists, otherwise a download of ``owner/repo`` or ``owner/repo/folder``.

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
    return _download("/".join(parts[:2]), "/".join(parts[2:]))


def _download(repo: str, folder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [folder, f"{folder}/*"] if folder else None
    try:
        root = Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=_SKIP))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        name = f"{repo}/{folder}".rstrip("/")
        raise AtlasError(f"there is no local path {name}, and the hub did not give it: {reason}") from None
    if not (root / folder).exists():
        raise AtlasError(f"the repository {repo} has no folder '{folder}'")
    return root / folder


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """A scratch directory whose files move into ``directory`` when the block succeeds, and vanish when it fails."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sae.", dir=directory) as scratch:
        yield Path(scratch)
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)  # safetensors leaves its files to their owner
            file.replace(directory / file.name)
