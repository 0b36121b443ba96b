"""Quality of an SAE on given activations: streaming, mergeable, inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.sae._sae import SparseAutoencoder


class QualityState(NamedTuple):
    """Sufficient statistics of a stream of activations; every mean is over the rows that count.

    Attributes:
      count: rows seen.
      mean: mean activation.
      variance: mean over rows of the squared distance to ``mean``.
      residual: mean over rows of the squared reconstruction error.
      l0: mean number of active features.
      fired: rows on which each feature was active.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae import QualityState
      >>> QualityState(jnp.int32(0), jnp.zeros(2), *jnp.zeros(3), jnp.zeros(4, jnp.int32)).fired.tolist()
      [0, 0, 0, 0]
    """

    count: Int[Array, ""]
    mean: Float[Array, " d"]
    variance: Float[Array, ""]
    residual: Float[Array, ""]
    l0: Float[Array, ""]
    fired: Int[Array, " m"]


class Quality(NamedTuple):
    """Result of :func:`quality`.

    Attributes:
      fvu: fraction of variance unexplained: squared error over squared distance to the mean; nan without variance.
      l0: mean number of active features a row.
      dead: share of features that were never active.
      frequency: share of rows on which each feature was active.
      count: rows seen.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae import Quality
      >>> Quality(*jnp.array([0.25, 10.0, 0.0]), frequency=jnp.ones(4), count=jnp.int32(100)).fvu.item()
      0.25
    """

    fvu: Float[Array, ""]
    l0: Float[Array, ""]
    dead: Float[Array, ""]
    frequency: Float[Array, " m"]
    count: Int[Array, ""]


def init_quality(sae: SparseAutoencoder) -> QualityState:
    """Start with the statistics of no rows.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax.sae import SAEConfig, SparseAutoencoder, finish_quality, init_quality, update_quality
      >>> config = SAEConfig("relu", d_in=2, d_sae=2)
      >>> zeros = {"b_enc": np.zeros(2), "b_dec": np.zeros(2)}
      >>> sae = SparseAutoencoder.build(config, W_enc=np.eye(2), W_dec=np.eye(2), **zeros)
      >>> state = init_quality(sae)
      >>> for x in (jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 3.0]])):
      ...     state = update_quality(state, sae, x)
      >>> quality = finish_quality(state)
      >>> float(quality.fvu), float(quality.l0)
      (0.0, 1.25)
    """
    zero = jnp.zeros((), jnp.float32)
    fired = jnp.zeros(sae.config.d_sae, jnp.int32)
    return QualityState(jnp.zeros((), jnp.int32), jnp.zeros(sae.config.width_out), zero, zero, zero, fired)


@jax.jit
def update_quality(
    state: QualityState,
    sae: SparseAutoencoder,
    x: Float[Array, "*b d"],
    mask: Bool[Array, "*b"] | None = None,
    target: Float[Array, "*b o"] | None = None,
) -> QualityState:
    """Add a batch of activations to the statistics.

    Args:
      state: statistics of the batches before.
      sae: the SAE under test.
      x: activations of any float dtype.
      mask: the rows that count; all of them when None. Masked rows may hold anything, NaN included.
      target: the activations to reconstruct, for transcoders; ``x`` itself when None.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax import SparseAutoencoder
      >>> from atlas_jax.sae import SAEConfig, init_quality, update_quality
      >>> config, zeros = SAEConfig("relu", d_in=2, d_sae=2), {"b_enc": np.zeros(2), "b_dec": np.zeros(2)}
      >>> sae = SparseAutoencoder.build(config, W_enc=np.eye(2), W_dec=np.eye(2), **zeros)
      >>> state = update_quality(init_quality(sae), sae, jnp.array([[1.0, 2.0], [3.0, 0.0]]))
      >>> int(state.count), state.fired.tolist()
      (2, [2, 1])
    """
    weight = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    target = x if target is None else target
    clean = lambda a: jnp.where(weight[..., None], a, 0).astype(jnp.float32).reshape(-1, a.shape[-1])
    x, target, weight = clean(x), clean(target), weight.reshape(-1)
    count = jnp.sum(weight, dtype=jnp.int32)
    rows = jnp.maximum(count, 1).astype(jnp.float32)
    f = sae.encode(x)
    error = target - sae.decode(f, x)
    mean = jnp.sum(target, 0) / rows
    average = lambda per_row: jnp.sum(jnp.where(weight, per_row, 0.0)) / rows
    active = (f > 0) & weight[:, None]
    batch = QualityState(
        count,
        mean,
        average(jnp.sum((target - jnp.broadcast_to(mean, target.shape)) ** 2, -1)),
        average(jnp.sum(error**2, -1)),
        jnp.sum(active).astype(jnp.float32) / rows,
        jnp.sum(active, 0, dtype=jnp.int32),
    )
    return merge_quality(state, batch)


@jax.jit
def merge_quality(a: QualityState, b: QualityState) -> QualityState:
    """Merge the statistics of two streams, in either order; the means move as in Chan's parallel variance.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae import QualityState, merge_quality
      >>> mean = lambda value: jnp.full(2, value)
      >>> state = lambda n, value: QualityState(n, mean(value), *jnp.zeros(3), jnp.zeros(4, jnp.int32))
      >>> merge_quality(state(jnp.int32(1), 2.0), state(jnp.int32(3), 6.0)).mean.tolist()
      [5.0, 5.0]
    """
    count = a.count + b.count
    share = b.count.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    blend = lambda p, q: p + (q - p) * share
    between = jnp.sum((b.mean - a.mean) ** 2) * share * (1.0 - share)
    return QualityState(
        count,
        blend(a.mean, b.mean),
        blend(a.variance, b.variance) + between,
        blend(a.residual, b.residual),
        blend(a.l0, b.l0),
        a.fired + b.fired,
    )


@jax.jit
def finish_quality(state: QualityState) -> Quality:
    """Compute the quality from the statistics.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax import SparseAutoencoder
      >>> from atlas_jax.sae import SAEConfig, finish_quality, init_quality, update_quality
      >>> config, zeros = SAEConfig("relu", d_in=2, d_sae=2), {"b_enc": np.zeros(2), "b_dec": np.zeros(2)}
      >>> sae = SparseAutoencoder.build(config, W_enc=np.eye(2), W_dec=np.eye(2), **zeros)
      >>> state = update_quality(init_quality(sae), sae, jnp.array([[1.0, 2.0], [3.0, 0.0]]))
      >>> float(finish_quality(state).l0)
      1.5
    """
    rows = jnp.maximum(state.count, 1).astype(jnp.float32)
    fvu = jnp.where(state.variance > 0, state.residual / jnp.where(state.variance > 0, state.variance, 1.0), jnp.nan)
    dead = jnp.mean((state.fired == 0).astype(jnp.float32))
    return Quality(fvu, state.l0, dead, state.fired.astype(jnp.float32) / rows, state.count)


def quality(sae: SparseAutoencoder, x: Float[Array, "*b d"], mask: Bool[Array, "*b"] | None = None) -> Quality:
    """FVU, L0 and dead share of an SAE on one batch of activations. No equation in the paper.

    Use :func:`init_quality`, :func:`update_quality`, :func:`merge_quality` and :func:`finish_quality` for more than
    one batch.

    Args:
      sae: the SAE under test.
      x: activations, any number of leading axes.
      mask: the rows that count; all of them when None.

    Returns:
      A :class:`Quality`. FVU 0 is perfect, 1 no better than the mean, above 1 worse: the usual sign of a wrong site.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax.sae import SAEConfig, SparseAutoencoder, quality
      >>> config = SAEConfig("relu", d_in=2, d_sae=2)
      >>> zeros = {"b_enc": np.zeros(2), "b_dec": np.zeros(2)}
      >>> sae = SparseAutoencoder.build(config, W_enc=np.eye(2), W_dec=np.eye(2), **zeros)
      >>> report = quality(sae, jnp.array([[1.0, 0.0], [3.0, 0.0]]))
      >>> float(report.fvu), float(report.dead), report.frequency.tolist()
      (0.0, 0.5, [1.0, 0.0])
    """
    return finish_quality(update_quality(init_quality(sae), sae, x, mask))
