"""What a translator returns, and what it reads from the statistics."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Sharding
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.mesh import to_host
from atlas_jax.types_statistics import Moments, Statistics

Solver = Literal["auto", "host", "device"]
DOUBLE = ("cpu", "gpu", "cuda", "rocm")  # platforms whose devices multiply in float64


class Solution(NamedTuple):
    """A translation matrix and what is known about it.

    Attributes:
      matrix: ``T [d_s, d_c]`` float32: each subject feature in terms of the atlas features.
      certificate: plain numbers and strings that say how the matrix was found and how good it is.
    """

    matrix: Float[Array, "d_s d_c"]
    certificate: dict[str, Any]


class Method(NamedTuple):
    """A registry entry.

    Attributes:
      solve: ``Statistics -> Solution``.
      needs: the statistics it reads, for ``Statistics.init``.
      second_pass: whether ``Statistics.lens`` must be filled by a second pass over the selected sentences.
    """

    solve: Callable[[Statistics], Solution]
    needs: frozenset[str]
    second_pass: bool = False


def solution(matrix: Float[np.ndarray | Array, "d_s d_c"], **certificate: Any) -> Solution:
    """A solution in float32."""
    return Solution(jnp.asarray(matrix, jnp.float32), certificate)


def cross_of(stats: Statistics, *, unit: bool, centre: bool) -> Float[np.ndarray, "d_s d_c"]:
    """``A_s^T A_c`` in float64, of raw or unit rows, centred or not.

    Raises:
      AtlasError: if the statistics do not hold it.
    """
    view = "unit" if unit else "raw"
    centred = _cross(stats, view)
    _, atlas, subject, cross = stats.low
    product = to_host(centred).astype(np.float64)
    product += to_host(getattr(cross, view))
    if not centre:
        mean_c = _mean(getattr(stats.atlas, view), getattr(atlas, view))
        mean_s = _mean(getattr(stats.subject, view), getattr(subject, view))
        product += np.outer(_weight(stats) * mean_s, mean_c)
    return product


def cross_on_devices(stats: Statistics, *, unit: bool, centre: bool) -> Float[Array, "d_s d_c"]:
    """As :func:`cross_of`, computed where the statistics are and sharded like them; float32 without float64 there.

    Raises:
      AtlasError: if the statistics do not hold it.
    """
    view = "unit" if unit else "raw"
    centred = jnp.asarray(_cross(stats, view))
    weight, atlas, subject, cross = stats.low
    means = getattr(stats.subject, view).mean, getattr(stats.atlas, view).mean, stats.weight
    low = getattr(subject, view).mean, getattr(atlas, view).mean, weight
    with jax.enable_x64(has_double(centred)):
        return _uncentred(centred, getattr(cross, view), None if centre else (means, low), centred.sharding)


@partial(jax.jit, static_argnums=3)
def _uncentred(
    centred: Float[Array, "d_s d_c"], low: Float[Array, "d_s d_c"], means: Any, result: Sharding
) -> Float[Array, "d_s d_c"]:
    """The sum of both halves in the widest float, and ``weight * outer(means)``."""
    wide = lambda x: jnp.asarray(x, float)
    product = wide(centred) + wide(low)
    if means is not None:
        mean_s, mean_c, weight = (wide(high) + wide(rest) for high, rest in zip(*means, strict=True))
        product = product + jnp.outer(weight * mean_s, mean_c)
    return lax.with_sharding_constraint(product, result)


def has_double(x: Float[Array, "..."]) -> bool:
    """Whether the devices that hold x multiply in float64."""
    return all(device.platform in DOUBLE for device in x.sharding.device_set)


def _belongs_on_devices(m: Float[np.ndarray | Array, "p q"] | None) -> bool:
    """Whether this array is spread over devices, or on an accelerator."""
    if not isinstance(m, jax.Array):
        return False
    platforms = {device.platform for device in m.sharding.device_set}
    return platforms != {"cpu"} or not m.sharding.is_fully_replicated


def solved_on_devices(solver: Solver, large: Sequence[Float[np.ndarray | Array, "_ _"] | None]) -> bool:
    """What ``solver`` means for these arrays: "auto" is the devices if any of them is spread or on an accelerator.

    Raises:
      AtlasError: for another solver.
    """
    if solver not in (known := get_args(Solver)):
        raise AtlasError(f"unknown solver '{solver}'; use {', '.join(known)}")
    return solver == "device" or (solver == "auto" and any(map(_belongs_on_devices, large)))


def where_it_belongs(
    solver: Solver,
    large: Sequence[Float[np.ndarray | Array, "_ _"] | None],
    on_host: Callable[[], Solution],
    on_devices: Callable[[], tuple[Float[Array, "d_s d_c"], dict[str, Any]]],
) -> Solution:
    """Solved on the devices or on the host, as ``solver`` and the place of the large arrays have it.

    A device result that is not accepted is solved again on the host, if one process holds it all.
    """
    if not solved_on_devices(solver, large):
        return on_host()
    t, certificate = on_devices()
    if certificate["accepted"] or not t.is_fully_addressable:
        return solution(t, **certificate)
    found = on_host()
    return found._replace(certificate=found.certificate | {"escalated_from": certificate["solver"]})


def gram_of(stats: Statistics, side: str, *, unit: bool, centre: bool) -> Float[np.ndarray, "d d"]:
    """``A^T A`` of one side, ``"subject"`` or ``"atlas"``, in float64; otherwise as :func:`cross_of`."""
    moments, low = _moments(stats, side, unit)
    product = to_host(moments.gram).astype(np.float64)
    product += to_host(low.gram)
    product = (product + product.T) / 2
    if not centre:
        mean = _mean(moments, low)
        product += np.outer(_weight(stats) * mean, mean)
    return product


def gram_on_devices(stats: Statistics, side: str, *, unit: bool) -> tuple[Float[Array, "d d"], Float[np.ndarray, " d"]]:
    """The centred Gram matrix where the statistics are and sharded like them, as :func:`cross_on_devices`.

    And the vector v of the mean by which the uncentred one is ``G + v v^T``, on the host.

    Raises:
      AtlasError: if the statistics do not hold it.
    """
    moments, low = _moments(stats, side, unit)
    gram = jnp.asarray(moments.gram)
    with jax.enable_x64(has_double(gram)):
        return _uncentred(gram, low.gram, None, gram.sharding), np.sqrt(_weight(stats)) * _mean(moments, low)


def check_rows(stats: Statistics) -> None:
    """Refuse statistics of no rows: every matrix of theirs would be zero.

    Raises:
      AtlasError: saying why there are none, if rows were left out.
    """
    if not float(stats.weight) > 0:
        left_out = int(stats.faults.rows)
        why = f" ({left_out} were left out, for they were not finite)" * (left_out > 0)
        raise AtlasError(f"these statistics hold no rows{why}; add some with update before solving")


def _cross(stats: Statistics, view: str) -> Float[np.ndarray | Array, "d_s d_c"]:
    centred = getattr(stats.cross, view)
    if centred is None:
        name = "unit_cross" if view == "unit" else "cross"
        raise AtlasError(f"these statistics lack '{name}'; name it in Statistics.init")
    check_rows(stats)
    return centred


def _moments(stats: Statistics, side: str, unit: bool) -> tuple[Moments, Moments]:
    """Those of one side that hold a Gram matrix, and what float32 rounded away from them."""
    view = "unit" if unit else "raw"
    moments = getattr(getattr(stats, side), view)
    if moments is None or moments.gram is None:
        name = f"{'unit_' if unit else ''}{side}_gram"
        raise AtlasError(f"these statistics lack '{name}'; name it in Statistics.init")
    check_rows(stats)
    _, atlas, subject, _ = stats.low
    return moments, getattr(atlas if side == "atlas" else subject, view)


def _weight(stats: Statistics) -> float:
    return float(stats.weight) + float(stats.low[0])


def _mean(moments: Moments, low: Moments) -> Float[np.ndarray, " d"]:
    return np.asarray(moments.mean, np.float64) + np.asarray(low.mean, np.float64)
