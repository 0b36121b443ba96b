"""SemanticLens' second pass (Eq. 9): atlas activations summed over each subject feature's selected sentences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from atlas_jax.mesh import mesh_of, spread, to_host
from atlas_jax.types_statistics import Lens, TopK, layout, on_mesh


def selected_samples(*tops: TopK) -> Int[np.ndarray, " n"]:
    """The sentence ids, ascending, that a second pass has to visit for these top-k states.

    Example:
      >>> top = TopK(jnp.ones((2, 2)), jnp.array([[4, 1], [1, -1]]), None)
      >>> selected_samples(top).tolist()
      [1, 4]
    """
    ids = np.unique(np.concatenate([to_host(top.index).ravel() for top in tops]))
    return ids[ids >= 0]


def lens_init(top: TopK, d_c: int) -> Lens:
    """An empty second pass for the sentences ``top`` selected, over an atlas of ``d_c`` features."""
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
      mesh: the mesh of the state. Found by itself, except in a jitted function of one's own, which cannot see it.

    Example:
      >>> top = TopK(jnp.ones((1, 2)), jnp.array([[7, 3]]), None)
      >>> lens = lens_update(lens_init(top, 2), jnp.array([3, 5, 7]), jnp.array([[1., 0.], [9., 9.], [3., 4.]]))
      >>> lens.total.tolist(), lens.found.tolist()
      ([[4.0, 4.0]], [2])
    """
    return _lens_update(lens, index, a_c, mesh or mesh_of(lens))


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _lens_update(
    lens: Lens, index: Int[Array | np.ndarray, " b"], a_c: Float[Array | np.ndarray, "b d_c"], mesh: Mesh | None
) -> Lens:
    if mesh is not None:
        whole = spread(index.shape, mesh), spread(a_c.shape, mesh, None, "model")
        index, a_c = jax.lax.with_sharding_constraint((jnp.asarray(index), jnp.asarray(a_c)), whole)
    order = jnp.argsort(index)
    ids = jnp.asarray(index, jnp.int32)[order]
    rows = jnp.where((ids >= 0)[:, None], jnp.asarray(a_c, jnp.float32)[order], 0.0)
    place = jnp.minimum(jnp.searchsorted(ids, lens.index), ids.shape[0] - 1)
    hit = (ids[place] == lens.index) & (lens.index >= 0)
    feature = jnp.arange(place.shape[0])[:, None]
    member = jnp.zeros((place.shape[0], ids.shape[0]), jnp.float32).at[feature, place].add(hit.astype(jnp.float32))
    total = lens.total + jnp.dot(member, rows, precision=lax.Precision.HIGHEST)
    new = Lens(lens.index, total, lens.found + jnp.sum(hit, axis=1, dtype=jnp.int32))
    return new if mesh is None else jax.lax.with_sharding_constraint(new, layout(new, mesh))
