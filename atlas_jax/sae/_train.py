"""Training a sparse autoencoder on a stream of activations."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._sae import SparseAutoencoder
from atlas_jax.sae._train_step import Metrics, TrainConfig, TrainState, init_state, train_step


class TrainingLog(NamedTuple):
    """Curves of a run, one entry per logged step; host arrays.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import TrainingLog
      >>> step = np.array([0, 50])
      >>> log = TrainingLog(step, np.array([0.9, 0.4]), np.array([60.0, 32.0]), np.zeros(2), np.full(2, 1e-3))
      >>> log.fvu[-1].item()
      0.4
    """

    step: np.ndarray
    fvu: np.ndarray
    l0: np.ndarray
    dead: np.ndarray
    learning_rate: np.ndarray


def train(
    batches: Iterable[Float[Array | np.ndarray, "n d"]],
    *,
    d_sae: int,
    k: float | int,
    steps: int,
    seed: int = 0,
    log_every: int = 50,
    on_log: Callable[[int, Metrics], None] | None = None,
    describe: SAEConfig | None = None,
    **options: Any,
) -> tuple[SparseAutoencoder, TrainingLog]:
    """Train a JumpReLU SAE. No equation in the paper.

    By default each step keeps the ``k * n`` largest activations of the batch (BatchTopK), so the mean L0 is ``k``
    without a penalty to tune; the running mean of the cut becomes the threshold of every feature. With
    ``architecture="jumprelu"`` each feature's threshold is trained through straight-through gradients against a
    penalty on L0 whose weight follows L0 to ``k``. Features that stopped firing are trained on the error the others
    leave. Activations are scaled while training; the result takes raw ones, has unit decoder rows and subtracts
    nothing.

    Args:
      batches: shuffled activations, all of one shape, read lazily; ``steps`` of them are used.
      d_sae: number of features.
      k: target L0.
      steps: number of batches.
      seed: seed of the initial dictionary; same seed and batches give the same SAE.
      log_every: steps between two entries of the log.
      on_log: called with the step and its metrics at each of them.
      describe: description whose site and model the result gets.
      options: the other fields of :class:`TrainConfig`.

    Returns:
      The SAE and the curves of FVU, L0, dead share and learning rate.

    Raises:
      AtlasError: if the batches run out.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import train
      >>> batches = np.random.default_rng(0).normal(size=(20, 64, 8)).astype(np.float32)
      >>> sae, log = train(batches, d_sae=16, k=4, steps=20)  # doctest: +SKIP
      >>> bool(log.fvu[-1] < log.fvu[0])  # doctest: +SKIP
      True
    """
    config = TrainConfig(d_sae=d_sae, k=k, steps=steps, seed=seed, **options)
    stream, state, curves = iter(batches), None, []
    for step in range(steps):
        x = next(stream, None)
        if x is None:
            raise AtlasError(f"the activations ran out after {step} of {steps} batches: use more text or fewer steps")
        x = jnp.asarray(x)
        state = init_state(config, x) if state is None else state
        state, metrics = train_step(config, state, x)
        if step % log_every == 0 or step == steps - 1:
            metrics = jax.device_get(metrics)
            curves.append((step, *metrics))
            if on_log is not None:
                on_log(step, metrics)
    return to_sae(config, state, describe), TrainingLog(*map(np.asarray, zip(*curves, strict=True)))


def to_sae(config: TrainConfig, state: TrainState, describe: SAEConfig | None = None) -> SparseAutoencoder:
    """Make the JumpReLU SAE of a training state, for raw activations, with site, model and L0 of ``describe``.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.sae import TrainConfig, init_state, to_sae
      >>> rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
      >>> config = TrainConfig(d_sae=16, k=4, steps=100)
      >>> to_sae(config, init_state(config, rows)).W_dec.shape
      (16, 8)
    """
    p, scale = state.dictionary, state.scale
    b_enc = p.b_enc - jnp.matmul(p.b_dec, p.W_enc, precision=jax.lax.Precision.HIGHEST)
    d, m = p.W_enc.shape
    threshold = jnp.full(m, state.threshold) if p.log_threshold is None else jnp.exp(p.log_threshold)
    about = SAEConfig("jumprelu", d, m) if describe is None else describe
    l0 = float(config.k) if about.advertised_l0 is None else about.advertised_l0
    return SparseAutoencoder.build(
        SAEConfig("jumprelu", d, m, site=about.site, model=about.model, advertised_l0=l0),
        W_enc=p.W_enc,
        b_enc=b_enc / scale,
        W_dec=p.W_dec,
        b_dec=p.b_dec / scale,
        threshold=threshold / scale,
    )
