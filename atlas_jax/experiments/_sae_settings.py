"""What a training run of an SAE is asked for."""

import dataclasses
from math import inf, isfinite
from typing import Any

from atlas_jax.errors import AtlasError
from atlas_jax.sae import ARCHITECTURES, TrainConfig

_LIMITS = {
    "learning_rate": (1e-12, inf),
    "sparsity_warmup": (0, 1),
    "dead_after": (1, inf),
    "norm_limit": (0, inf),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SAESettings:
    """What determines a training run besides the model and the text.

    Attributes:
      site: where the activations are read.
      features: of the SAE.
      k: target mean number of active features a token (L0).
      architecture: "batchtopk" or "jumprelu".
      tokens: activations to train on; text is read again when there are fewer.
      batch: activations of a step.
      buffer: activations held for shuffling.
      learning_rate: peak of Adam's; ``0.1 / sqrt(width)`` by default.
      sparsity_warmup: share of the steps over which L0 falls to ``k``.
      dead_after: activations without which a feature counts as dead.
      norm_limit: activations longer than this many times the median are left out.
      max_length: tokens at which sentences are cut.
      held_out: sentences that are measured on.
      seed: of everything random.
    """

    site: str
    features: int
    k: float
    architecture: str = "batchtopk"
    tokens: int = 4_000_000
    batch: int = 1024
    buffer: int = 1 << 17
    learning_rate: float | None = None
    sparsity_warmup: float = 0.2
    dead_after: int = 50_000
    norm_limit: float = 10.0
    max_length: int = 128
    held_out: int = 1000
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    as_json = to_dict

    def config(self) -> TrainConfig:
        """The settings of the optimiser.

        Raises:
          AtlasError: for a value that cannot be.
        """
        if self.architecture not in ARCHITECTURES:
            raise AtlasError(f"unknown architecture '{self.architecture}'; known are {', '.join(ARCHITECTURES)}")
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and least <= value <= most):
                raise AtlasError(f"{name} is {value}; it must be a number from {least} to {most}")
        if not 0 < self.k < self.features:
            raise AtlasError(f"k is {self.k:g}; it must be above 0 and below the number of features, {self.features}")
        if self.buffer < 4 * self.batch:
            raise AtlasError(f"a buffer of {self.buffer} cannot mix batches of {self.batch}; use {4 * self.batch}")
        if self.tokens < 10 * self.batch:
            raise AtlasError(f"{self.tokens} tokens are too few for batches of {self.batch}; use {10 * self.batch}")
        return TrainConfig(
            self.features, self.k, self.tokens // self.batch, self.architecture, self.learning_rate, self.seed,
            sparsity_warmup=self.sparsity_warmup, dead_after=max(1, self.dead_after // self.batch),
        )  # fmt: skip
