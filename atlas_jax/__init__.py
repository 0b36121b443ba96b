"""Atlas-Alignment in JAX: read and steer a language model through a labelled concept atlas of another.

``import atlas_jax as aj`` imports nothing heavy; a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_jax import labels as labels, metrics as metrics, models as models, translators as translators
    from atlas_jax.atlas import ConceptAtlas as ConceptAtlas
    from atlas_jax.bridge import Bridge as Bridge
    from atlas_jax.corpus import Corpus as Corpus, build_corpus as build_corpus
    from atlas_jax.errors import AtlasError as AtlasError
    from atlas_jax.experiments import (
        Direction as Direction,
        concept_direction as concept_direction,
        concept_directions as concept_directions,
    )
    from atlas_jax.hub import push_to_hub as push_to_hub
    from atlas_jax.labels import Labels as Labels
    from atlas_jax.lens import JacobianLens as JacobianLens
    from atlas_jax.models import LanguageModel as LanguageModel, generate as generate, run as run
    from atlas_jax.pipeline import (
        Alignment as Alignment,
        AlignSettings as AlignSettings,
        align as align,
        load_pair as load_pair,
    )
    from atlas_jax.sae import SparseAutoencoder as SparseAutoencoder
    from atlas_jax.sharding import make_mesh as make_mesh
    from atlas_jax.statistics import (
        PassStatistics as PassStatistics,
        Statistics as Statistics,
        merge as merge,
        update as update,
    )
    from atlas_jax.steering import (
        Ablate as Ablate,
        Add as Add,
        ProjectOut as ProjectOut,
        Replace as Replace,
        Steer as Steer,
        at as at,
    )
    from atlas_jax.stored import StoredModel as StoredModel
    from atlas_jax.subject import Subject as Subject
    from atlas_jax.translation import Translation as Translation, fit as fit
    from atlas_jax.types import Run as Run, Site as Site, Tokens as Tokens
    from atlas_jax.vectors import export_gguf as export_gguf, load_edits as load_edits, save_edits as save_edits
    from atlas_jax.verbalizers import (
        Contract as Contract,
        Verbalization as Verbalization,
        load_verbalizer as load_verbalizer,
        verbalize as verbalize,
    )

_HOMES = {
    "atlas": ("ConceptAtlas",),
    "bridge": ("Bridge",),
    "corpus": ("Corpus", "build_corpus"),
    "errors": ("AtlasError",),
    "experiments": ("Direction", "concept_direction", "concept_directions"),
    "hub": ("push_to_hub",),
    "labels": ("Labels",),
    "lens": ("JacobianLens",),
    "sharding": ("make_mesh",),
    "models": ("LanguageModel", "generate", "run"),
    "pipeline": ("Alignment", "AlignSettings", "align", "load_pair"),
    "sae": ("SparseAutoencoder",),
    "statistics": ("PassStatistics", "Statistics", "merge", "update"),
    "steering": ("Ablate", "Add", "ProjectOut", "Replace", "Steer", "at"),
    "stored": ("StoredModel",),
    "subject": ("Subject",),
    "translation": ("Translation", "fit"),
    "types": ("Run", "Site", "Tokens"),
    "vectors": ("export_gguf", "load_edits", "save_edits"),
    "verbalizers": ("Contract", "Verbalization", "load_verbalizer", "verbalize"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {
    *_HOMES,
    "bundled",
    "files",
    "metrics",
    "pooling",
    "sae_lab",
    "tensor_file",
    "translators",
}

__all__ = [*_HOME, "labels", "metrics", "models", "translators"]  # noqa: PLE0604 - the names above, loaded when used


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("atlas-jax")
    if name in _HOME:
        return getattr(importlib.import_module(f"atlas_jax.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"atlas_jax.{name}")
    raise AttributeError(f"module 'atlas_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
