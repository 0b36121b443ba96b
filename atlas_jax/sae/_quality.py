"""How well an SAE explains the activations it is given: streaming, mergeable, inside jit."""

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
    """

    count: Int[Array, ""]
    mean: Float[Array, " d"]
    variance: Float[Array, ""]
    residual: Float[Array, ""]
    l0: Float[Array, ""]
    fired: Int[Array, " m"]


class Quality(NamedTuple):
    """What :func:`quality` reports.

    Attributes:
      fvu: fraction of variance unexplained: squared error over squared distance to the mean; nan without variance.
      l0: mean number of active features a row.
      dead: share of features that were never active.
      frequency: share of rows on which each feature was active.
      count: rows seen.
    """

    fvu: Float[Array, ""]
    l0: Float[Array, ""]
    dead: Float[Array, ""]
    frequency: Float[Array, " m"]
    count: Int[Array, ""]


def init_quality(sae: SparseAutoencoder) -> QualityState:
    """Statistics of no rows at all.

    Example:
      >>> state = init_quality(sae)                        # doctest: +SKIP
      >>> for x in batches:                                # doctest: +SKIP
      ...     state = update_quality(state, sae, x)
      >>> finish_quality(state).fvu                        # doctest: +SKIP
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
    """Add a batch of activations.

    Args:
      state: what came before.
      sae: the SAE under test.
      x: activations of any float dtype.
      mask: the rows that count; all of them when None. Masked rows may hold anything, NaN included.
      target: what should be reconstructed, for transcoders; ``x`` itself when None.
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
    """Statistics of both streams together, in either order; the means move as in Chan's parallel variance."""
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
    """The numbers a reader wants from the statistics."""
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
      >>> quality(sae, acts, tokens.mask).fvu              # doctest: +SKIP
    """
    return finish_quality(update_quality(init_quality(sae), sae, x, mask))
