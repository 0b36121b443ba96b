"""One step of SAE training: BatchTopK reconstruction, a revival loss for dead features, unit-norm decoder rows."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run besides its activations.

    Attributes:
      d_sae: number of features.
      k: target mean number of active features a row (L0).
      steps: number of batches.
      learning_rate: peak of Adam's learning rate; None means a tenth of a decoder entry's typical size, ``0.1 /
        sqrt(d)``.
      seed: of the initial dictionary.
      warmup: share of the steps over which the learning rate rises from 0.
      decay: share of the steps, at the end, over which it falls to 0.
      sparsity_warmup: share of the steps over which the number of active features falls from ``k_start * k`` to
        ``k``.
      k_start: see ``sparsity_warmup``; 1 means none, which measured best.
      dead_after: a feature counts as dead after this many batches in a row without firing.
      revival: weight of the loss that brings dead features back.
      calibration_rows: rows of each batch on which the threshold is found.
    """

    d_sae: int
    k: float | int
    steps: int
    learning_rate: float | None = None
    seed: int = 0
    warmup: float = 0.02
    decay: float = 0.5
    sparsity_warmup: float = 0.2
    k_start: float = 1.0
    dead_after: int = 50
    revival: float = 1 / 32
    calibration_rows: int = 512


class Dictionary(NamedTuple):
    """The trained parameters, in units of scaled activations."""

    W_enc: Float[Array, "d m"]
    b_enc: Float[Array, " m"]
    W_dec: Float[Array, "m d"]
    b_dec: Float[Array, " d"]


class TrainState(NamedTuple):
    """All that a run needs to go on.

    Attributes:
      step: batches seen.
      dictionary: the parameters.
      optimizer: the state of optax.
      threshold: running mean of the batch threshold.
      scale: activations are multiplied by this before anything else.
      silent: batches since each feature last fired.
    """

    step: Int[Array, ""]
    dictionary: Dictionary
    optimizer: optax.OptState
    threshold: Float[Array, ""]
    scale: Float[Array, ""]
    silent: Int[Array, " m"]


class Metrics(NamedTuple):
    """What one step reports: FVU and L0 of its batch, the share of dead features, the learning rate."""

    fvu: Float[Array, ""]
    l0: Float[Array, ""]
    dead: Float[Array, ""]
    learning_rate: Float[Array, ""]


@partial(jax.jit, static_argnames="config")
def init_state(config: TrainConfig, x: Float[Array, "n d"]) -> TrainState:
    """Start from a first batch: its mean is the decoder bias, the first dictionary is random and its own transpose.

    The scale brings the mean squared norm of the centred rows to ``d``, so that learning rates mean the same at any
    site.
    """
    x = x.astype(jnp.float32)
    d = x.shape[1]
    mean = jnp.mean(x, 0)
    centred = x - jnp.broadcast_to(mean, x.shape)
    scale = jnp.sqrt(d / jnp.mean(jnp.sum(centred**2, -1)))
    W_dec = _unit_rows(jax.random.normal(jax.random.key(config.seed), (config.d_sae, d)))
    dictionary = Dictionary(W_dec.T, jnp.zeros(config.d_sae), W_dec, mean * scale)
    zero = jnp.zeros((), jnp.int32)
    silent = jnp.zeros(config.d_sae, jnp.int32)
    return TrainState(zero, dictionary, _optimizer(config, d).init(dictionary), jnp.zeros(()), scale, silent)


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(config: TrainConfig, state: TrainState, x: Float[Array, "n d"]) -> tuple[TrainState, Metrics]:
    """One batch: the new state and the batch's metrics. ``state`` is donated."""
    x, d = x.astype(jnp.float32) * state.scale, x.shape[1]
    dead = state.silent >= config.dead_after
    grad, (threshold, fired, fvu, l0) = jax.grad(_loss, has_aux=True)(state.dictionary, config, x, state.step, dead)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        updates, optimizer = _optimizer(config, d).update(_tangent(grad, state.dictionary), state.optimizer)
        learning_rate = _learning_rate(config, d)(state.step)
    dictionary = optax.apply_updates(state.dictionary, updates)
    dictionary = dictionary._replace(W_dec=_unit_rows(dictionary.W_dec))
    keep = jnp.where(state.step == 0, 0.0, 0.99)
    running = keep * state.threshold + (1.0 - keep) * threshold
    silent = jnp.where(fired, 0, state.silent + 1)
    metrics = Metrics(fvu, l0, jnp.mean(dead.astype(jnp.float32)), learning_rate)
    return TrainState(state.step + 1, dictionary, optimizer, running, state.scale, silent), metrics


def _loss(p: Dictionary, config: TrainConfig, x: Float[Array, "n d"], step: Int[Array, ""], dead: Bool[Array, " m"]):
    centred = x - jnp.broadcast_to(p.b_dec, x.shape)
    pre = centred @ p.W_enc
    pre = pre + jnp.broadcast_to(p.b_enc, pre.shape)
    threshold = _threshold(config, pre, _active(config, step))
    f = jnp.where(pre > threshold, pre, 0.0)
    error = centred - f @ p.W_dec
    total = jnp.sum((x - jnp.broadcast_to(jnp.mean(x, 0), x.shape)) ** 2)
    fvu = jnp.sum(error**2) / total
    none = lambda *_: jnp.zeros(())
    revival = jax.lax.cond(jnp.any(dead), partial(_revival, config), none, p.W_dec, pre, error, dead, threshold)
    active = f > 0
    l0 = jnp.sum(active) / x.shape[0]
    return fvu + config.revival * revival, (threshold, jnp.any(active, 0), fvu, l0)


def _revival(
    config: TrainConfig,
    W_dec: Float[Array, "m d"],
    pre: Float[Array, "n m"],
    error: Float[Array, "n d"],
    dead: Bool[Array, " m"],
    threshold: Float[Array, ""],
) -> Float[Array, ""]:
    """What trains dead features: how far they are below the threshold, and how badly they explain what is left.

    The first term brings back those that are off everywhere; the second, over the d/2 largest of a row, turns them to
    the error of the living.
    """
    dead = jnp.broadcast_to(dead, pre.shape)
    short = jnp.mean(jnp.where(dead, jax.nn.relu(threshold - pre), 0.0))
    pre = jnp.where(dead, pre, 0.0)
    f = jnp.where(pre > _threshold(config, pre, jnp.float32(error.shape[1] / 2)), pre, 0.0)
    error = jax.lax.stop_gradient(error)
    return short + jnp.sum((error - f @ W_dec) ** 2) / jnp.sum(error**2)


def _threshold(config: TrainConfig, pre: Float[Array, "n m"], active: Float[Array, ""]) -> Float[Array, ""]:
    """The non-negative value that ``active`` entries a row exceed on average, by bisection: sorting is slow."""
    pre = jax.lax.stop_gradient(pre[: config.calibration_rows])

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_many = jnp.mean((pre > middle).astype(jnp.float32)) * pre.shape[1] > active
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    return jax.lax.fori_loop(0, 24, halve, (jnp.zeros(()), jax.nn.relu(jnp.max(pre))))[1]


def _active(config: TrainConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    progress = step.astype(jnp.float32) / max(1.0, config.sparsity_warmup * config.steps)
    return config.k * (config.k_start + (1.0 - config.k_start) * jnp.minimum(progress, 1.0))


def _learning_rate(config: TrainConfig, d: int) -> optax.Schedule:
    peak = 0.1 / d**0.5 if config.learning_rate is None else config.learning_rate
    up, down = (max(1, int(share * config.steps)) for share in (config.warmup, config.decay))
    flat = optax.schedules.constant_schedule(peak)
    rise = optax.schedules.linear_schedule(peak / up, peak, up)
    fall = optax.schedules.linear_schedule(peak, 0.0, down)
    return optax.schedules.join_schedules([rise, flat, fall], [up, max(up, config.steps - down)])


def _optimizer(config: TrainConfig, d: int) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_learning_rate(config, d), b2=0.99))


def _tangent(grad: Dictionary, at: Dictionary) -> Dictionary:
    """The gradient without the part that would only lengthen decoder rows."""
    along = jnp.sum(grad.W_dec * at.W_dec, -1, keepdims=True)
    return grad._replace(W_dec=grad.W_dec - along * at.W_dec)


def _unit_rows(w: Float[Array, "m d"]) -> Float[Array, "m d"]:
    return w / jnp.maximum(jnp.linalg.norm(w, axis=-1, keepdims=True), 1e-12)
