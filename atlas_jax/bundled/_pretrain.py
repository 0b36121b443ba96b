"""Training of a small decoder with optax: AdamW, a warm-up and a linear descent to zero."""

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from atlas_jax.models import Decoder, ModelConfig, forward
from atlas_jax.types import Tokens

_log = logging.getLogger(__name__)


class PretrainLog(NamedTuple):
    """Record of a training run.

    Attributes:
      steps: step numbers at which ``losses`` were read.
      losses: training loss, nats a token.
      perplexity: of the held-out text, a token.
      unigram_perplexity: of the same text under the training text's token frequencies.
      tokens: training tokens seen.
      seconds: wall time of training.
    """

    steps: list[int]
    losses: list[float]
    perplexity: float
    unigram_perplexity: float
    tokens: int
    seconds: float


def pretrain(
    config: ModelConfig,
    rows: Int[np.ndarray, "n t"],
    held_out: Int[np.ndarray, "m t"],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> tuple[Decoder, PretrainLog]:
    """Train a decoder from scratch on rows of token ids; the same arguments give the same model on one machine."""
    decoder = Decoder(config, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(decoder)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 25, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.95, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
    state = optimizer.init(params)
    log: tuple[list[int], list[float]] = ([], [])
    start = time.monotonic()
    for step, ids in enumerate(_batches(rows, steps, batch, seed)):
        params, state, loss = _step(graph, optimizer, params, state, jnp.asarray(ids))
        if step % 50 == 0 or step == steps - 1:
            log[0].append(step)
            log[1].append(round(float(loss), 4))
            _log.info(f"step {step} of {steps}: loss {log[1][-1]}")
    seconds = time.monotonic() - start
    decoder = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params))
    return decoder, PretrainLog(
        *log, perplexity(decoder, held_out), unigram_perplexity(rows, held_out, config.vocab_size),
        steps * batch * (rows.shape[1] - 1), seconds,
    )  # fmt: skip


def perplexity(decoder: Decoder, rows: Int[np.ndarray, "n t"], batch: int = 64) -> float:
    """Compute ``exp`` of the mean loss over all tokens of all rows after BOS."""
    losses = [float(_loss(decoder, jnp.asarray(rows[i : i + batch]))) for i in range(0, len(rows) - batch + 1, batch)]
    return float(np.exp(np.mean(losses)))


def unigram_perplexity(train: Int[np.ndarray, "n t"], held_out: Int[np.ndarray, "m t"], vocab_size: int) -> float:
    """Perplexity of held-out tokens under the training frequencies, add-one smoothed."""
    counts = np.bincount(train[:, 1:].ravel(), minlength=vocab_size) + 1.0
    return float(np.exp(-np.mean(np.log(counts / counts.sum())[held_out[:, 1:]])))


@jax.jit
def _loss(decoder: Decoder, ids: Int[Array, "b t"]) -> Float[Array, ""]:
    tokens = Tokens(ids, jnp.ones(ids.shape, bool), jnp.arange(ids.shape[0]))
    logits = forward(decoder, tokens).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()


@partial(jax.jit, static_argnames=("graph", "optimizer"), donate_argnames=("params", "state"))
def _step(graph: Any, optimizer: Any, params: Any, state: Any, ids: Int[Array, "b t"]) -> tuple[Any, Any, Array]:
    loss, gradients = jax.value_and_grad(lambda p: _loss(nnx.merge(graph, p), ids))(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def _batches(rows: Int[np.ndarray, "n t"], steps: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    rng, order = np.random.default_rng(seed), np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, rng.permutation(len(rows))])
        yield rows[order[:batch]]
        order = order[batch:]
