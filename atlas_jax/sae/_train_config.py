"""What determines a training run, and the schedules that follow from it."""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Architecture = Literal["batchtopk", "jumprelu"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run besides its activations.

    Attributes:
      d_sae: number of features.
      k: target mean number of active features a row (L0).
      steps: number of batches.
      architecture: "batchtopk" keeps the ``k`` largest activations a row of each batch and has one threshold;
        "jumprelu" trains a threshold for each feature against a penalty on their number.
      learning_rate: peak of Adam's learning rate; None means a tenth of a decoder entry's typical size, ``0.1 /
        sqrt(d)``.
      seed: of the initial dictionary.
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
      penalty_rate: how fast that weight follows L0: its logarithm moves by this times ``log(L0 / target)``, at most
        1, a step.
      penalty_gain: how much of ``log(L0 / target)`` is added to that logarithm for one step alone, against swinging.
      calibration_rows: rows of each batch on which the threshold is found.
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
        """Active features a row before the sparsity warm-up."""
        default = 1.0 if self.architecture == "batchtopk" else 4.0
        return self.k * (default if self.k_start is None else self.k_start)


def target_active(config: TrainConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Active features a row that a step aims at: from ``first_active`` to ``k`` along a straight line."""
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
