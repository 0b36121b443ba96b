"""AUROC and average precision: one public function for the host and for accelerators.

The work is done where the data is. Numpy arrays and concrete arrays on CPU devices take the float64 path of
``_detection_host``; arrays on an accelerator, arrays spread over several processes, and anything inside a ``jit``
trace take the float32 path of ``_detection_device``.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from atlas_jax.checks import as_numbers, check_finite, known, on_host, refuse
from atlas_jax.errors import AtlasError
from atlas_jax.metrics import _detection_device, _detection_host

AnyArray = Array | np.ndarray


class Detection(NamedTuple):
    """Detection of labels by scores, one entry a query.

    Attributes:
      auroc: area under the ROC curve, nan where one class is missing.
      average_precision: average precision, nan where there are no positives.
      n_positive: positives of positive weight.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import Detection
      >>> Detection(np.array([0.9]), np.array([0.5]), np.array([3])).auroc.item()
      0.9
    """

    auroc: Float[AnyArray, "*q"]
    average_precision: Float[AnyArray, "*q"]
    n_positive: Int[AnyArray, "*q"]


def auroc(scores: Any, labels: Any, weights: Any = None) -> Float[AnyArray, "*q"]:
    r"""Area under the ROC curve, the AUROC of Table 3.

    The weighted share of (positive, negative) pairs in which the positive scores higher, ties counting one half:
    :math:`\sum_{p,m} w_p w_m (1[s_p > s_m] + \tfrac12 1[s_p = s_m]) / (W_+ W_-)`, as in scikit-learn.

    Args:
      scores: ``[*q, n]``, any real dtype, or lists; -0.0 equals 0.0.
      labels: boolean, 0 and 1, or -1 and 1; ``[n]`` for all queries or broadcastable to ``[*q, n]``.
      weights: sample weights >= 0, ``[n]`` or broadcastable; a weight of 0 removes the sample.

    Returns:
      ``[*q]``; nan where one class is missing. A numpy float64 array, exact to rounding, for data on the host; a
      float32 jax array within 1e-6 on an accelerator or inside ``jit``.

    Raises:
      AtlasError: for no samples, input that is no array of real numbers, or shapes that do not broadcast; outside
        ``jit`` also for a score that counts and is NaN, other labels, and weights that are negative or not finite.
        Inside ``jit`` a NaN score gives nan, and labels count as positive above 0.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import auroc
      >>> float(auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])))
      0.875
    """
    return _measure(scores, labels, weights, ("auroc",)).auroc


def average_precision(scores: Any, labels: Any, weights: Any = None) -> Float[AnyArray, "*q"]:
    r"""Average precision, the AP of Table 3.

    :math:`\sum_t (R_t - R_{t-1}) P_t` over the distinct scores t from the highest down, with precision P and recall
    R of "score at least t": samples of equal score form one step, nothing is interpolated, as in scikit-learn.

    Args:
      scores: ``[*q, n]``, any real dtype, or lists; -0.0 equals 0.0.
      labels: boolean, 0 and 1, or -1 and 1; ``[n]`` for all queries or broadcastable to ``[*q, n]``.
      weights: sample weights >= 0, ``[n]`` or broadcastable; a weight of 0 removes the sample.

    Returns:
      ``[*q]``; nan where there are no positives. Dtypes as in :func:`auroc`.

    Raises:
      AtlasError: as :func:`auroc`.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import average_precision
      >>> float(average_precision(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])))
      0.8333333333333333
    """
    return _measure(scores, labels, weights, ("average_precision",)).average_precision


def detection(scores: Any, labels: Any, weights: Any = None) -> Detection:
    """AUROC and AP of Table 3 together, for little more than the time of one: they share the sort.

    Args:
      scores: ``[*q, n]``, as in :func:`auroc`.
      labels: boolean, 0 and 1, or -1 and 1; ``[n]`` or broadcastable to ``[*q, n]``.
      weights: sample weights >= 0, ``[n]`` or broadcastable.

    Returns:
      A :class:`Detection`, which also counts the positives behind each number.

    Raises:
      AtlasError: as :func:`auroc`.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import detection
      >>> result = detection(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([False, False, True]))
      >>> result.auroc.tolist(), result.n_positive.tolist()
      ([1.0, 0.0], [1, 1])
    """
    return _measure(scores, labels, weights, ("auroc", "average_precision"))


def _measure(
    scores: Any,
    labels: Any,
    weights: Any,
    wanted: tuple[str, ...],
) -> Detection:
    scores, labels = as_numbers(scores, "the score"), _positive(as_numbers(labels, "the label"))
    weights = None if weights is None else as_numbers(weights, "the weight")
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise AtlasError(f"scores of shape {scores.shape} have no samples; give [n], or [queries, n]")
    for name, array in (("labels", labels), ("weights", weights)):
        if array is not None and not _fits(array.shape, scores.shape):
            raise AtlasError(f"{name} of shape {array.shape} do not broadcast to scores of shape {scores.shape}")
    _check_values(scores, weights)
    inputs = [scores, labels] if weights is None else [scores, labels, weights]
    if not all(map(on_host, inputs)):
        return Detection(*_detection_device.measure(scores, labels, weights))
    return Detection(*_detection_host.measure(*map(np.asarray, inputs), wanted=wanted))


def _positive(labels: Shaped[AnyArray, "*l"]) -> Bool[AnyArray, "*l"]:
    """Mark the samples that are positive."""
    if labels.dtype == bool:
        return labels
    if known(labels):
        low = labels.min() if labels.size else 0
        strange = (labels != 0) & (labels != 1) & (labels != -1) | (labels == 0) & (low < 0)
        refuse(strange, labels, "the label", "booleans, 0 and 1, or -1 and 1")
    return labels > 0


def _check_values(scores: Num[AnyArray, "*q n"], weights: Num[AnyArray, "*w n"] | None) -> None:
    """Refuse NaN among the scores that count, and weights that are not finite numbers from 0 up."""
    if weights is not None:
        check_finite(weights, "the weight")
        if known(weights):
            refuse(weights < 0, weights, "the weight", "numbers that are not negative")
    if known(scores) and bool((scores != scores).any()) and (weights is None or known(weights)):
        counts = 1 if weights is None else np.asarray(weights)
        bad = np.isnan(np.asarray(scores, np.float32)) & (np.broadcast_to(counts, scores.shape) > 0)
        refuse(bad, scores, "the score", "numbers, or a weight of 0")


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Test that ``shape`` broadcasts to ``target``."""
    aligned = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape, aligned, strict=True))
