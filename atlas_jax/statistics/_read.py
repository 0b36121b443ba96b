"""Second moments as translators read them: where the statistics are, or whole and in float64 on one device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.sharding import to_host
from atlas_jax.statistics._types import Moments, Statistics

DOUBLE = ("cpu", "gpu", "cuda", "rocm")  # platforms whose devices multiply in float64
LARGEST = 2**16  # features of a Gram matrix, which is then 34 GB


def cross_product(stats: Statistics, *, unit: bool, centre: bool, one_device: bool = False) -> Float[Array, "d_s d_c"]:
    """Return ``A_s^T A_c`` of raw or unit rows, centred or not.

    Where the statistics are and sharded like them, in float64 where their devices have it, else float32; or in float64
    on :func:`solver_device`.

    Raises:
      AtlasError: if the statistics do not hold it.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import cross_product
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["cross"], 1, 1), x, 2 * x)
      >>> [cross_product(stats, unit=False, centre=centre).tolist() for centre in (False, True)]
      [[[20.0]], [[4.0]]]
    """
    view = "unit" if unit else "raw"
    centred, (weight, atlas, subject, cross) = centred_cross(stats, unit=unit), stats.compensation
    means = getattr(stats.subject, view).mean, getattr(stats.atlas, view).mean, stats.weight
    low = getattr(subject, view).mean, getattr(atlas, view).mean, weight
    parts = centred, getattr(cross, view), None if centre else (means, low)
    parts = on_one_device(parts) if one_device else (jnp.asarray(parts[0]), *parts[1:])
    with jax.enable_x64(one_device or has_double(parts[0])):
        return _sum(*parts)


def centred_cross(stats: Statistics, *, unit: bool) -> Float[np.ndarray | Array, "d_s d_c"]:
    """Return the centred cross product of raw or unit rows as it was accumulated.

    Raises:
      AtlasError: if the statistics do not hold it, or no rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import centred_cross
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["cross"], 1, 1), x, 2 * x)
      >>> centred_cross(stats, unit=False).tolist()
      [[4.0]]
    """
    centred = stats.cross.unit if unit else stats.cross.raw
    if centred is None:
        raise AtlasError(f"these statistics lack '{'unit_' * unit}cross'; name it in Statistics.init")
    check_rows(stats)
    return centred


class GramMoments(NamedTuple):
    """The parts of a Gram matrix, on :func:`solver_device`: each sum, and its rounding error in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import gram_moments
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["atlas_gram"], 1, 1), x, 2 * x)
      >>> gram_moments(stats, "atlas", unit=False).mean[0].tolist()
      [4.0]
    """

    gram: tuple[Float[Array, "d d"], Float[Array, "d d"]]
    mean: tuple[Float[Array, " d"], Float[Array, " d"]]
    weight: tuple[Float[Array, ""], Float[Array, ""]]


def gram_moments(stats: Statistics, side: str, *, unit: bool) -> GramMoments:
    """Return the moments of one side, ``"subject"`` or ``"atlas"``, of raw or unit rows.

    Raises:
      AtlasError: if the statistics do not hold them, or they are too large for one device.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import gram_moments
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["atlas_gram"], 1, 1), x, 2 * x)
      >>> gram_moments(stats, "atlas", unit=False).gram[0].tolist()
      [[8.0]]
    """
    moments, low = _moments(stats, side, unit)
    if (width := moments.gram.shape[0]) > LARGEST:
        raise AtlasError(
            f"the Gram matrix of {width} {side} features does not go on one device, where it is factorised (at most "
            f"{LARGEST}); use procrustes, covariance, correlation or semantic_lens, which need none"
        )
    weight = stats.weight, stats.compensation[0]
    return on_one_device(GramMoments((moments.gram, low.gram), (moments.mean, low.mean), weight))


def gram_matrix(moments: GramMoments, *, centre: bool) -> Float[Array, "d d"]:
    """Return ``A^T A``, symmetric, in float64 where the moments are; centred or not.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import gram_matrix, gram_moments
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = update(Statistics.init(["atlas_gram"], 1, 1), x, 2 * x)
      >>> moments = gram_moments(stats, "atlas", unit=False)
      >>> gram_matrix(moments, centre=False).tolist(), gram_matrix(moments, centre=True).tolist()
      ([[40.0]], [[8.0]])
    """
    with jax.enable_x64(True):
        means = None if centre else tuple((mean, mean, weight) for mean, weight in zip(*moments[1:], strict=True))
        product = _sum(*moments.gram, means)
        return (product + product.T) / 2


@jax.jit
def _sum(high: Float[Array, "a b"], low: Float[Array, "a b"], means: Any) -> Float[Array, "a b"]:
    """The sum of both halves in the widest float, and ``weight * outer(means)``."""
    wide = lambda x: jnp.asarray(x, float)
    product = wide(high) + wide(low)
    if means is None:
        return product
    mean_a, mean_b, weight = (wide(high) + wide(rest) for high, rest in zip(*means, strict=True))
    return product + jnp.outer(weight * mean_a, mean_b)


def has_double(x: Float[Array, "..."]) -> bool:
    """Return true if the devices that hold x multiply in float64.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import has_double
      >>> has_double(jax.device_put(jnp.ones(2), jax.devices("cpu")[0]))
      True
    """
    return all(device.platform in DOUBLE for device in x.sharding.device_set)


def solver_device() -> jax.Device:
    """Return a device of this process with float64: its first accelerator, or the host.

    Example:
      >>> from atlas_jax.statistics import solver_device
      >>> solver_device().platform in ("cpu", "gpu")
      True
    """
    first = jax.local_devices()[0]
    return first if first.platform in DOUBLE else jax.local_devices(backend="cpu")[0]


def on_one_device(tree: Any) -> Any:
    """Move arrays whole to :func:`solver_device`, wherever they are; all processes that hold a part must call.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import on_one_device
      >>> len(on_one_device({"a": jnp.ones(3)})["a"].sharding.device_set)
      1
    """
    spans = lambda x: isinstance(x, jax.Array) and not x.is_fully_addressable
    device = solver_device()
    return jax.tree.map(lambda x: jax.device_put(to_host(x) if spans(x) else x, device), tree)


def check_rows(stats: Statistics) -> None:
    """Refuse statistics of no rows: every matrix of theirs would be zero.

    Raises:
      AtlasError: with the reason, if rows were left out.

    Example:
      >>> from atlas_jax import Statistics
      >>> from atlas_jax.statistics import check_rows
      >>> check_rows(Statistics.init(["cross"], 1, 1))
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: these statistics hold no rows; add some with update before solving
    """
    if not float(stats.weight) > 0:
        left_out = int(stats.nonfinite.rows)
        why = f" ({left_out} were left out, for they were not finite)" * (left_out > 0)
        raise AtlasError(f"these statistics hold no rows{why}; add some with update before solving")


def _moments(stats: Statistics, side: str, unit: bool) -> tuple[Moments, Moments]:
    """The moments of one side that hold a Gram matrix, and their rounding errors in float32."""
    view = "unit" if unit else "raw"
    moments = getattr(getattr(stats, side), view)
    if moments is None or moments.gram is None:
        name = f"{'unit_' if unit else ''}{side}_gram"
        raise AtlasError(f"these statistics lack '{name}'; name it in Statistics.init")
    check_rows(stats)
    _, atlas, subject, _ = stats.compensation
    return moments, getattr(atlas if side == "atlas" else subject, view)
