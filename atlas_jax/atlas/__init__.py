"""The Concept Atlas: a foundation model, a sparse autoencoder on one of its sites, and labels for its features."""

from atlas_jax.atlas._atlas import ConceptAtlas as ConceptAtlas, open_search as open_search
from atlas_jax.atlas._build import Parts as Parts, assemble as assemble, write_atlas as write_atlas
from atlas_jax.atlas._fit import same_place as same_place
from atlas_jax.atlas._manifest import INDEX as INDEX, MANIFEST as MANIFEST, Manifest as Manifest, Recorded as Recorded
from atlas_jax.atlas._presets import (
    Preset as Preset,
    fetch_labels as fetch_labels,
    preset as preset,
    presets as presets,
)
