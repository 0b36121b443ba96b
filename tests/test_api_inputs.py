"""Arrays that make no sense, handed to the pieces that work alone: one sentence each, before anything is computed."""

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import metrics, translators
from atlas_jax.errors import AtlasError
from atlas_jax.statistics import Statistics, update

ONES = np.ones((3, 2), np.float32)


def empty():
    return Statistics.init(["cross"], d_s=2, d_c=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONES[:0], ONES[:0]), "a batch without rows adds nothing"),
        ((ONES.astype(complex), ONES), "activations at '' must be an array of real numbers"),
        ((ONES, "text"), "the atlas activations must be an array of real numbers"),
        ((ONES, [[1.0], [1.0, 2.0]]), "the atlas activations must be an array of real numbers"),
        ((ONES, ONES[:2]), r"site '' needs activations \(2, 2\)"),
        ((ONES[:, :1], ONES), r"site '' needs activations \(3, 2\), got \(3, 1\)"),
        ((ONES[0], ONES[0]), r"the atlas needs activations \(2, 2\), got \(2,\)"),
        ((ONES, ONES, np.ones(2, np.float32)), "3 rows need as many weights"),
        ((ONES, ONES, np.array([1, np.nan, 1], np.float32)), r"the weight is nan at \[1\]; give finite numbers"),
        ((ONES, ONES, np.array([1, np.inf, 1], np.float32)), "the weight is inf"),
        ((ONES, ONES, np.array([1, 1, -2], np.float32)), "the weight is -2.0"),
    ],
)
def test_batches_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(AtlasError, match=message):
        update(empty(), *arguments)


def test_lists_of_rows_are_rows():
    x = [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_array_equal(update(empty(), x, x).cross.raw, update(empty(), np.array(x), jnp.array(x)).cross.raw)


@pytest.mark.parametrize("method", [name for name in translators.METHODS if name != "random"])
def test_empty_statistics_have_no_translation(method):
    needs = sorted(translators.METHODS[method].needs)
    stats = Statistics.init(needs, d_s=2, d_c=3, top_k=2)
    with pytest.raises(AtlasError, match="these statistics are empty|needs a second pass"):
        translators.METHODS[method].solve(stats)


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
