"""Bootstrap interval of a mean over features."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Real

from atlas_jax.checks import as_count, as_numbers, refuse
from atlas_jax.errors import AtlasError

AnyArray = Array | np.ndarray
DRAWN = 1 << 22  # values drawn at a time


class Interval(NamedTuple):
    """A mean with its interval.

    Attributes:
      mean: mean of the values that are not nan; nan where there are none.
      low: lower end of the interval.
      high: upper end of the interval.
      n: number of values in the mean.
      n_nan: number of values that were nan and left out.

    Example:
      >>> from atlas_jax.metrics import Interval
      >>> Interval(0.5, 0.4, 0.6, n=20, n_nan=1).high
      0.6
    """

    mean: float
    low: float
    high: float
    n: int
    n_nan: int


def bootstrap_mean(
    values: Real[AnyArray, " n"] | Sequence[float | int], *, seed: int = 0, n_resamples: int = 1000, level: float = 0.95
) -> Interval:
    """Mean with a percentile bootstrap interval, as for the means over features of Table 3 (the paper prints none).

    Args:
      values: one value a feature; nan values (a feature of one class) are left out and counted.
      seed: seed of the resampling; the same values and seed give the same interval.
      n_resamples: resamples drawn with replacement.
      level: coverage of the interval, between 0 and 1.

    Returns:
      An :class:`Interval` of Python numbers; a single value is its own interval.

    Raises:
      AtlasError: for a level outside (0, 1), fewer than one resample, or values that are no row of numbers or infinite.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.2, 0.4, float("nan"), 0.9]))
      >>> round(interval.mean, 6), interval.n, interval.n_nan
      (0.5, 3, 1)
    """
    if not 0 < level < 1:
        raise AtlasError(f"the level of an interval lies between 0 and 1, not {level}; give for example 0.95")
    as_count(n_resamples, "n_resamples")
    values = np.asarray(as_numbers(values, "the value"), np.float64)
    if values.ndim != 1:
        raise AtlasError(f"a mean is over one row of values, not an array of shape {values.shape}")
    refuse(np.isinf(values), values, "the value", "finite numbers, or nan where there is none")
    kept = values[~np.isnan(values)]
    missing = values.size - kept.size
    if kept.size == 0:
        return Interval(np.nan, np.nan, np.nan, 0, missing)
    import scipy.stats  # which takes a second

    mean = float(kept.mean())
    if kept.size == 1:
        return Interval(mean, mean, mean, 1, missing)
    interval = scipy.stats.bootstrap(
        (kept,), np.mean, n_resamples=n_resamples, batch=max(1, DRAWN // kept.size), confidence_level=level,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(mean, float(interval.low), float(interval.high), kept.size, missing)
