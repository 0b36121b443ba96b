"""Activations stored on disk, by this package or another: read in place of a model, and written for later."""

from atlas_jax.stored._manifest import MANIFEST as MANIFEST, Manifest as Manifest, text_hash as text_hash
from atlas_jax.stored._model import StoredModel as StoredModel, pooled_rows as pooled_rows
from atlas_jax.stored._rows import StoredRows as StoredRows
from atlas_jax.stored._write import (
    SHARD_BYTES as SHARD_BYTES,
    ActivationWriter as ActivationWriter,
    writing_activations as writing_activations,
)
