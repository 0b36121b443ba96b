"""A model beside transformers on real tokens, however rows are padded, and its parameters under another config."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from atlas_jax.models import Decoder, decoder_shapes
from atlas_jax.types import Run, Tokens
from helpers.float64 import distance
from helpers.hf_oracle import LENGTH, random_ids

ROW_LENGTHS = (LENGTH - 3, 20, 27)


def batch(ids: np.ndarray, real: np.ndarray | None = None) -> Tokens:
    real = None if real is None else jnp.asarray(real)
    mask = jnp.ones(ids.shape, bool) if real is None else real
    return Tokens(jnp.asarray(ids, jnp.int32), mask, jnp.arange(len(ids)), real)


def padded(side: str, lengths: tuple[int, ...]) -> tuple[Tokens, list[slice]]:
    """The oracle's rows cut to ``lengths`` and padded, and where each row's real tokens are."""
    ids, real = np.full((len(lengths), LENGTH), 5), np.zeros((len(lengths), LENGTH), bool)
    spans = [slice(0, n) if side == "right" else slice(LENGTH - n, LENGTH) for n in lengths]
    for i, (n, span) in enumerate(zip(lengths, spans, strict=True)):
        ids[i, span], real[i, span] = random_ids()[i, :n], True
    return batch(ids, real), spans


def real_tokens(x: np.ndarray, spans: list[slice]) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float32)[i, span] for i, span in enumerate(spans)])


def errors(ours: Run, theirs: tuple, spans: list[slice]) -> dict[str, float]:
    """Relative norm error of logits and sites over real tokens; causality lets full rows be the reference."""
    whole = [slice(0, s.stop - s.start) for s in spans]
    pairs = {"logits": (ours.logits, theirs[0])} | {str(s): (ours.acts[s], theirs[1][s]) for s in ours.acts}
    return {k: distance(real_tokens(a, spans), real_tokens(b, whole)) for k, (a, b) in pairs.items()}


def with_config(decoder: Decoder, **changes) -> Decoder:
    """The same parameters computed with by another config."""
    graph = nnx.graphdef(decoder_shapes(dataclasses.replace(decoder.config, **changes)))
    return nnx.merge(graph, nnx.state(decoder))
