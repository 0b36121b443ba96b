"""``atlas.json``: the parts of an atlas directory, and the size and hash of every file of theirs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.models import resolve

MANIFEST = "atlas.json"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")
INDEX = "index"


class Recorded(NamedTuple):
    """A file as it was when the atlas was made.

    Example:
      >>> from atlas_jax.atlas import Manifest
      >>> from atlas_jax.bundled import ATLAS
      >>> recorded = Manifest.read(ATLAS).files["labels"]["labels.jsonl"]
      >>> recorded.bytes == (ATLAS / "labels.jsonl").stat().st_size
      True
    """

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of ``atlas.json``: the parts of an atlas directory.

    Attributes:
      site: where the SAE reads the model.
      files: by part (model, sae, labels, mean), the files it had when the atlas was made, by name.
      model: folder of the model beside the manifest, or a path or hub name elsewhere.
      sae: folder of the SAE.
      labels: file of the labels.
      mean: file of the mean activation of every feature on the atlas's own text, None where it was not measured.
      pooling: over the tokens of a text.
      metadata: plain values, such as the sources of the parts and measurements.
      fingerprint: of the forward pass (:func:`atlas_jax.models.numerical_fingerprint`), None in older atlases.

    Example:
      >>> from atlas_jax.atlas import Manifest
      >>> from atlas_jax.bundled import ATLAS
      >>> manifest = Manifest.read(ATLAS)
      >>> manifest.site, sorted(manifest.files), manifest.check(ATLAS) > 0
      ('resid_post.3', ['labels', 'model', 'sae'], True)
    """

    site: str
    files: Mapping[str, Mapping[str, Recorded]]
    model: str = "model"
    sae: str = "sae"
    labels: str = "labels.jsonl"
    mean: str | None = None
    pooling: str = "max"
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a directory.

        Raises:
          AtlasError: if there is none, or it is damaged.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise AtlasError(f"{directory} has no {MANIFEST}, so it is no Concept Atlas; build one with atlas build")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            files = {part: {n: Recorded(*r) for n, r in group.items()} for part, group in raw.pop("files").items()}
            manifest = cls(files=files, **raw)
            manifest.check_types()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise AtlasError(f"{path} is damaged ({e!r}); build the atlas again") from e
        if missing := {"model", "sae", "labels"} - files.keys():
            raise AtlasError(f"{path} is damaged: it lists no files of {', '.join(sorted(missing))}")
        return manifest

    def check_types(self) -> None:
        """Raise TypeError for a field that is not what it should be."""
        wanted = dict.fromkeys(("site", "model", "sae", "labels", "pooling"), str)
        wanted |= {"mean": str | None, "metadata": Mapping}
        for name, kind in wanted.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {getattr(self, name)!r}")
        for file in (file for group in self.files.values() for file in group.values()):
            if not (isinstance(file.bytes, int) and isinstance(file.sha256, str)):
                raise TypeError(f"a file is recorded as {tuple(file)}")

    def write(self, directory: Path) -> None:
        """Write the manifest into a directory."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def location(self, directory: Path, part: str) -> Path:
        """Return the file or folder of a part: beside the manifest, or else where it was linked from.

        Raises:
          AtlasError: if it is nowhere.
        """
        name = getattr(self, part)
        inside = directory / name
        return resolve(name) if part == "model" and not inside.exists() else inside

    def check(self, directory: Path, *, contents: bool = False) -> int:
        """Compare the files with the record of them: their sizes, or with ``contents`` also their hashes.

        Returns:
          The number of files compared.

        Raises:
          AtlasError: naming the first file that is missing or differs.
        """
        count = 0
        for part, recorded in self.files.items():
            place = self.location(directory, part)
            for name, expected in recorded.items():
                file = place / name if place.is_dir() else place
                if not file.is_file():
                    raise AtlasError(f"the atlas {directory} has lost {file}; build it again")
                if file.stat().st_size != expected.bytes or (contents and sha256(file) != expected.sha256):
                    raise AtlasError(f"{file} is not what the atlas {directory} was built with; build it again")
                count += 1
        return count


def record(place: Path, patterns: Sequence[str] = ("*",)) -> dict[str, Recorded]:
    """Return sizes and hashes of a file, or of the files of a folder that fit one of the patterns."""
    files = [place] if place.is_file() else sorted({f for p in patterns for f in place.glob(p) if f.is_file()})
    return {file.name: Recorded(file.stat().st_size, sha256(file)) for file in files}


def sha256(file: Path) -> str:
    """Return the hash of a file's bytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def record_parts(directory: Path, model: Path) -> dict[str, dict]:
    """Record the files of an atlas by part, its model being in a directory of its own or elsewhere."""
    files = {"model": record(model, MODEL_FILES), "sae": record(directory / "sae")}
    files["labels"] = record(directory / "labels.jsonl")
    if (directory / "mean.npy").is_file():
        files["mean"] = record(directory / "mean.npy")
    return files
