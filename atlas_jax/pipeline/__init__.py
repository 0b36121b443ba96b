"""The stream: sentences through both models into statistics, translations and scores."""

from atlas_jax.pipeline._alignment import (
    Alignment as Alignment,
    Pair as Pair,
    align as align,
    fingerprint as fingerprint,
    is_finished as is_finished,
    load_pair as load_pair,
)
from atlas_jax.pipeline._checkpoint import Checkpoints as Checkpoints
from atlas_jax.pipeline._choose import (
    Choice as Choice,
    Chooser as Chooser,
    held_out as held_out,
    views as views,
)
from atlas_jax.pipeline._encode import encode_batch as encode_batch
from atlas_jax.pipeline._fold import fold as fold
from atlas_jax.pipeline._pass import Cursor as Cursor, Pass as Pass
from atlas_jax.pipeline._plan import Batch as Batch, Block as Block, Grid as Grid, Ragged as Ragged
from atlas_jax.pipeline._residuals import (
    sae_quality as sae_quality,
    site_activations as site_activations,
    token_activations as token_activations,
)
from atlas_jax.pipeline._settings import AlignSettings as AlignSettings
from atlas_jax.pipeline._solve import solve as solve
from atlas_jax.pipeline._stream import (
    Fitted as Fitted,
    Scored as Scored,
    fit_lenses as fit_lenses,
    fit_statistics as fit_statistics,
    merge_fitted as merge_fitted,
    pooled_activations as pooled_activations,
    score_sentences as score_sentences,
    top_sentences as top_sentences,
)
