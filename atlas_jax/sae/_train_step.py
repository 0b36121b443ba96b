"""Settings and single step of the training of sparse autoencoders."""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.sae._jump import trained_jump, trained_step

Architecture = Literal["batchtopk", "jumprelu"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run: all that determines it besides its activations.

    Attributes:
      d_sae: number of features.
      k: target mean number of active features a row (L0).
      steps: number of batches.
      architecture: "batchtopk" keeps the ``k`` largest activations a row of each batch and has one threshold;
        "jumprelu" trains a threshold for each feature against a penalty on their number.
      learning_rate: peak of Adam's learning rate; None means a tenth of a decoder entry's typical size, ``0.1 /
        sqrt(d)``.
      seed: seed of the initial dictionary.
      warmup: share of the steps over which the learning rate rises from 0.
      decay: share of the steps, at the end, over which it falls to 0.
      sparsity_warmup: share of the steps over which the number of active features falls from ``k_start * k`` to
        ``k``.
      k_start: see ``sparsity_warmup``; by default 1, no warm-up, for batchtopk and 4 for jumprelu, which measured
        best.
      dead_after: a feature counts as dead after this many batches in a row without firing.
      revival: weight of the loss that brings dead features back.
      bandwidth: width of the window in which a trained threshold sees activations, in units of ``sqrt(d)`` and the
        scaled activations.
      penalty: first weight of the penalty ``L0 / k`` beside the FVU, with trained thresholds.
      penalty_rate: rate at which that weight follows L0: its logarithm moves by this times ``log(L0 / target)``, at
        most 1, a step.
      penalty_gain: multiple of ``log(L0 / target)`` added to that logarithm for one step alone, against swinging.
      calibration_rows: rows of each batch on which the threshold is computed.

    Example:
      >>> from atlas_jax.sae import TrainConfig
      >>> TrainConfig(d_sae=1024, k=32, steps=4000, architecture="jumprelu").first_active
      128.0
    """

    d_sae: int
    k: float | int
    steps: int
    architecture: Architecture = "batchtopk"
    learning_rate: float | None = None
    seed: int = 0
    warmup: float = 0.02
    decay: float = 0.5
    sparsity_warmup: float = 0.2
    k_start: float | None = None
    dead_after: int = 50
    revival: float = 1 / 32
    bandwidth: float = 0.05
    penalty: float = 0.03
    penalty_rate: float = 0.02
    penalty_gain: float = 3.0
    calibration_rows: int = 512

    @property
    def first_active(self) -> float:
        """Number of active features a row before the sparsity warm-up."""
        default = 1.0 if self.architecture == "batchtopk" else 4.0
        return self.k * (default if self.k_start is None else self.k_start)


def target_active(config: TrainConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Target number of active features a row at a step: from ``first_active`` to ``k`` along a straight line."""
    progress = step.astype(jnp.float32) / max(1.0, config.sparsity_warmup * config.steps)
    return config.first_active + (config.k - config.first_active) * jnp.minimum(progress, 1.0)


def learning_rate(config: TrainConfig, d: int) -> optax.Schedule:
    """The learning rate by step: a straight rise, a plateau, and a straight fall to 0."""
    peak = 0.1 / d**0.5 if config.learning_rate is None else config.learning_rate
    up, down = (max(1, int(share * config.steps)) for share in (config.warmup, config.decay))
    flat = optax.schedules.constant_schedule(peak)
    rise = optax.schedules.linear_schedule(peak / up, peak, up)
    fall = optax.schedules.linear_schedule(peak, 0.0, down)
    return optax.schedules.join_schedules([rise, flat, fall], [up, max(up, config.steps - down)])


class Dictionary(NamedTuple):
    """The trained parameters, in units of scaled activations.

    Attributes:
      W_enc: encoder.
      b_enc: its bias.
      W_dec: decoder, unit rows.
      b_dec: its bias, subtracted before encoding.
      log_threshold: logarithm of each feature's threshold; None where one threshold is computed batch by batch.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import Dictionary, TrainConfig, init_state
      >>> rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
      >>> isinstance(init_state(TrainConfig(d_sae=16, k=4, steps=100), rows).dictionary, Dictionary)
      True
    """

    W_enc: Float[Array, "d m"]
    b_enc: Float[Array, " m"]
    W_dec: Float[Array, "m d"]
    b_dec: Float[Array, " d"]
    log_threshold: Float[Array, " m"] | None = None


class TrainState(NamedTuple):
    """State of a training run, from which it can be resumed.

    Attributes:
      step: batches seen.
      dictionary: the parameters.
      optimizer: the state of optax.
      threshold: running mean of the batch threshold (batchtopk).
      log_penalty: logarithm of the weight of the sparsity penalty (jumprelu).
      scale: activations are multiplied by this before anything else.
      silent: batches since each feature last fired.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import TrainConfig, TrainState, init_state
      >>> rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
      >>> state = init_state(TrainConfig(d_sae=16, k=4, steps=100), rows)
      >>> isinstance(state, TrainState), state.silent.shape
      (True, (16,))
    """

    step: Int[Array, ""]
    dictionary: Dictionary
    optimizer: optax.OptState
    threshold: Float[Array, ""]
    log_penalty: Float[Array, ""]
    scale: Float[Array, ""]
    silent: Int[Array, " m"]


class Metrics(NamedTuple):
    """Report of one step: FVU and L0 of its batch, the share of dead features, the learning rate.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae import Metrics
      >>> Metrics(*jnp.array([0.2, 32.0, 0.0, 1e-3])).l0.item()
      32.0
    """

    fvu: Float[Array, ""]
    l0: Float[Array, ""]
    dead: Float[Array, ""]
    learning_rate: Float[Array, ""]


class _Measured(NamedTuple):
    """Quantities measured while the loss is computed."""

    threshold: Float[Array, " one_or_m"]
    fired: Bool[Array, " m"]
    fvu: Float[Array, ""]
    l0: Float[Array, ""]


@partial(jax.jit, static_argnames="config")
def init_state(config: TrainConfig, x: Float[Array, "n d"]) -> TrainState:
    """Start from a first batch: its mean is the decoder bias, the first dictionary is random and its own transpose.

    The scale brings the mean squared norm of the centred rows to ``d``, so that learning rates mean the same at any
    site. Trained thresholds start where ``first_active`` features a row are above them.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import TrainConfig, init_state
      >>> rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
      >>> state = init_state(TrainConfig(d_sae=16, k=4, steps=100), rows)
      >>> state.dictionary.W_enc.shape, int(state.step)
      ((8, 16), 0)
    """
    x, d = x.astype(jnp.float32), x.shape[1]
    mean = jnp.mean(x, 0)
    centred = x - jnp.broadcast_to(mean, x.shape)
    scale = jnp.sqrt(d / jnp.mean(jnp.sum(centred**2, -1)))
    W_dec = _unit_rows(jax.random.normal(jax.random.key(config.seed), (config.d_sae, d)))
    dictionary = Dictionary(W_dec.T, jnp.zeros(config.d_sae), W_dec, mean * scale)
    if config.architecture == "jumprelu":
        cut = _cut(config, scale * centred @ W_dec.T, jnp.float32(config.first_active))
        dictionary = dictionary._replace(log_threshold=jnp.full(config.d_sae, jnp.log(jnp.maximum(cut, 1e-3))))
    optimizer = _optimizer(config, d).init(dictionary)
    penalty = jnp.log(jnp.float32(config.penalty))
    zeros = jnp.zeros(config.d_sae, jnp.int32)
    return TrainState(jnp.zeros((), jnp.int32), dictionary, optimizer, jnp.zeros(()), penalty, scale, zeros)


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(config: TrainConfig, state: TrainState, x: Float[Array, "n d"]) -> tuple[TrainState, Metrics]:
    """Train on one batch; return the new state and the batch's metrics. ``state`` is donated.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import TrainConfig, init_state, train_step
      >>> rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
      >>> config = TrainConfig(d_sae=16, k=4, steps=100)
      >>> state, metrics = train_step(config, init_state(config, rows), rows)
      >>> int(state.step), round(float(metrics.l0))
      (1, 4)
    """
    x, d = x.astype(jnp.float32) * state.scale, x.shape[1]
    dead, target = state.silent >= config.dead_after, target_active(config, state.step)
    weights = dead, target, jnp.exp(state.log_penalty)
    grad, measured = jax.grad(_loss, has_aux=True)(state.dictionary, config, x, *weights)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        updates, optimizer = _optimizer(config, d).update(_tangent(grad, state.dictionary), state.optimizer)
        rate = learning_rate(config, d)(state.step)
    dictionary = optax.apply_updates(state.dictionary, updates)
    keep = jnp.where(state.step == 0, 0.0, 1.0 - 1.0 / min(100.0, max(1.0, config.steps / 20)))
    state = TrainState(
        state.step + 1,
        dictionary._replace(W_dec=_unit_rows(dictionary.W_dec)),
        optimizer,
        keep * state.threshold + (1.0 - keep) * jnp.mean(measured.threshold),
        state.log_penalty + config.penalty_rate * _off(measured.l0, target),
        state.scale,
        jnp.where(measured.fired, 0, state.silent + 1),
    )
    return state, Metrics(measured.fvu, measured.l0, jnp.mean(dead.astype(jnp.float32)), rate)


def _loss(
    p: Dictionary,
    config: TrainConfig,
    x: Float[Array, "n d"],
    dead: Bool[Array, " m"],
    target: Float[Array, ""],
    penalty: Float[Array, ""],
) -> tuple[Float[Array, ""], _Measured]:
    centred = x - jnp.broadcast_to(p.b_dec, x.shape)
    pre = centred @ p.W_enc
    pre = pre + jnp.broadcast_to(p.b_enc, pre.shape)
    if p.log_threshold is None:
        threshold = _cut(config, pre, target)[None]
        f, sparsity = jnp.where(pre > jnp.broadcast_to(threshold, pre.shape), pre, 0.0), jnp.zeros(())
    else:
        threshold, width = jnp.exp(p.log_threshold), config.bandwidth * x.shape[1] ** 0.5
        f = trained_jump(pre, threshold, width)
        l0 = jnp.sum(trained_step(pre, threshold, width)) / x.shape[0]
        off = jax.lax.stop_gradient(_off(l0, target))
        sparsity = penalty * jnp.exp(config.penalty_gain * off) * l0 / config.k
    error = centred - f @ p.W_dec
    fvu = jnp.sum(error**2) / jnp.sum((x - jnp.broadcast_to(jnp.mean(x, 0), x.shape)) ** 2)
    none = lambda *_: jnp.zeros(())
    revival = jax.lax.cond(jnp.any(dead), partial(_revival, config), none, p.W_dec, pre, error, dead, threshold)
    active = f > 0
    measured = _Measured(threshold, jnp.any(active, 0), fvu, jnp.sum(active) / x.shape[0])
    return fvu + sparsity + config.revival * revival, measured


def _revival(
    config: TrainConfig,
    W_dec: Float[Array, "m d"],
    pre: Float[Array, "n m"],
    error: Float[Array, "n d"],
    dead: Bool[Array, " m"],
    threshold: Float[Array, " one_or_m"],
) -> Float[Array, ""]:
    """Loss of dead features: their distance below the threshold, and their error on what the others leave unexplained.

    The first term brings back features that are off everywhere; the second, over the d/2 largest of a row, turns them
    to the error of the others.
    """
    dead = jnp.broadcast_to(dead, pre.shape)
    goal = jnp.broadcast_to(jax.lax.stop_gradient(threshold), pre.shape)
    short = jnp.mean(jnp.where(dead, jax.nn.relu(goal - pre), 0.0))
    pre = jnp.where(dead, pre, 0.0)
    f = jnp.where(pre > _cut(config, pre, jnp.float32(error.shape[1] / 2)), pre, 0.0)
    error = jax.lax.stop_gradient(error)
    return short + jnp.sum((error - f @ W_dec) ** 2) / jnp.sum(error**2)


def _cut(config: TrainConfig, pre: Float[Array, "n m"], active: Float[Array, ""]) -> Float[Array, ""]:
    """Find the non-negative value that ``active`` entries a row exceed on average, by bisection: sorting is slow."""
    pre = jax.lax.stop_gradient(pre[: config.calibration_rows])

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_many = jnp.mean((pre > middle).astype(jnp.float32)) * pre.shape[1] > active
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    return jax.lax.fori_loop(0, 24, halve, (jnp.zeros(()), jax.nn.relu(jnp.max(pre))))[1]


def _off(l0: Float[Array, ""], target: Float[Array, ""]) -> Float[Array, ""]:
    """Distance of L0 from its target on a logarithmic scale, at most 1."""
    return jnp.clip(jnp.log(jnp.maximum(l0, 1e-3) / target), -1.0, 1.0)


def _optimizer(config: TrainConfig, d: int) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate(config, d), b2=0.99))


def _tangent(grad: Dictionary, at: Dictionary) -> Dictionary:
    """Remove the part of the gradient that would only lengthen decoder rows."""
    along = jnp.sum(grad.W_dec * at.W_dec, -1, keepdims=True)
    return grad._replace(W_dec=grad.W_dec - along * at.W_dec)


def _unit_rows(w: Float[Array, "m d"]) -> Float[Array, "m d"]:
    return w / jnp.maximum(jnp.linalg.norm(w, axis=-1, keepdims=True), 1e-12)
