"""SemanticLens' second pass (Eq. 9): atlas activations summed over each subject feature's selected sentences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.sharding import mesh_of, sharding_for, to_host
from atlas_jax.statistics._types import Lens, TopK, layout, on_mesh


def selected_samples(*tops: TopK) -> Int[np.ndarray, " n"]:
    """Return the sentence ids, ascending, that a second pass has to visit for these top-k states.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import TopK, selected_samples
      >>> top = TopK(jnp.ones((2, 2)), jnp.array([[4, 1], [1, -1]]), None)
      >>> selected_samples(top).tolist()
      [1, 4]
    """
    ids = np.unique(np.concatenate([to_host(top.index).ravel() for top in tops]))
    return ids[ids >= 0]


def lens_init(top: TopK, d_c: int) -> Lens:
    """Return an empty second pass for the sentences ``top`` selected, over an atlas of ``d_c`` features.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import lens_init
      >>> stats = update(Statistics.init(["top_k"], 1, 1, top_k=2), jnp.array([[1.0], [3.0]]), jnp.ones((2, 1)))
      >>> lens = lens_init(stats.top, d_c=4)
      >>> lens.index.tolist(), lens.total.shape
      ([[1, 0]], (1, 4))
    """
    d_s = top.index.shape[0]
    empty = lambda: (jnp.zeros((d_s, d_c), jnp.float32), jnp.zeros(d_s, jnp.int32))
    return Lens(jnp.array(top.index), *on_mesh(empty, mesh_of(top)))


def lens_update(
    lens: Lens,
    index: Int[Array | np.ndarray, " b"],
    a_c: Float[Array | np.ndarray, "b d_c"],
    *,
    mesh: Mesh | None = None,
) -> Lens:
    """Add a batch of pooled atlas activations.

    Args:
      lens: the state, donated.
      index: sentence ids; rows with a negative id or one that no feature selected add nothing. A sentence must be
        offered once only.
      a_c: pooled atlas activations.
      mesh: the mesh of the state. Read from the state by default; needed inside a jitted function.

    Raises:
      AtlasError: for arrays of other shapes, or without a row.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import TopK, lens_init, lens_update
      >>> top = TopK(jnp.ones((1, 2)), jnp.array([[7, 3]]), None)
      >>> lens = lens_update(lens_init(top, 2), jnp.array([3, 5, 7]), jnp.array([[1., 0.], [9., 9.], [3., 4.]]))
      >>> lens.total.tolist(), lens.found.tolist()
      ([[4.0, 4.0]], [2])
    """
    ids, rows, d_c = np.shape(index), np.shape(a_c), lens.total.shape[1]
    if len(ids) != 1 or rows != (*ids, d_c) or 0 in rows:
        raise AtlasError(
            f"sentence ids of shape {ids} and activations of shape {rows} do not fit; give [b] and [b, {d_c}]"
        )
    return _lens_update(lens, index, a_c, mesh or mesh_of(lens))


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _lens_update(
    lens: Lens, index: Int[Array | np.ndarray, " b"], a_c: Float[Array | np.ndarray, "b d_c"], mesh: Mesh | None
) -> Lens:
    index, a_c = jnp.asarray(index, jnp.int32), jnp.asarray(a_c)
    if mesh is not None:
        whole = sharding_for(index.shape, mesh), sharding_for(a_c.shape, mesh, None, "model")
        index, a_c = jax.lax.with_sharding_constraint((index, a_c), whole)
    order = jnp.argsort(index)
    place = jnp.minimum(jnp.searchsorted(index[order], lens.index), index.shape[0] - 1)
    row = order[place]
    hit = (index[row] == lens.index) & (lens.index >= 0)
    add = _add
    if mesh is not None:
        where = layout(lens, mesh)
        parts = (where.total.spec, where.index.spec, where.index.spec, whole[1].spec)
        add = jax.shard_map(_add, mesh=mesh, in_specs=parts, out_specs=where.total.spec, check_vma=False)
    new = Lens(lens.index, add(lens.total, hit, row, a_c), lens.found + jnp.sum(hit, axis=1, dtype=jnp.int32))
    return new if mesh is None else jax.lax.with_sharding_constraint(new, layout(new, mesh))


def _add(
    total: Float[Array, "d_s d_c"], hit: Bool[Array, "d_s k"], row: Int[Array, "d_s k"], a_c: Float[Array, "b d_c"]
) -> Float[Array, "d_s d_c"]:
    """Add row ``row[i, j]`` of ``a_c`` to row ``i`` wherever ``hit[i, j]``."""
    return lax.platform_dependent(total, hit, row, a_c, cpu=_add_rows, default=_add_product)


def _add_rows(
    total: Float[Array, "d_s d_c"], hit: Bool[Array, "d_s k"], row: Int[Array, "d_s k"], a_c: Float[Array, "b d_c"]
) -> Float[Array, "d_s d_c"]:
    """Add one hit after the other: few sentences of a batch are selected, and the product would cost as much as the
    first pass.
    """
    (hits,) = jnp.nonzero(hit.ravel(), size=hit.size, fill_value=0)

    def add(i: Int[Array, ""], total: Float[Array, "d_s d_c"]) -> Float[Array, "d_s d_c"]:
        feature = hits[i] // hit.shape[1]
        chosen = lax.dynamic_index_in_dim(a_c, row.ravel()[hits[i]]).astype(jnp.float32)
        return lax.dynamic_update_index_in_dim(total, lax.dynamic_index_in_dim(total, feature) + chosen, feature, 0)

    return lax.fori_loop(0, jnp.sum(hit), add, total)


def _add_product(
    total: Float[Array, "d_s d_c"], hit: Bool[Array, "d_s k"], row: Int[Array, "d_s k"], a_c: Float[Array, "b d_c"]
) -> Float[Array, "d_s d_c"]:
    """Add by one product with a matrix of zeros and ones: a GPU would ask its host at every turn of a loop."""
    chosen = (
        jnp.zeros((hit.shape[0], a_c.shape[0])).at[jnp.arange(hit.shape[0])[:, None], row].add(hit.astype(jnp.float32))
    )
    wanted = jnp.any(chosen > 0, axis=0)[:, None]  # other rows may hold nan
    rows = jnp.where(wanted, a_c.astype(jnp.float32), 0.0)
    return total + jnp.dot(chosen, rows, precision=lax.Precision.HIGHEST)
