"""Decoder-only language models in Flax NNX: loading, reading and editing activations, generation."""

from atlas_jax.models._adapter import merge_adapter as merge_adapter
from atlas_jax.models._attention import (
    ATTENTION_CHUNK as ATTENTION_CHUNK,
    KERNELS as KERNELS,
    choose_kernel as choose_kernel,
)
from atlas_jax.models._config import ModelConfig as ModelConfig, load_config as load_config
from atlas_jax.models._decoder import Decoder as Decoder, decoder_shapes as decoder_shapes
from atlas_jax.models._fingerprint import (
    fingerprint_difference as fingerprint_difference,
    is_small as is_small,
    numerical_fingerprint as numerical_fingerprint,
)
from atlas_jax.models._forward import (
    check_site as check_site,
    forward as forward,
    positions as positions,
    run as run,
    split_heads as split_heads,
)
from atlas_jax.models._generate import Generation as Generation, generate as generate
from atlas_jax.models._language_model import (
    LanguageModel as LanguageModel,
    every_head as every_head,
    resolve as resolve,
)
from atlas_jax.models._spans import match_tokens as match_tokens, pad_spans as pad_spans
from atlas_jax.models._tokenizer import Tokenizer as Tokenizer
