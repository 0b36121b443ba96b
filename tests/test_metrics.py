"""Detection, retrieval and steering scores against scikit-learn, closed forms and slow definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from atlas_jax import metrics
from atlas_jax.errors import AtlasError
from atlas_jax.metrics import _detection_device

DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint16"]


def tied_scores(rng, shape, dtype="float32"):
    """Scores like max-pooled activations: half of them exactly 0, the rest on few levels, with both zeros."""
    levels = rng.integers(-20, 60, shape)
    scores = np.where(rng.random(shape) < 0.5, 0, np.maximum(levels, 0 if dtype.startswith("u") else -20))
    scores = scores.astype(dtype)
    if np.issubdtype(scores.dtype, np.floating):
        scores = np.where((scores == 0) & (rng.random(shape) < 0.5), np.asarray(-0.0, dtype), scores)
    return scores


def reference(function, scores, labels, weights=None):
    shape = scores.shape[:-1]
    labels = np.broadcast_to(labels, scores.shape).reshape(-1, scores.shape[-1])
    weights = [None] * len(labels) if weights is None else np.broadcast_to(weights, scores.shape).reshape(labels.shape)
    rows = zip(labels, scores.reshape(labels.shape), weights, strict=True)
    values = [function(l, s.astype(np.float64), sample_weight=w) for l, s, w in rows]
    return np.array(values).reshape(shape)


def on_device(scores, labels, weights=None):
    """The path of accelerators, which a jit trace takes on every backend."""
    return jax.jit(metrics.detection)(*(None if x is None else jnp.asarray(x) for x in (scores, labels, weights)))


def slow_auroc(scores, labels):
    positive, negative = scores[labels][:, None], scores[~labels][None, :]
    return np.mean((positive > negative) + 0.5 * (positive == negative))


def slow_average_precision(scores, labels):
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        hits = np.sum(labels & chosen)
        total += (hits / labels.sum() - recall) * hits / chosen.sum()
        recall = hits / labels.sum()
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.03, 0.5, 0.95])
def test_detection_equals_scikit_learn_with_many_ties(rng, dtype, rate):
    scores = tied_scores(rng, (2, 3, 401), dtype)
    labels = rng.random((3, 401)) < rate
    labels[:, :2] = [True, False]
    area = reference(roc_auc_score, scores, labels)
    precision = reference(average_precision_score, scores, labels)
    host = metrics.detection(scores, labels)
    np.testing.assert_allclose(host.auroc, area, atol=1e-12, rtol=0)
    np.testing.assert_allclose(host.average_precision, precision, atol=1e-12, rtol=0)
    np.testing.assert_array_equal(host.n_positive, np.broadcast_to(labels.sum(-1), (2, 3)))
    if dtype in ("float64", "int64"):
        return
    device = on_device(scores, labels)
    np.testing.assert_allclose(device.auroc, area, atol=1e-6, rtol=0)
    np.testing.assert_allclose(device.average_precision, precision, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(device.n_positive, host.n_positive)


def test_slow_definitions_agree(rng):
    scores, labels = tied_scores(rng, 300), rng.random(300) < 0.2
    assert metrics.auroc(scores, labels) == pytest.approx(slow_auroc(scores, labels), abs=1e-12)
    assert metrics.average_precision(scores, labels) == pytest.approx(slow_average_precision(scores, labels), abs=1e-12)


@pytest.mark.parametrize("weights_shape", [(401,), (3, 401)])
def test_weights_equal_scikit_learn(rng, weights_shape):
    scores, labels = tied_scores(rng, (3, 401)), rng.random(401) < 0.3
    weights = np.where(rng.random(weights_shape) < 0.2, 0, rng.gamma(1.0, size=weights_shape)).astype(np.float32)
    area = reference(roc_auc_score, scores, labels, weights)
    precision = reference(average_precision_score, scores, labels, weights)
    host, device = metrics.detection(scores, labels, weights), on_device(scores, labels, weights)
    np.testing.assert_allclose(host.auroc, area, atol=1e-12, rtol=0)
    np.testing.assert_allclose(host.average_precision, precision, atol=1e-12, rtol=0)
    np.testing.assert_allclose(device.auroc, area, atol=1e-6, rtol=0)
    np.testing.assert_allclose(device.average_precision, precision, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(device.n_positive, host.n_positive)


def test_integer_weights_are_repeated_samples(rng):
    scores, labels, weights = tied_scores(rng, 200), rng.random(200) < 0.3, rng.integers(0, 4, 200)
    repeated = metrics.detection(np.repeat(scores, weights), np.repeat(labels, weights))
    weighted = metrics.detection(scores, labels, weights)
    np.testing.assert_allclose(weighted.auroc, repeated.auroc, atol=1e-12)
    np.testing.assert_allclose(weighted.average_precision, repeated.average_precision, atol=1e-12)


@pytest.mark.parametrize("measure", [metrics.detection, on_device])
def test_one_class_rows_are_nan_and_leave_the_others(rng, measure):
    scores = tied_scores(rng, (3, 50))
    labels = np.stack([np.zeros(50, bool), np.ones(50, bool), np.arange(50) < 7])
    result = measure(scores, labels)
    np.testing.assert_array_equal(np.isnan(result.auroc), [True, True, False])
    np.testing.assert_array_equal(np.isnan(result.average_precision), [True, False, False])
    assert result.average_precision[1] == 1
    np.testing.assert_array_equal(result.n_positive, [0, 50, 7])


@pytest.mark.parametrize("measure", [metrics.detection, on_device])
def test_nan_scores_are_refused_and_nan_inside_jit_unless_their_weight_is_zero(measure):
    scores, labels = np.array([[0.1, np.nan, 0.3], [0.1, 0.2, 0.3]], np.float32), np.array([False, False, True])
    if measure is on_device:
        np.testing.assert_array_equal(np.isnan(measure(scores, labels).auroc), [True, False])
        np.testing.assert_array_equal(np.isnan(measure(scores, labels).average_precision), [True, False])
    else:
        for array in (scores, jnp.asarray(scores)):
            with pytest.raises(AtlasError, match=r"the score is nan at \[0, 1\]; give numbers, or a weight of 0"):
                measure(array, labels)
    assert measure(scores, labels, np.array([1.0, 0.0, 1.0], np.float32)).auroc[0] == 1


@pytest.mark.parametrize("measure", [metrics.detection, on_device])
def test_extreme_values_keep_their_order(measure):
    tiny = np.float32(1e-45)
    scores = np.array([-np.inf, -3e38, -1.0, -tiny, -0.0, 0.0, tiny, 1.0, 3e38, np.inf], np.float32)
    for k in range(1, 10):
        expected = slow_auroc(scores, np.arange(10) >= k)
        np.testing.assert_allclose(measure(scores, np.arange(10) >= k).auroc, expected, atol=1e-7)


def test_device_path_is_exact_to_1e6_at_length(rng):
    labels = rng.random(200_000) < 0.05
    scores = (rng.standard_normal(200_000) + labels).astype(np.float32)
    scores = np.maximum(scores, 0)
    host, device = metrics.detection(scores, labels), on_device(scores, labels)
    np.testing.assert_allclose(device.auroc, host.auroc, atol=1e-6, rtol=0)
    np.testing.assert_allclose(device.average_precision, host.average_precision, atol=1e-6, rtol=0)


def test_threads_change_nothing(rng):
    scores, labels = tied_scores(rng, (40, 5000)), rng.random(5000) < 0.1
    together = metrics.auroc(scores, labels)
    np.testing.assert_array_equal(together, [metrics.auroc(row, labels) for row in scores])


def test_types_of_results(rng):
    scores, labels = tied_scores(rng, (4, 30)), rng.random(30) < 0.5
    assert isinstance(metrics.auroc(scores, labels), np.ndarray)
    assert metrics.auroc(jnp.asarray(scores), jnp.asarray(labels)).dtype == np.float64
    assert isinstance(jax.jit(metrics.auroc)(scores, labels), jax.Array)
    assert jax.vmap(metrics.average_precision, (0, None))(jnp.asarray(scores), jnp.asarray(labels)).shape == (4,)
    assert metrics.auroc(jnp.asarray(scores, jnp.bfloat16), jnp.asarray(labels)).shape == (4,)


def test_device_path_traces_once(rng):
    _detection_device.measure.clear_cache()
    for _ in range(3):
        scores = jnp.asarray(rng.random((2, 64)), jnp.float32)
        _detection_device.measure(scores, jnp.asarray(rng.random(64) < 0.5))
    assert _detection_device.measure._cache_size() == 1


def test_labels_are_booleans_or_two_numbers(rng):
    scores, labels = rng.random((2, 50)), rng.integers(0, 2, 50)
    expected = metrics.auroc(scores, labels == 1)
    for same in (labels, 2 * labels - 1, labels.astype(float), jnp.asarray(labels), labels.tolist()):
        np.testing.assert_array_equal(metrics.auroc(scores, same), expected)
    np.testing.assert_array_equal(metrics.auroc(scores.tolist(), labels.tolist(), [1.0] * 50), expected)


S = np.array([0.1, 0.4, 0.4, 0.8])
Y = np.array([False, False, True, True])
ROW = np.array([0.1, 0.9, 0.5, 0.5], np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.auroc(S, np.ones((3, 4), bool)), "labels of shape .3, 4. do not broadcast to scores of shape .4,"),
        (lambda m: m.auroc(S, Y[:3]), "labels of shape .3,. do not broadcast"),
        (lambda m: m.average_precision(S, Y, np.ones(3)), "weights of shape .3,. do not broadcast"),
        (lambda m: m.auroc(S[:0], Y[:0]), "no samples"),
        (lambda m: m.detection(5.0, True), "no samples"),
        (lambda m: m.auroc(S, [0, 2, 2, 0]), r"the label is 2 at \[1\]; give booleans, 0 and 1, or -1 and 1"),
        (lambda m: m.auroc(S, jnp.array([0.0, 1.0, 0.5, 1.0])), r"the label is 0.5 at \[2\]"),
        (lambda m: m.auroc(S, [-1, 0, 1, 1]), r"the label is 0 at \[1\]"),
        (lambda m: m.auroc(S, [0, 1, np.nan, 1]), r"the label is nan at \[2\]"),
        (lambda m: m.auroc(S, ["no", "no", "yes", "yes"]), "the label must be an array of real numbers"),
        (lambda m: m.auroc("scores", Y), "the score must be an array of real numbers, not 'scores'"),
        (lambda m: m.auroc([[1, 2], [3]], Y), "the score must be an array of real numbers"),
        (lambda m: m.auroc(S * 1j, Y), "the score must be an array of real numbers, not an array of complex128"),
        (lambda m: m.average_precision(jnp.array([0.1, jnp.nan]), Y[1:3]), r"the score is nan at \[1\]"),
        (lambda m: m.auroc(S, Y, np.array([1, 1, -1, 1])), r"the weight is -1 at \[2\]; .*not negative"),
        (lambda m: m.auroc(S, Y, np.array([1, np.nan, 1, 1])), r"the weight is nan at \[1\]; give finite"),
        (lambda m: m.detection(S, Y, np.array([1, np.inf, 1, 1])), r"the weight is inf at \[1\]; give finite"),
        (lambda m: m.reciprocal_rank(ROW, 4), "the target is 4; give features from 0 to 3"),
        (lambda m: m.predicted_probability(ROW, -1), "the target is -1; give features from 0 to 3"),
        (
            lambda m: m.reciprocal_rank(ROW[None], [0, 1]),
            "targets of shape .2,. do not fit similarities of shape .1, 4",
        ),
        (lambda m: m.predicted_probability(ROW, 1.5), "targets are feature ids, whole numbers, not float"),
        (lambda m: m.reciprocal_rank(ROW * np.nan, 1), r"the similarity is nan at \[0\]"),
        (lambda m: m.predicted_probability(np.array([0.1, np.inf], "f"), 0), r"the similarity is inf at \[1\]"),
        (lambda m: m.reciprocal_rank("text", 1), "the similarity must be an array of real numbers"),
        (lambda m: m.reciprocal_rank(ROW, 1, ties="best"), "unknown rule for ties 'best'; use favour or mid"),
        (
            lambda m: m.faithfulness([[20.0, 40.0]], [0, 1]),
            r"the rate is 20.0 at \[0, 0\]; give shares between 0 and 1",
        ),
        (lambda m: m.faithfulness([0.5, np.nan], [0, 1]), r"the rate is nan at \[1\]"),
        (lambda m: m.faithfulness(jnp.array([0.5, -0.1]), [0, 1]), r"the rate is -0.1\d* at \[1\]"),
        (lambda m: m.faithfulness([0.5, 0.6], [0, np.inf]), r"the strength is inf at \[1\]"),
        (lambda m: m.faithfulness([0.5, 0.6], [0, 1, 2]), "strengths of shape .3,. do not fit"),
        (lambda m: m.faithfulness([0.5, 0.6], "ab"), "the strength must be an array of real numbers"),
        (lambda m: m.bootstrap_mean([0.5, np.inf]), r"the value is inf at \[1\]"),
        (lambda m: m.bootstrap_mean([[0.5]]), "one row of values"),
        (lambda m: m.bootstrap_mean("text"), "the value must be an array of real numbers"),
        (lambda m: m.bootstrap_mean([0.5], n_resamples=2.5), "n_resamples must be a whole number from 1 up, not 2.5"),
        (lambda m: m.bootstrap_mean([0.5], n_resamples=0), "n_resamples must be a whole number from 1 up, not 0"),
        (lambda m: m.bootstrap_mean([0.5], level=float("nan")), "lies between 0 and 1, not nan"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(as_for_users, call, message):
    with pytest.raises(AtlasError, match=message) as caught:
        call(metrics)
    assert "\n" not in str(caught.value)


def test_reciprocal_rank_by_definition(rng):
    similarity = rng.integers(0, 9, (4, 5, 40)).astype(np.float32)
    target = rng.integers(0, 40, (4, 5))
    own = np.take_along_axis(similarity, target[..., None], -1)
    larger, tied = (similarity > own).sum(-1), (similarity == own).sum(-1) - 1
    args = jnp.asarray(similarity), jnp.asarray(target)
    np.testing.assert_allclose(metrics.reciprocal_rank(*args), 1 / (1 + larger), rtol=1e-6)
    np.testing.assert_allclose(metrics.reciprocal_rank(*args, ties="mid"), 1 / (1 + larger + tied / 2), rtol=1e-6)


def test_predicted_probability_by_definition(rng):
    similarity = rng.standard_normal((6, 500)) * 1e-3 + 5
    target = rng.integers(0, 500, 6)
    z = (similarity - similarity.mean(-1, keepdims=True)) / similarity.std(-1, keepdims=True)
    expected = (np.exp(z) / np.exp(z).sum(-1, keepdims=True))[np.arange(6), target]
    exact = similarity - 5
    actual = metrics.predicted_probability(jnp.asarray(exact, jnp.float32), jnp.asarray(target))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_retrieval_at_random_has_closed_forms(rng):
    d, n = 454, 20_000
    similarity = jnp.asarray(rng.standard_normal((n, d)), jnp.float32)
    target = jnp.asarray(rng.integers(0, d, n))
    harmonic = np.sum(1 / np.arange(1, d + 1)) / d
    assert np.mean(metrics.reciprocal_rank(similarity, target)) == pytest.approx(harmonic, rel=0.06)
    assert np.mean(metrics.predicted_probability(similarity, target)) == pytest.approx(1 / d, rel=0.03)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_predicted_probability_ignores_scale_and_survives_outliers(scale):
    similarity = jnp.zeros(14336).at[7].set(scale)
    assert metrics.predicted_probability(similarity, jnp.array(7)).item() == pytest.approx(1.0, abs=1e-6)
    assert metrics.predicted_probability(similarity, jnp.array(8)).item() == pytest.approx(0.0, abs=1e-6)


def test_retrieval_of_constant_vectors():
    similarity, target = jnp.full((2, 3, 64), 0.1), jnp.ones((2, 3), jnp.int32)
    np.testing.assert_allclose(metrics.predicted_probability(similarity, target), 1 / 64, rtol=1e-6)
    np.testing.assert_array_equal(metrics.reciprocal_rank(similarity, target), 1)
    np.testing.assert_allclose(metrics.reciprocal_rank(similarity, target, ties="mid"), 2 / 65, rtol=1e-6)


def test_retrieval_inside_jit_is_nan_for_nan_and_foreign_targets():
    similarity = jnp.array([[1.0, jnp.nan, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    target = jnp.array([0, 3, -1, 2])
    for measure in (metrics.reciprocal_rank, metrics.predicted_probability):
        np.testing.assert_array_equal(np.isnan(jax.jit(measure)(similarity, target)), [1, 1, 1, 0])


@pytest.mark.parametrize("xp", [np, jnp])
def test_faithfulness_by_definition(xp):
    strengths = [-50, -10, -1, 0, 1, 10, 50]
    rates = np.array([[0, 0, 0.1, 0.2, 0.3, 0.6, 0.1], [0.1, 0, 0, 0.5, 0.4, 0, 0], [1.0] * 7], np.float32)
    result = metrics.faithfulness(xp.asarray(rates), strengths)
    np.testing.assert_allclose(result, [50.0, 0.0, np.nan], rtol=1e-5)
    assert metrics.faithfulness(xp.asarray(rates[0]), np.array(strengths)).shape == ()


def test_faithfulness_under_jit():
    strengths = (0.0, 1.0)
    rates = jnp.array([[0.5, 0.75]])
    np.testing.assert_allclose(jax.jit(lambda r: metrics.faithfulness(r, strengths))(rates), [50.0])


@pytest.mark.parametrize("strengths", [[1, 2, 3], [0, 0, 1], [0, 1]])
def test_faithfulness_refuses_strengths_without_one_baseline(strengths):
    with pytest.raises(AtlasError):
        metrics.faithfulness(np.zeros((2, 3)), strengths)


def test_bootstrap_covers_like_the_normal_interval(rng):
    values = rng.standard_normal(400) * 2 + 1
    interval = metrics.bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert metrics.bootstrap_mean(values, level=0.5).high < interval.high


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("drawn", [1, 1 << 22])
def test_bootstrap_is_the_percentiles_of_resampled_means(rng, monkeypatch, n, drawn):
    monkeypatch.setattr("atlas_jax.metrics._bootstrap.DRAWN", drawn)  # how many are drawn at a time changes nothing
    values, draws = rng.random(n), np.random.default_rng(7)
    means = [draws.choice(values, n).mean() for _ in range(300)]
    interval = metrics.bootstrap_mean(values, seed=7, n_resamples=300, level=0.9)
    np.testing.assert_allclose(interval[:3], [values.mean(), *np.quantile(means, [0.05, 0.95])], rtol=1e-12)


def test_bootstrap_is_deterministic_and_counts_nan(rng):
    values = rng.random(50)
    holed = np.insert(values, [3, 20], np.nan)
    assert metrics.bootstrap_mean(holed) == metrics.bootstrap_mean(values)._replace(n_nan=2)
    assert metrics.bootstrap_mean(values, seed=1) != metrics.bootstrap_mean(values)
    empty = metrics.bootstrap_mean(np.full(3, np.nan))
    assert np.isnan(empty.mean)
    assert (empty.n, empty.n_nan) == (0, 3)
    with pytest.raises(AtlasError):
        metrics.bootstrap_mean(values, level=1.5)
