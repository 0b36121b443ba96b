"""Both sides of an alignment, loaded and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.files import directory_hash, kind_at, sha256
from atlas_jax.models import LanguageModel, resolve
from atlas_jax.pipeline._run_files import AlignSettings
from atlas_jax.stored import MANIFEST, StoredModel
from atlas_jax.subject import Subject
from atlas_jax.types import Site


class Pair(NamedTuple):
    """Both feature spaces of an alignment, loaded.

    Attributes:
      subject: the subject and its sites.
      atlas: the Concept Atlas.
      sources: their paths, and hashes of the files there.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> pair.subject.widths, pair.atlas.width
      ({Site('mlp_act.1'): 384}, 1536)
    """

    subject: Subject
    atlas: ConceptAtlas
    sources: dict[str, Any]


def load_pair(
    subject: str | Path,
    atlas: str | Path,
    settings: AlignSettings,
    mesh: Mesh | None = None,
    *,
    atlas_activations: str | Path | None = None,
) -> Pair:
    """Load both models and check the settings against them.

    Args:
      subject: the subject model's directory or hub name, or a directory of its stored activations.
      atlas: the atlas's directory or hub name.
      settings: sites, methods, pooling and dtype.
      mesh: the devices for the parameters, and for everything that is computed with them.
      atlas_activations: a directory of stored activations to read in place of the atlas's model.

    Raises:
      AtlasError: for anything wrong with a path, a model, a site, a method, the pooling or the dtype.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> len(pair.sources["subject"]["sha256"])
      64
    """
    paths = {"subject": resolve(subject).absolute(), "atlas": resolve(atlas).absolute()}
    sources = {name: {"path": str(path), "sha256": directory_hash(path)} for name, path in paths.items()}
    how = {"dtype": settings.dtype, "mesh": mesh, "attention": settings.attention}
    stored = None if atlas_activations is None else _stored(Path(atlas_activations).absolute(), settings)
    if stored is not None:
        sources["atlas"]["activations"] = str(stored.tokenizer.directory)
        sources["atlas"]["sha256"] += f" {sha256(stored.tokenizer.directory / MANIFEST)}"
    if kind_at(paths["subject"]) == "stored activations":
        model = _stored(paths["subject"], settings)
        model.check_poolings((settings.steer_pooling,))
    else:
        model = LanguageModel.from_pretrained(paths["subject"], **how)
    spaces = Subject.from_model(model, settings.sites, settings.pooling)
    of_atlas = ConceptAtlas.from_pretrained(paths["atlas"], **how, stored=stored)
    return Pair(spaces, of_atlas, sources)


def load_subject(
    name: str | Path, sites: Sequence[Site | str] | Site | str | None, pooling: str = "mean", dtype: str = "float32"
) -> tuple[Subject, dict[str, str]]:
    """Load one model as a feature space; with its path, and a hash of the files there.

    Args:
      name: a directory or hub name.
      sites: where it is read; None for the residual stream after every block.
      pooling: over the tokens of a sentence.
      dtype: of the model.

    Raises:
      AtlasError: for anything wrong with the path, the model, a site, the pooling or the dtype.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import load_subject
      >>> subject, about = load_subject(SUBJECT, "resid_post.2")
      >>> subject.width, sorted(about)
      (128, ['path', 'sha256'])
    """
    path = resolve(name).absolute()
    model = LanguageModel.from_pretrained(path, dtype=dtype)
    every = [Site("resid_post", layer) for layer in range(model.config.num_layers)]
    return Subject.from_model(model, every if sites is None else sites, pooling), {
        "path": str(path),
        "sha256": directory_hash(path),
    }


def _stored(directory: Path, settings: AlignSettings) -> StoredModel:
    stored = StoredModel.open(directory)
    stored.check_length(settings.max_length)
    return stored
