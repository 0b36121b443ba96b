"""The jump of a JumpReLU and the step that counts it, with gradients for thresholds (Rajamanoharan et al. 2024)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def trained_jump(pre: Float[Array, "n m"], threshold: Float[Array, " m"], bandwidth: float) -> Float[Array, "n m"]:
    r"""``pre`` where it is above its threshold, else 0; its Eq. (11) for the backward pass. None in our paper.

    The derivative by a threshold is zero almost everywhere. Its stand-in is an average over a window of width
    :math:`\varepsilon`, the bandwidth: :math:`-\frac{\theta}{\varepsilon} [|pre - \theta| < \varepsilon / 2]`.

    Example:
      >>> total = lambda t: jnp.sum(trained_jump(jnp.array([[0.5, 1.1, 2.0]]), jnp.full(3, t), 0.5))
      >>> float(total(1.0)), round(float(jax.grad(total)(1.0)), 3)
      (3.0999999046325684, -2.0)
    """
    return jnp.where(pre > jnp.broadcast_to(threshold, pre.shape), pre, 0.0)


@jax.custom_vjp
def trained_step(pre: Float[Array, "n m"], threshold: Float[Array, " m"], bandwidth: float) -> Float[Array, "n m"]:
    r"""1 where ``pre`` is above its threshold, else 0; summed over a row it is L0.

    Backward, :math:`-\frac{1}{\varepsilon} [|pre - \theta| < \varepsilon / 2]` by the threshold and nothing by
    ``pre``: sparsity is bought by thresholds alone, so that it shrinks no feature.

    Example:
      >>> count = lambda t: jnp.sum(trained_step(jnp.array([[0.5, 1.1, 2.0]]), jnp.full(3, t), 0.5))
      >>> float(count(1.0)), round(float(jax.grad(count)(1.0)), 3)
      (2.0, -2.0)
    """
    return (pre > jnp.broadcast_to(threshold, pre.shape)).astype(pre.dtype)


def _near(pre: Float[Array, "n m"], threshold: Float[Array, " m"], bandwidth: float) -> Array:
    return jnp.abs(pre - jnp.broadcast_to(threshold, pre.shape)) < bandwidth / 2


def _jump_backward(saved: tuple, g: Float[Array, "n m"]) -> tuple:
    pre, threshold, bandwidth = saved
    above = pre > jnp.broadcast_to(threshold, pre.shape)
    window = jnp.sum(jnp.where(_near(pre, threshold, bandwidth), g, 0.0), axis=0)
    return jnp.where(above, g, 0.0), -window * threshold / bandwidth, None


def _step_backward(saved: tuple, g: Float[Array, "n m"]) -> tuple:
    pre, threshold, bandwidth = saved
    window = jnp.sum(jnp.where(_near(pre, threshold, bandwidth), g, 0.0), axis=0)
    return jnp.zeros_like(pre), -window / bandwidth, None


trained_jump.defvjp(lambda *saved: (trained_jump(*saved), saved), _jump_backward)
trained_step.defvjp(lambda *saved: (trained_step(*saved), saved), _step_backward)
