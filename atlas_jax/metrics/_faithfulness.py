"""Faithfulness of steering: Eq. 5."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Real

from atlas_jax.checks import as_numbers, finite_numbers, known, refuse
from atlas_jax.errors import AtlasError

AnyArray = Array | np.ndarray


def faithfulness(
    rates: Float[AnyArray, "*q s"] | Sequence, strengths: Real[AnyArray, " k"] | Sequence[int | float]
) -> Float[AnyArray, "*q"]:
    r"""Largest gain in concept-related generations over the unsteered baseline, in percent of the possible gain: Eq. 5.

    :math:`\max_i (r_i - r_0) / (1 - r_0) \times 100`, where :math:`r_0` is the rate at strength 0. As the paper writes
    it the maximum runs over all strengths, the baseline among them, so the result is never negative: steering that
    only suppresses the concept scores 0. Where :math:`r_0 = 1` nothing can be gained and the result is nan.

    Args:
      rates: share of concept-related generations, 0 to 1, one column a strength.
      strengths: the steering strengths of the columns, with exactly one 0 among them.

    Returns:
      ``[*q]`` in percent, 0 to 100: a numpy array for numpy rates, else a jax array (also under ``jit``).

    Raises:
      AtlasError: where the strengths do not fit the columns, are not finite or do not contain exactly one 0, and for
        rates that are not numbers from 0 to 1 (not checked under ``jit``).

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import faithfulness
      >>> faithfulness(np.array([[0.2, 0.2, 0.6], [0.5, 0.5, 0.1]]), [-10, 0, 10]).round(6).tolist()
      [50.0, 0.0]
    """
    rates, strengths = as_numbers(rates, "the rate"), np.asarray(finite_numbers(strengths, "the strength"))
    if rates.ndim == 0 or strengths.shape != rates.shape[-1:]:
        raise AtlasError(f"strengths of shape {strengths.shape} do not fit the columns of rates of shape {rates.shape}")
    (zeros,) = np.nonzero(strengths == 0)
    if len(zeros) != 1:
        raise AtlasError(
            f"faithfulness needs exactly one strength 0, its baseline, and {strengths.tolist()} has {len(zeros)}"
        )
    if known(rates):
        refuse(~((rates >= 0) & (rates <= 1)), rates, "the rate", "shares between 0 and 1, not percentages or counts")
    xp = rates.__array_namespace__()
    baseline = rates[..., zeros[0]]
    room = 1 - baseline
    gain = (xp.max(rates, axis=-1) - baseline) / xp.where(room > 0, room, 1)
    return xp.asarray(xp.where(room > 0, 100 * gain, xp.nan), dtype=rates.dtype)
