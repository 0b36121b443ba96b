"""Published atlases by name: which model, SAE and labels, and the download of the labels."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from atlas_jax.errors import AtlasError
from atlas_jax.files import new_file

LABELS = "https://neuronpedia-datasets.s3.amazonaws.com/v1"
_TIMEOUT = 60.0  # seconds without a byte


class Preset(NamedTuple):
    """The parts of a published atlas.

    Attributes:
      model: hub name of the foundation model.
      sae: its SAE, as ``owner/repo/folder``.
      site: where the SAE reads.
      features: how many the SAE has.
      source: the labels' folder in Neuronpedia's export, None where there are none.
      files: how many files of labels there are.
      licence: of the parts.

    Example:
      >>> from atlas_jax.atlas import preset
      >>> preset("gemma-scope-2b-16k").site
      'resid_post.20'
    """

    model: str
    sae: str
    site: str
    features: int
    source: str | None
    files: int
    licence: str


def preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
      AtlasError: for an unknown one, naming the known.

    Example:
      >>> from atlas_jax.atlas import preset
      >>> preset("gemma")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: unknown preset 'gemma'; known are gemma-scope-2b-16k, gemma-scope-2b-65k, \
llama-scope-8b-32k, gemma-scope-2-4b-16k, qwen-scope-1.7b-32k
    """
    known = presets()
    if name not in known:
        raise AtlasError(f"unknown preset '{name}'; known are {', '.join(known)}")
    return known[name]


def presets() -> dict[str, Preset]:
    """Return all presets by name.

    Example:
      >>> from atlas_jax.atlas import presets
      >>> presets()["gemma-scope-2b-65k"].features
      65536
    """
    rows: Mapping[str, dict] = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text(encoding="utf-8"))
    of_labels = lambda row: row["labels"] or {"source": None, "files": 0}
    parts = lambda row: [row[name] for name in ("model", "sae", "site", "features")]
    return {name: Preset(*parts(row), **of_labels(row), licence=row["licence"]) for name, row in rows.items()}


def fetch_labels(chosen: Preset, cache: Path | None = None) -> Path | None:
    """Download the labels of a preset, file by file, and return their folder; files that are there are kept.

    Args:
      chosen: the preset.
      cache: where to; ``~/.cache/atlas-jax/labels``, or that folder of ``XDG_CACHE_HOME``, by default.

    Raises:
      AtlasError: if a file cannot be had; those before it are kept for the next time.

    Example:
      >>> from atlas_jax.atlas import fetch_labels, preset
      >>> fetch_labels(preset("qwen-scope-1.7b-32k")) is None
      True
    """
    if chosen.source is None:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atlas-jax" / "labels"
    folder = (cache or home) / chosen.source / "explanations"
    base = os.environ.get("ATLAS_JAX_LABELS", LABELS)
    for number in range(chosen.files):
        file = folder / f"batch-{number}.jsonl.gz"
        if not file.is_file():
            _download(f"{base}/{chosen.source}/explanations/{file.name}", file)
    return folder


def _download(address: str, file: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer, new_file(file) as new:
            content, size = answer.read(), answer.headers.get("Content-Length")
            if size is not None and len(content) != int(size):
                raise http.client.IncompleteRead(content, int(size) - len(content))
            new.write_bytes(content)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
        raise AtlasError(
            f"{address} could not be downloaded ({' '.join(str(e).split())}); give the same command again to go on, "
            "or --labels with a file of your own"
        ) from e
