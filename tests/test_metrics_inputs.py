"""Scores, labels and weights that make no sense: one sentence each, before anything is computed."""

import numpy as np
import pytest

from atlas_jax import metrics
from atlas_jax.errors import AtlasError


@pytest.mark.parametrize("measure", [metrics.auroc, metrics.average_precision, metrics.detection])
@pytest.mark.parametrize(
    ("scores", "labels", "weights", "message"),
    [
        ([0.1, 0.2, 0.3], [0, 2, 0], None, r"the label is 2 at \[1\]; give booleans"),
        ([0.1, 0.2, 0.3], [0, 0.5, 1], None, "the label is 0.5"),
        ([0.1, 0.2, 0.3], [0, np.nan, 1], None, "the label is nan"),
        ([0.1, 0.2, 0.3], ["a", "b", "c"], None, "the label must be an array of real numbers"),
        ([0.1j, 0.2, 0.3], [0, 1, 0], None, "the score must be an array of real numbers"),
        ([], [], None, r"scores of shape \(0,\) have no samples"),
        (0.5, True, None, r"scores of shape \(\) have no samples"),
        ([0.1, 0.2, 0.3], [True, False], None, r"labels of shape \(2,\) do not broadcast"),
        ([0.1, 0.2, 0.3], [1, 0, 1], [1.0, np.nan, 1.0], "the weight is nan"),
        ([0.1, 0.2, 0.3], [1, 0, 1], [1.0, np.inf, 1.0], "the weight is inf"),
    ],
)
def test_what_cannot_be_scored_is_refused(measure, scores, labels, weights, message):
    with pytest.raises(AtlasError, match=message):
        measure(scores, labels, weights)


def test_lists_and_signs_are_labels():
    assert metrics.auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]) == 0.875
    assert metrics.auroc([0.1, 0.4, 0.4, 0.8], [-1, -1, 1, 1]) == 0.875
