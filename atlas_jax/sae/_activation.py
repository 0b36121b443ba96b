"""Functions that turn pre-activations into sparse features, one for each kind."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def jump_relu(pre: Float[Array, "*b m"], threshold: Float[Array, " m"]) -> Float[Array, "*b m"]:
    """Keep ``pre`` where it is positive and strictly above its feature's threshold, else 0. No equation in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._activation import jump_relu
      >>> jump_relu(jnp.array([0.5, 1.5]), jnp.array([1.0, 1.0])).tolist()
      [0.0, 1.5]
    """
    above = pre > jnp.broadcast_to(threshold, pre.shape)
    return jnp.where(above, jax.nn.relu(pre), 0.0)


def top_k(pre: Float[Array, "*b m"], k: int) -> Float[Array, "*b m"]:
    """Keep the ``k`` largest of ``relu(pre)`` in each row, else 0; ties go to the lowest feature.

    No equation in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._activation import top_k
      >>> top_k(jnp.array([0.5, 1.5, 1.0]), 2).tolist()
      [0.0, 1.5, 1.0]
    """
    values, index = jax.lax.top_k(jax.nn.relu(pre), k)
    return jnp.put_along_axis(jnp.zeros_like(pre), index, values, axis=-1, inplace=False)


def group_max(pre: Float[Array, "*b m"], k: int) -> Float[Array, "*b m"]:
    """Keep the largest of ``relu(pre)`` in each of ``k`` equal runs of features, else 0. No equation in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._activation import group_max
      >>> group_max(jnp.array([0.5, 1.5, 1.0, 0.2]), 2).tolist()
      [0.0, 1.5, 1.0, 0.0]
    """
    groups = pre.reshape(*pre.shape[:-1], k, -1)
    return top_k(groups, 1).reshape(pre.shape)


def gated(
    projected: Float[Array, "*b m"],
    b_gate: Float[Array, " m"],
    r_mag: Float[Array, " m"],
    b_mag: Float[Array, " m"],
) -> Float[Array, "*b m"]:
    """Compute ``relu(projected * exp(r_mag) + b_mag)`` where ``projected + b_gate > 0``, else 0.

    No equation in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._activation import gated
      >>> one = jnp.ones(2)
      >>> gated(jnp.array([1.0, -2.0]), one, 0.0 * one, one).tolist()
      [2.0, 0.0]
    """
    gate, scale, bias = (jnp.broadcast_to(v, projected.shape) for v in (b_gate, jnp.exp(r_mag), b_mag))
    return jnp.where(projected + gate > 0, jax.nn.relu(projected * scale + bias), 0.0)
