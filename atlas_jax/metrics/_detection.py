"""AUROC and average precision: one public function for the host and for accelerators.

The work is done where the data is. Numpy arrays and concrete arrays on CPU devices take the float64 path of
``_detection_host``; arrays on an accelerator, arrays spread over several processes, and anything inside a ``jit``
trace take the float32 path of ``_detection_device``.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.checks import as_numbers, on_host, refuse
from atlas_jax.errors import AtlasError
from atlas_jax.metrics import _detection_device, _detection_host

AnyArray = Array | np.ndarray


class Detection(NamedTuple):
    """How well scores detect labels, one entry a query.

    Attributes:
      auroc: area under the ROC curve, nan where one class is missing.
      average_precision: average precision, nan where there are no positives.
      n_positive: positives of positive weight.
    """

    auroc: Float[AnyArray, "*q"]
    average_precision: Float[AnyArray, "*q"]
    n_positive: Int[AnyArray, "*q"]


def auroc(scores: Any, labels: Any, weights: Any = None) -> Float[AnyArray, "*q"]:
    r"""Area under the ROC curve, the AUROC of Table 3.

    The weighted share of (positive, negative) pairs in which the positive scores higher, ties counting one half:
    :math:`\sum_{p,m} w_p w_m (1[s_p > s_m] + \tfrac12 1[s_p = s_m]) / (W_+ W_-)`, as in scikit-learn.

    Args:
      scores: ``[*q, n]``, any real dtype; -0.0 equals 0.0.
      labels: boolean, or numbers: 0 and 1, or -1 and 1, ``[n]`` for all queries or broadcastable to ``[*q, n]``.
      weights: sample weights >= 0, ``[n]`` or broadcastable; a weight of 0 removes the sample.

    Returns:
      ``[*q]``; nan where one class is missing or a score that counts is NaN. A numpy float64 array, exact to
      rounding, for data on the host; a float32 jax array within 1e-6 on an accelerator or inside ``jit``.

    Raises:
      AtlasError: for no samples, shapes that do not broadcast, what is no array of real numbers, and (where values are
        on the host) other labels, or weights that are negative or not finite.

    Example:
      >>> float(auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])))
      0.875
    """
    return _measure(scores, labels, weights, ("auroc",)).auroc


def average_precision(scores: Any, labels: Any, weights: Any = None) -> Float[AnyArray, "*q"]:
    r"""Average precision, the AP of Table 3.

    :math:`\sum_t (R_t - R_{t-1}) P_t` over the distinct scores t from the highest down, with precision P and recall
    R of "score at least t": samples of equal score form one step, nothing is interpolated, as in scikit-learn.

    Args:
      scores: ``[*q, n]``, any real dtype; -0.0 equals 0.0.
      labels: boolean, or numbers: 0 and 1, or -1 and 1, ``[n]`` for all queries or broadcastable to ``[*q, n]``.
      weights: sample weights >= 0, ``[n]`` or broadcastable; a weight of 0 removes the sample.

    Returns:
      ``[*q]``; nan where there are no positives or a score that counts is NaN. Dtypes as in :func:`auroc`.

    Raises:
      AtlasError: as :func:`auroc`.

    Example:
      >>> float(average_precision(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])))
      0.8333333333333333
    """
    return _measure(scores, labels, weights, ("average_precision",)).average_precision


def detection(scores: Any, labels: Any, weights: Any = None) -> Detection:
    """AUROC and AP of Table 3 together, for little more than the time of one: they share the sort.

    Args:
      scores: ``[*q, n]``, as in :func:`auroc`.
      labels: boolean, or numbers: 0 and 1, or -1 and 1, ``[n]`` or broadcastable to ``[*q, n]``.
      weights: sample weights >= 0, ``[n]`` or broadcastable.

    Returns:
      A :class:`Detection`, which also counts the positives behind each number.

    Raises:
      AtlasError: as :func:`auroc`.

    Example:
      >>> result = detection(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([False, False, True]))
      >>> result.auroc.tolist(), result.n_positive.tolist()
      ([1.0, 0.0], [1, 1])
    """
    return _measure(scores, labels, weights, ("auroc", "average_precision"))


def _measure(scores: Any, labels: Any, weights: Any, wanted: tuple[str, ...]) -> Detection:
    scores, labels = as_numbers(scores, "scores"), as_numbers(labels, "labels")
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise AtlasError(f"scores of shape {scores.shape} have no samples")
    arrays = {"labels": labels} | ({} if weights is None else {"weights": as_numbers(weights, "weights")})
    for name, array in arrays.items():
        if not _fits(array.shape, scores.shape):
            raise AtlasError(f"{name} of shape {array.shape} do not broadcast to scores of shape {scores.shape}")
    if labels.dtype != bool and on_host(labels):
        values = np.asarray(labels)
        refuse(~np.isin(values, (-1, 0, 1)), values, "a label", "true and false, 0 and 1, or -1 and 1")
    inputs = [scores, labels if labels.dtype == bool else labels > 0, *list(arrays.values())[1:]]
    if not all(map(on_host, inputs)):
        return Detection(*_detection_device.measure(*inputs, *[None] * (3 - len(inputs))))
    if weights is not None:
        weight = np.asarray(inputs[2])
        refuse(~(np.isfinite(weight) & (weight >= 0)), weight, "a weight", "finite numbers that may not be negative")
    return Detection(*_detection_host.measure(*map(np.asarray, inputs), wanted=wanted))


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether ``shape`` broadcasts to ``target``."""
    aligned = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape, aligned, strict=True))
