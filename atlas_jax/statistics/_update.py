"""The streamed pass: add a batch, merge two states."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from atlas_jax.checks import AnyArray, as_numbers, on_host, refuse
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import mesh_of, sharding_for
from atlas_jax.statistics._moments import Rows, absorb, chunk_cross, chunk_side, row_maximum
from atlas_jax.statistics._top import top_merge, top_update
from atlas_jax.statistics._types import NonFinite, PassStatistics, Side, Statistics, Sums, layout

Matrix = AnyArray


def update_pass(
    state: PassStatistics,
    acts: Mapping[Any, Float[Matrix, "b _"]],
    a_c: Float[Matrix, "b d_c"],
    weight: Float[Matrix, " b"] | None = None,
    index: Int[Matrix, " b"] | None = None,
    positions: Mapping[Any, Int[Matrix, "b _"]] | None = None,
    *,
    mesh: Mesh | None = None,
) -> PassStatistics:
    """Add a batch of pooled activations of several subject sites and of the atlas.

    The atlas rows are centred, normalised and multiplied with themselves once for all sites. Rows of weight zero are
    padding and may hold anything. A row with an activation that is not finite, at any site, is left out everywhere and
    recorded in ``nonfinite``; so is, inside ``jit`` and on accelerators, one whose weight is not a number from 0 up.
    Accumulation is float32 at the highest precision; the error does not grow with the number of batches.

    Args:
      state: the statistics so far, donated.
      acts: subject activations by site ``[b, d_s]``, any float dtype.
      a_c: atlas activations ``[b, d_c]``, any float dtype.
      weight: weights of the rows, one each by default.
      index: sentence ids of the rows, the running row number by default.
      positions: numbers to carry beside the top-k values, by site; needed when ``init`` had ``peaks=True``.
      mesh: the mesh of the state. Read from the state by default; needed inside a jitted function.

    Raises:
      AtlasError: if a site of the state is missing, there are no rows, or something is no array of real numbers or has
        another shape; for weights on the host also where one is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import PassStatistics
      >>> from atlas_jax.statistics import update_pass
      >>> state = PassStatistics.init(["cross"], {"a": 2}, 2)
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> update_pass(state, {"a": x}, x).sums.crosses["a"].raw.tolist()
      [[0.5, -0.5], [-0.5, 0.5]]
    """
    if not isinstance(acts, Mapping):
        raise AtlasError(f"activations of several sites are a mapping by site, not a {type(acts).__name__}")
    _check(state, acts, a_c, weight, index, positions)
    return _update_pass(state, dict(acts), a_c, weight, index, positions, mesh or mesh_of(state))


@partial(jax.jit, donate_argnums=0, static_argnums=6)
def _update_pass(
    state: PassStatistics,
    acts: dict[Any, Float[Matrix, "b _"]],
    a_c: Float[Matrix, "b d_c"],
    weight: Float[Matrix, " b"] | None,
    index: Int[Matrix, " b"] | None,
    positions: Mapping[Any, Int[Matrix, "b _"]] | None,
    mesh: Mesh | None,
) -> PassStatistics:
    a_c = _whole_rows(a_c, mesh, "model").astype(jnp.float32)
    acts = {site: _whole_rows(acts[site], mesh, "data").astype(jnp.float32) for site in state.sites}
    weight = jnp.ones(a_c.shape[0]) if weight is None else weight
    weight = _whole_rows(weight, mesh).astype(jnp.float32)
    index = state.seen + jnp.arange(a_c.shape[0]) if index is None else index
    index = _whole_rows(index, mesh).astype(jnp.int32)
    offered, valid = weight != 0, jnp.isfinite(weight) & (weight > 0)
    peaks, peak_c = jax.tree.map(row_maximum, acts), row_maximum(a_c)
    keep = valid & jnp.isfinite(sum(peaks.values(), peak_c))
    chunk, chunk_low = _chunk(state.sums, acts, a_c, peaks, peak_c, jnp.where(keep, weight, 0.0))
    sums, low = absorb(state.sums, state.compensation, chunk, chunk_low)
    top = None
    if state.top is not None:
        where = {site: _whole_rows(x, mesh, "data") for site, x in (positions or {}).items()}
        top = {s: top_update(state.top[s], acts[s], keep, index, where.get(s)) for s in state.sites}
    nonfinite = _record(state.nonfinite, offered & ~keep, index)
    return _laid_out(PassStatistics(sums, low, top, state.seen + a_c.shape[0], nonfinite), mesh)


def merge_pass(a: PassStatistics, b: PassStatistics) -> PassStatistics:
    """Return the statistics of both passes; associative and symmetric to rounding.

    Sentence ids must be given to :func:`update_pass` for the top-k of merged passes to be meaningful.

    Raises:
      AtlasError: if the two do not hold the same statistics of the same sites and widths.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import PassStatistics
      >>> from atlas_jax.statistics import merge_pass, update_pass
      >>> x = jnp.ones((3, 1))
      >>> one, other = (update_pass(PassStatistics.init(["cross"], {"a": 1}, 1), {"a": x}, x) for _ in range(2))
      >>> float(merge_pass(one, other).sums.weight)
      6.0
    """
    shapes = lambda state: jax.tree.map(jnp.shape, state._replace(top=None))
    if shapes(a) != shapes(b) or (a.top is not None and b.top is None):
        raise AtlasError(
            "only statistics of the same needs, sites and widths can be merged; make both by the same init"
        )
    return _merge_pass(a, b, mesh_of(a))


@partial(jax.jit, static_argnums=2)
def _merge_pass(a: PassStatistics, b: PassStatistics, mesh: Mesh | None) -> PassStatistics:
    sums, low = absorb(a.sums, a.compensation, b.sums, b.compensation)
    top = None if a.top is None else {site: top_merge(a.top[site], b.top[site]) for site in a.sites}
    first = jnp.where(a.nonfinite.rows > 0, a.nonfinite.first, b.nonfinite.first)
    nonfinite = NonFinite(a.nonfinite.rows + b.nonfinite.rows, first)
    return _laid_out(PassStatistics(sums, low, top, a.seen + b.seen, nonfinite), mesh)


def update(
    stats: Statistics,
    a_s: Float[Matrix, "b d_s"],
    a_c: Float[Matrix, "b d_c"],
    weight: Float[Matrix, " b"] | None = None,
    index: Int[Matrix, " b"] | None = None,
    position: Int[Matrix, "b d_s"] | None = None,
) -> Statistics:
    """Add a batch of pooled activations of one subject site and of the atlas; as :func:`update_pass`.

    Raises:
      AtlasError: as :func:`update_pass`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> stats = Statistics.init(["cross"], 2, 2)
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> update(stats, x, x).cross.raw.tolist()
      [[0.5, -0.5], [-0.5, 0.5]]
    """
    positions = None if position is None else {"": position}
    return update_pass(_as_pass(stats), {"": a_s}, a_c, weight, index, positions).statistics("")


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of both sets of rows; associative and symmetric to rounding.

    Raises:
      AtlasError: as :func:`merge_pass`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, merge, update
      >>> one = update(Statistics.init(["cross"], 1, 1), jnp.ones((3, 1)), jnp.ones((3, 1)))
      >>> float(merge(one, one).weight)
      6.0
    """
    return merge_pass(_as_pass(a), _as_pass(b)).statistics("")


def _as_pass(stats: Statistics) -> PassStatistics:
    sums = lambda weight, atlas, subject, cross: Sums(weight, atlas, {"": subject}, {"": cross})
    top = None if stats.top is None else {"": stats.top}
    return PassStatistics(sums(*stats[:4]), sums(*stats.compensation), top, stats.seen, stats.nonfinite)


def _whole_rows(x: Shaped[Matrix, "b *d"], mesh: Mesh | None, axis: str | None = None) -> Shaped[Array, "b *d"]:
    """Give every device all rows of its columns, so that no product of rows has to be summed over devices.

    A batch has far fewer rows than a matrix of statistics, so moving rows is cheaper than adding up matrices.
    """
    x = jnp.asarray(x)
    if mesh is None:
        return x
    if axis == "model":  # columns first: a slice and then a gathering, where one step would gather everything
        x = jax.lax.with_sharding_constraint(x, sharding_for(x.shape, mesh, "data", axis))
    return jax.lax.with_sharding_constraint(x, sharding_for(x.shape, mesh, None, axis))


def _laid_out(state: PassStatistics, mesh: Mesh | None) -> PassStatistics:
    return state if mesh is None else jax.lax.with_sharding_constraint(state, layout(state, mesh))


def _chunk(
    like: Sums,
    acts: dict[Any, Float[Array, "b _"]],
    a_c: Float[Array, "b d_c"],
    peaks: dict[Any, Float[Array, " b"]],
    peak_c: Float[Array, " b"],
    weight: Float[Array, " b"],
) -> tuple[Sums, Sums]:
    """The additive statistics of one batch and their low parts; rows of weight zero may hold anything."""
    keep = weight > 0
    weight_sum = jnp.sum(weight)
    total = jnp.where(keep.any(), weight_sum, 1.0)

    def side(a: Float[Array, "b d"], peak: Float[Array, " b"], like: Side) -> tuple[Side, Side, Rows]:
        return chunk_side(jnp.where(keep[:, None], a, 0.0), jnp.where(keep, peak, 0.0), weight, total, like)

    atlas, atlas_low, atlas_rows = side(a_c, peak_c, like.atlas)
    chunk = Sums(weight_sum, atlas, {}, {})
    low = Sums(jnp.zeros_like(weight_sum), atlas_low, {}, {})
    for site, a_s in acts.items():
        chunk.subjects[site], low.subjects[site], rows = side(a_s, peaks[site], like.subjects[site])
        chunk.crosses[site] = chunk_cross(rows, atlas_rows, like.crosses[site])
        low.crosses[site] = jax.tree.map(jnp.zeros_like, chunk.crosses[site])
    return chunk, low


def _check(
    state: PassStatistics,
    acts: Mapping[Any, Any],
    a_c: Any,
    weight: Any,
    index: Any,
    positions: Mapping[Any, Any] | None,
) -> None:
    """Refuse arrays that do not fit the state, and weights that are negative or not finite."""
    widths = {site: side.raw.mean.shape[0] for site, side in state.sums.subjects.items()}
    if missing := sorted(map(str, widths.keys() - acts.keys())):
        raise AtlasError(
            f"no activations for site {', '.join(missing)}; these statistics hold every site given to init"
        )
    rows = _array(a_c, "the atlas").shape[:1]
    if rows == (0,):
        raise AtlasError("there are no rows of activations; give at least one")
    arrays = {"the atlas": (a_c, (state.sums.atlas.raw.mean.shape[0],))}
    arrays |= {_named(site): (acts[site], (width,)) for site, width in widths.items()}
    arrays |= {name: (x, ()) for name, x in (("weight", weight), ("index", index)) if x is not None}
    if positions is not None:
        arrays |= {
            f"positions of {_named(site)}": (positions[site], (widths[site],)) for site in positions if site in widths
        }
    for name, (x, width) in arrays.items():
        if _array(x, name).shape != (wanted := rows + width):
            raise AtlasError(f"{name} needs an array of shape {wanted}, got {x.shape}")
    if weight is not None and on_host(weight):
        bad = ~((weight >= 0) & (weight < np.inf))
        refuse(bad, weight, "the weight", "finite numbers that are not negative, 0 for padding")
    peaks = [] if state.top is None else [site for site, top in state.top.items() if top.position is not None]
    if peaks and (positions is None or set(peaks) - set(positions)):
        raise AtlasError(
            "these statistics were made with peaks=True, so every update needs the positions of every site"
        )


def _named(site: Any) -> str:
    return f"site '{site}'" if site else "the subject"


def _array(x: Any, name: str) -> Matrix:
    if not isinstance(x, Matrix):
        raise AtlasError(f"{name} must be an array, not a {type(x).__name__}; convert it with numpy.asarray")
    return as_numbers(x, name)


def _record(nonfinite: NonFinite, bad: Bool[Array, " b"], index: Int[Array, " b"]) -> NonFinite:
    rows = jnp.sum(bad, dtype=jnp.int32)
    new = (nonfinite.rows == 0) & (rows > 0)
    return NonFinite(nonfinite.rows + rows, jnp.where(new, index[jnp.argmax(bad)], nonfinite.first))
