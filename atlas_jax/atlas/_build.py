"""Assembly of an atlas from parts that come from different places."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas._atlas import ConceptAtlas, write_parts
from atlas_jax.atlas._fit import check_labels, check_model, choose_site, names_of, tuning_note
from atlas_jax.atlas._manifest import INDEX, MODEL_FILES, Manifest, record_parts
from atlas_jax.errors import AtlasError
from atlas_jax.files import new_directory
from atlas_jax.labels import Labels, write_index
from atlas_jax.models import LanguageModel, numerical_fingerprint, resolve
from atlas_jax.sae import SparseAutoencoder
from atlas_jax.types import Site


class Parts(NamedTuple):
    """An atlas that is not on disk yet.

    Attributes:
      atlas: its parts.
      model: where its model is.
      metadata: where its parts came from.
      notes: cautions about them, a sentence each.

    Example:
      >>> from atlas_jax.atlas import assemble
      >>> from atlas_jax.bundled import ATLAS
      >>> parts = assemble(ATLAS / "model", ATLAS / "sae", ATLAS / "labels.jsonl", model_name=["foundation"])
      >>> parts.metadata["model_name"], parts.notes
      (['foundation'], ())
    """

    atlas: ConceptAtlas
    model: str
    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def assemble(
    model: str | Path,
    sae: str | Path,
    labels: str | Path | None = None,
    *,
    site: Site | str | None = None,
    model_name: Sequence[str] = (),
    pooling: str = "max",
    dtype: str = "float32",
    sae_options: Mapping[str, Any] | None = None,
    label_options: Mapping[str, Any] | None = None,
    partial_labels: bool = False,
) -> Parts:
    """Load the parts of an atlas and refuse those that do not belong together.

    Args:
      model: directory or hub name of the foundation model.
      sae: directory, file or hub name of the SAE, in any known layout.
      labels: a file for :meth:`Labels.load`; None for an atlas whose features have no names.
      site: where the SAE reads the model; needed where its files do not name it.
      model_name: the name of the model, where its path and config hold none; several where the SAE and the labels
        use different ones.
      pooling: over the tokens of a text.
      dtype: of the model.
      sae_options: further arguments of :meth:`SparseAutoencoder.from_pretrained`.
      label_options: further arguments of :meth:`Labels.load`.
      partial_labels: the labels describe only the first features, and this is meant.

    Raises:
      AtlasError: for a part that cannot be read, or that by its own files is of another model, site, layer or width.

    Example:
      >>> from atlas_jax.atlas import assemble
      >>> from atlas_jax.bundled import ATLAS
      >>> parts = assemble(ATLAS / "model", ATLAS / "sae", ATLAS / "labels.jsonl", model_name=["foundation"])
      >>> parts.atlas.site, parts.atlas.width
      (Site('resid_post.3'), 1536)
    """
    encoder = SparseAutoencoder.from_pretrained(sae, **(sae_options or {}))
    lm = LanguageModel.from_pretrained(model, dtype=dtype)
    names = names_of(lm, str(model), model_name)
    check_model("the SAE is", encoder.config.model, names)
    site = choose_site(lm.config, encoder.config, site)
    width = encoder.config.d_sae
    read = Labels.empty(width)
    if labels is not None:
        read = Labels.load(labels, width, **{"site": site} | dict(label_options or {}))
        check_labels(read, lm.config, site, width, names, partial=partial_labels)
    sources = {"model": str(model), "sae": str(sae), "labels": None if labels is None else str(labels)}
    metadata = {"sources": sources, "model_name": list(model_name), "sae_format": encoder.config.format}
    note = tuning_note(encoder.config.model, names)
    return Parts(
        ConceptAtlas.from_parts(lm, encoder, site, read, pooling), str(model), metadata, (note,) if note else ()
    )


def write_atlas(
    parts: Parts,
    directory: str | Path,
    *,
    link: bool = False,
    mean: Float[Array | np.ndarray, " d_c"] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write an assembled atlas: its model's files as they are, SAE, labels, their search index, and the manifest.

    Args:
      parts: from :func:`assemble`.
      directory: where to; it appears only when complete, and replaces the files of an atlas that is there.
      link: refer to the model where it is and copy nothing of it.
      mean: mean pooled activation of every feature on some text.
      metadata: plain values to keep in the manifest.

    Raises:
      AtlasError: if the place is taken by something else or cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.atlas import assemble, write_atlas
      >>> from atlas_jax.bundled import ATLAS
      >>> tmp = Path(tempfile.mkdtemp())
      >>> parts = assemble(ATLAS / "model", ATLAS / "sae", model_name=["foundation"])
      >>> manifest = write_atlas(parts, tmp / "atlas", link=True)
      >>> manifest.site, manifest.labels
      ('resid_post.3', 'labels.jsonl')
    """
    atlas, source = parts.atlas, resolve(parts.model)
    if Path(directory).absolute() in (source.absolute(), *source.absolute().parents):
        raise AtlasError(f"the model lies in '{directory}', where the atlas is to be written; choose another place")
    with new_directory(directory, "a Concept Atlas", overwrite=True) as new:
        if not link:
            copy_files(source, new / "model", MODEL_FILES)
        mean_file = write_parts(dataclasses.replace(atlas, mean=mean), new)
        if atlas.labels.entries:
            write_index(atlas.labels, new / INDEX)
        linked = str(source.absolute()) if Path(parts.model).is_dir() else parts.model
        manifest = Manifest(
            site=str(atlas.site),
            files=record_parts(new, source if link else new / "model"),
            model=linked if link else "model",
            mean=mean_file,
            pooling=atlas.pooling,
            metadata={**parts.metadata, **(metadata or {})},
            fingerprint=numerical_fingerprint(atlas),
        )
        manifest.write(new)
    return manifest


def copy_files(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """Copy the files of a folder that fit one of the patterns; links become files."""
    target.mkdir()
    for file in sorted({f for p in patterns for f in source.glob(p) if f.is_file()}):
        shutil.copyfile(file, target / file.name)
