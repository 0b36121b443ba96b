"""The jump of a JumpReLU and the step that counts it, with gradients for thresholds (Rajamanoharan et al. 2024)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def trained_jump(pre: Float[Array, "n m"], threshold: Float[Array, " m"], bandwidth: float) -> Float[Array, "n m"]:
    r"""Keep ``pre`` where it is above its threshold, else 0; the backward pass is Eq. (11) of Rajamanoharan et al.

    No equation in the paper of this package. The derivative by a threshold is zero almost everywhere; it is replaced
    by an average over a window of width :math:`\varepsilon`, the bandwidth:
    :math:`-\frac{\theta}{\varepsilon} [|pre - \theta| < \varepsilon / 2]`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._jump import trained_jump
      >>> total = lambda t: jnp.sum(trained_jump(jnp.array([[0.5, 1.1, 2.0]]), jnp.full(3, t), 0.5))
      >>> float(total(1.0)), round(float(jax.grad(total)(1.0)), 3)
      (3.0999999046325684, -2.0)
    """
    return jnp.where(pre > jnp.broadcast_to(threshold, pre.shape), pre, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def trained_step(pre: Float[Array, "n m"], threshold: Float[Array, " m"], bandwidth: float) -> Float[Array, "n m"]:
    r"""Give 1 where ``pre`` is above its threshold, else 0; the sum over a row is L0.

    The derivative by the threshold is :math:`-\frac{1}{\varepsilon} [|pre - \theta| < \varepsilon / 2]`, that by
    ``pre`` is 0, so that the sparsity penalty moves thresholds and shrinks no feature.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._jump import trained_step
      >>> count = lambda t: jnp.sum(trained_step(jnp.array([[0.5, 1.1, 2.0]]), jnp.full(3, t), 0.5))
      >>> float(count(1.0)), round(float(jax.grad(count)(1.0)), 3)
      (2.0, -2.0)
    """
    return (pre > jnp.broadcast_to(threshold, pre.shape)).astype(pre.dtype)


def _near(pre: Float[Array, "n m"], threshold: Float[Array, " m"], bandwidth: float) -> Array:
    return jnp.abs(pre - jnp.broadcast_to(threshold, pre.shape)) < bandwidth / 2


def _jump_backward(bandwidth: float, saved: tuple[Array, Array], g: Float[Array, "n m"]) -> tuple[Array, Array]:
    pre, threshold = saved
    above = pre > jnp.broadcast_to(threshold, pre.shape)
    window = jnp.sum(jnp.where(_near(pre, threshold, bandwidth), g, 0.0), axis=0)
    return jnp.where(above, g, 0.0), -window * threshold / bandwidth


def _step_backward(bandwidth: float, saved: tuple[Array, Array], g: Float[Array, "n m"]) -> tuple[Array, Array]:
    pre, threshold = saved
    window = jnp.sum(jnp.where(_near(pre, threshold, bandwidth), g, 0.0), axis=0)
    return jnp.zeros_like(pre), -window / bandwidth


trained_jump.defvjp(lambda pre, threshold, b: (trained_jump(pre, threshold, b), (pre, threshold)), _jump_backward)
trained_step.defvjp(lambda pre, threshold, b: (trained_step(pre, threshold, b), (pre, threshold)), _step_backward)
