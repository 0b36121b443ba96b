"""Row normalisations that some SAEs apply to their input and undo on their output."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from atlas_jax.sae._config import Normalization

Undo = Callable[[Float[Array, "*b o"]], Float[Array, "*b o"]]


def apply(x: Float[Array, "*b d"], how: Normalization) -> tuple[Float[Array, "*b d"], Undo]:
    """Normalise rows; return them and the function that undoes it. No equation in the paper.

    ``constant_norm_rescale`` gives every row the norm ``sqrt(d)``. ``layer_norm`` subtracts the row's mean and
    divides by its standard deviation plus 1e-5, the deviation with the divisor ``d - 1``; undoing it leaves the
    1e-5 out, as the SAEs trained with it do. A zero row stays zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae._normalize import apply
      >>> y, undo = apply(jnp.array([3.0, 4.0]), "constant_norm_rescale")
      >>> bool(jnp.allclose(undo(y), jnp.array([3.0, 4.0])))
      True
    """
    if how == "none":
        return x, lambda out: out
    if how == "constant_norm_rescale":
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        scale = jnp.where(norm > 0, jnp.sqrt(jnp.float32(x.shape[-1])) / jnp.where(norm > 0, norm, 1.0), 1.0)
        return x * scale, lambda out: out / scale
    mean = jnp.mean(x, axis=-1, keepdims=True)
    deviation = jnp.std(x, axis=-1, keepdims=True, ddof=1)
    return (x - mean) / (deviation + 1e-5), lambda out: out * deviation + mean
