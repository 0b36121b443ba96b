"""Streams: sentences through both models into statistics, translations and scores."""

from atlas_jax.pipeline._align import align as align, fingerprint as fingerprint, is_finished as is_finished
from atlas_jax.pipeline._alignment import Alignment as Alignment
from atlas_jax.pipeline._batches import Batch as Batch, BatchShapes as BatchShapes, Block as Block, Ragged as Ragged
from atlas_jax.pipeline._checkpoint import Checkpoints as Checkpoints
from atlas_jax.pipeline._choose import (
    Choice as Choice,
    Chooser as Chooser,
    held_out as held_out,
    views as views,
)
from atlas_jax.pipeline._compiled import compiled_bytes as compiled_bytes
from atlas_jax.pipeline._devices import DEVICES as DEVICES, Device as Device, known_device as known_device
from atlas_jax.pipeline._evaluate import (
    Scored as Scored,
    pooled_activations as pooled_activations,
    sae_quality as sae_quality,
    score_sentences as score_sentences,
    site_activations as site_activations,
    token_activations as token_activations,
    top_sentences as top_sentences,
)
from atlas_jax.pipeline._extract import extract_activations as extract_activations
from atlas_jax.pipeline._fit import (
    Fitted as Fitted,
    fit_lenses as fit_lenses,
    fit_statistics as fit_statistics,
    merge_fitted as merge_fitted,
    solve as solve,
)
from atlas_jax.pipeline._pair import Pair as Pair, load_pair as load_pair, load_subject as load_subject
from atlas_jax.pipeline._plan import Plan as Plan, compiled_plan as compiled_plan, plan_alignment as plan_alignment
from atlas_jax.pipeline._plan_costs import Setup as Setup, Stage as Stage
from atlas_jax.pipeline._run import encode_batch as encode_batch, run_stream as run_stream
from atlas_jax.pipeline._run_files import AlignSettings as AlignSettings
from atlas_jax.pipeline._setup import model_config as model_config, read_setup as read_setup
from atlas_jax.pipeline._stream import Cursor as Cursor, SentenceStream as SentenceStream
from atlas_jax.pipeline._tokens import (
    PAIRS as PAIRS,
    TokenFitted as TokenFitted,
    TokenPairs as TokenPairs,
    fit_token_statistics as fit_token_statistics,
    token_pairs as token_pairs,
)

Pass, fold = SentenceStream, run_stream  # their names until 0.1
