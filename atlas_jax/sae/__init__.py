"""Sparse autoencoders: one class, a loader per on-disk layout, quality measures, and training."""

from atlas_jax.sae._config import SAEConfig as SAEConfig
from atlas_jax.sae._mixer import Cursor as Cursor, mixed_batches as mixed_batches
from atlas_jax.sae._quality import (
    Quality as Quality,
    QualityState as QualityState,
    finish_quality as finish_quality,
    init_quality as init_quality,
    merge_quality as merge_quality,
    quality as quality,
    update_quality as update_quality,
)
from atlas_jax.sae._sae import AXES as AXES, SparseAutoencoder as SparseAutoencoder
from atlas_jax.sae._train import TrainingLog as TrainingLog, to_sae as to_sae, train as train
from atlas_jax.sae._train_step import (
    ARCHITECTURES as ARCHITECTURES,
    Dictionary as Dictionary,
    Metrics as Metrics,
    TrainConfig as TrainConfig,
    TrainState as TrainState,
    init_state as init_state,
    train_step as train_step,
)
