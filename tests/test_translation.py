"""Eq. 3, ranking, and the files of a translation."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from atlas_jax.errors import AtlasError
from atlas_jax.statistics import Statistics, lens_init, lens_update, update
from atlas_jax.translation import Translation, fit
from atlas_jax.translators import METHODS, needs_of
from atlas_jax.types import Site


@pytest.fixture
def translation(rng):
    matrix = rng.normal(size=(6, 9)).astype(np.float32)
    matrix[2] = 0
    means = rng.normal(size=6).astype(np.float32), rng.normal(size=9).astype(np.float32)
    record = {"rank": 5, "solver": "gram_eigh"}
    return Translation(*map(jnp.asarray, (matrix, *means)), "procrustes", Site("mlp_act", 3), record, {"n": 100})


def test_similarity_is_the_cosine_of_every_row(translation, rng):
    q = rng.normal(size=(4, 3, 9)).astype(np.float32)
    q[1, 1] = 0
    t = np.asarray(translation.matrix, np.float64)
    size = np.linalg.norm(t, axis=1) * np.linalg.norm(q.astype(np.float64), axis=-1, keepdims=True)
    expected = np.divide(q @ t.T, size, out=np.zeros((4, 3, 6)), where=size > 0)
    np.testing.assert_allclose(translation.similarity(q), expected, atol=3e-7)
    np.testing.assert_allclose(translation.similarity(q[0, 0]), expected[0, 0], atol=3e-7)
    assert translation.similarity(q)[..., 2].tolist() == np.zeros((4, 3)).tolist()


Q = np.zeros(9, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.similarity(np.zeros((2, 8), "f")), r"has 9 features, got an array of shape \(2, 8\)"),
        (lambda t: t.similarity(0.5), r"has 9 features, got an array of shape \(\)"),
        (
            lambda t: t.similarity(np.where(np.arange(9) == 4, np.nan, Q)),
            r"the query is nan at \[4\]; give finite numbers",
        ),
        (lambda t: t.top_features(jnp.full((2, 9), -jnp.inf)), r"the query is -inf at \[0, 0\]"),
        (lambda t: t.similarity([0.0] * 8 + [float("inf")]), r"the query is inf at \[8\]"),
        (lambda t: t.similarity("a concept"), "the query must be an array of real numbers, not 'a concept'"),
        (lambda t: t.similarity(Q + 1j), "the query must be an array of real numbers, not an array of complex64"),
        (lambda t: t.top_features([[0.0] * 9, [0.0]]), "the query must be an array of real numbers"),
        (lambda t: t.top_features(None), "the query must be an array of real numbers, not None"),
        (lambda t: t.top_features(Q, k=2.5), "asked for the top 2.5 of 6 features"),
        (lambda t: t.top_features(Q, k=7), "asked for the top 7 of 6 features"),
        (lambda t: t.top_features(Q, k=0), "asked for the top 0 of 6 features"),
        (lambda t: t.name_feature(1.5), "subject feature 1.5 does not exist; there are 6"),
        (lambda t: t.name_feature("first"), "subject feature first does not exist"),
        (lambda t: t.name_feature(-1), "subject feature -1 does not exist"),
        (lambda t: t.name_feature(0, k="all"), "asked for the top all of 9 features"),
    ],
)
def test_queries_that_make_no_sense(translation, as_for_users, call, message):
    with pytest.raises(AtlasError, match=message):
        call(translation)


def test_queries_may_be_lists_and_whole_numbers(translation):
    one = np.eye(9)[3]
    expected = translation.similarity(one)
    for same in (one.tolist(), one.astype(int), one.astype(int).tolist(), jnp.asarray(one, jnp.bfloat16)):
        np.testing.assert_array_equal(translation.similarity(same), expected)


def test_ranking_both_ways(translation, rng):
    q = rng.normal(size=9).astype(np.float32)
    ranked = translation.top_features(q, k=4)
    scores = np.asarray(translation.similarity(q))
    assert ranked.features.tolist() == np.argsort(-scores, kind="stable")[:4].tolist()
    np.testing.assert_array_equal(ranked.scores, scores[ranked.features])
    named = translation.name_feature(5, k=3)
    row = np.asarray(translation.matrix[5])
    assert named.features.tolist() == np.argsort(-row, kind="stable")[:3].tolist()
    np.testing.assert_allclose(named.scores, np.sort(row / np.linalg.norm(row))[::-1][:3], rtol=1e-6)


def test_it_is_a_pytree_that_jit_takes_without_retracing(translation):
    traces = []

    @jax.jit
    def score(t, q):
        traces.append(None)
        return t.similarity(q)

    q = jnp.ones(9)
    chex.assert_trees_all_close(score(translation, q), translation.similarity(q), atol=1e-6)
    score(jax.tree.map(lambda x: 2 * x, translation), 3 * q)
    assert len(traces) == 1
    assert jax.tree.map(lambda x: x.sharding, translation).method == "procrustes"


def test_round_trip(translation, tmp_path):
    translation.save_pretrained(tmp_path / "a" / "b")
    loaded = Translation.from_pretrained(tmp_path / "a" / "b")
    chex.assert_trees_all_equal(loaded, translation)
    assert jax.tree.structure(loaded) == jax.tree.structure(translation)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["translation.json", "translation.safetensors"]
    other = dataclasses.replace(translation, matrix=2 * translation.matrix, method="ridge")
    other.save_pretrained(tmp_path / "a" / "b")
    assert Translation.from_pretrained(tmp_path / "a" / "b").method == "ridge"


def test_bfloat16_halves_the_matrix_and_keeps_the_means(translation, tmp_path):
    translation.save_pretrained(tmp_path, dtype="bfloat16")
    with safe_open(tmp_path / "translation.safetensors", framework="np") as file:
        assert file.get_slice("matrix").get_dtype() == "BF16"
    other = Translation.from_pretrained(tmp_path)
    assert other.matrix.dtype == jnp.float32
    np.testing.assert_array_equal(other.matrix, translation.matrix.astype(jnp.bfloat16).astype(jnp.float32))
    assert not np.array_equal(other.matrix, translation.matrix)
    np.testing.assert_array_equal(other.mean_atlas, translation.mean_atlas)
    with pytest.raises(AtlasError, match="not in 'float16'"):
        translation.save_pretrained(tmp_path, dtype="float16")


def test_from_statistics_keeps_the_means(rng):
    a_s, a_c = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    stats = update(Statistics.init(["unit_cross"], 3, 4), a_s, a_c)
    t = Translation.from_statistics(stats, "procrustes", site=Site("resid_post", 1), metadata={"corpus": "x"})
    np.testing.assert_allclose(t.mean_atlas, a_c.mean(0), atol=1e-6)
    assert (t.method, t.certificate["rank"], t.matrix.shape) == ("procrustes", 3, (3, 4))
    with pytest.raises(AtlasError, match="unknown method 'magic'; known are covariance"):
        Translation.from_statistics(stats, "magic")


def test_bad_questions_are_answered_in_one_sentence(translation):
    with pytest.raises(AtlasError, match=r"has 9 features, got an array of shape \(8,\)"):
        translation.similarity(jnp.ones(8))
    with pytest.raises(AtlasError, match="subject feature 6 does not exist; there are 6"):
        translation.name_feature(6)
    with pytest.raises(AtlasError, match="subject feature -1"):
        translation.name_feature(-1)
    with pytest.raises(AtlasError, match="top 10 of 6"):
        translation.top_features(jnp.ones(9), k=10)


def test_bad_directories(translation, tmp_path):
    with pytest.raises(AtlasError, match="translation.json. is missing"):
        Translation.from_pretrained(tmp_path)
    translation.save_pretrained(tmp_path)
    tensors = tmp_path / "translation.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-7])
    with pytest.raises(AtlasError, match="damaged"):
        Translation.from_pretrained(tmp_path)
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(AtlasError, match="is not the file that translation.json describes"):
        Translation.from_pretrained(tmp_path)
    tensors.write_bytes(whole)
    record = tmp_path / "translation.json"
    text = record.read_text()
    for broken in ("{", "[]", json.dumps({"site": None})):
        record.write_text(broken)
        with pytest.raises(AtlasError, match="damaged"):
            Translation.from_pretrained(tmp_path)
    record.write_text(text)
    (tmp_path / "file").write_text("")
    with pytest.raises(AtlasError, match="cannot be written"):
        translation.save_pretrained(tmp_path / "file")


def test_a_failed_write_leaves_the_old_files(translation, tmp_path, monkeypatch):
    translation.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atlas_jax.translation.write_tensors", full)
    with pytest.raises(AtlasError, match="No space left"):
        translation.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([1.0, np.nan, 0.0], r"the query is nan at \[1\]; give finite numbers"),
        ([[0.0, 0.0, 0.0], [np.inf, 0.0, 0.0]], r"the query is inf at \[1, 0\]"),
        ("a dog", "the query must be an array of real numbers"),
        ([1.0, 0.0], "a query of this atlas has 3 features"),
    ],
)
def test_queries_that_make_no_sense_are_refused(query, message):
    t = Translation(jnp.eye(2, 3), jnp.zeros(2), jnp.zeros(3), "procrustes")
    for use in (t.similarity, lambda q: t.top_features(q, k=1)):
        with pytest.raises(AtlasError, match=message):
            use(query if isinstance(query, str) else np.array(query, np.float32))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_fit_is_statistics_and_a_solver(rng, method):
    a_s, a_c = (np.maximum(rng.normal(size=(60, d)), 0).astype(np.float32) for d in (6, 9))
    stats = update(Statistics.init(needs_of([method]), 6, 9, top_k=5), a_s, a_c)
    if METHODS[method].second_pass:
        stats = stats._replace(lens=lens_update(lens_init(stats.top, 9), np.arange(60, dtype=np.int32), a_c))
    found = fit(a_s, a_c, method, top_k=5)
    np.testing.assert_allclose(found.matrix, METHODS[method].solve(stats).matrix, atol=1e-6)
    np.testing.assert_allclose(found.mean_atlas, a_c.mean(0), rtol=1e-5)
    assert found.method == method


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((np.ones((3, 2)), np.ones((3, 4)), "magic"), "unknown method 'magic'"),
        ((np.ones(3), np.ones((3, 4))), r"activations are matrices \[n, d\], not arrays of shape \(3,\) and \(3, 4\)"),
        ((np.ones((3, 2)), np.ones((4, 4))), "3|4"),
        ((np.ones((0, 2)), np.ones((0, 4))), "there are no rows"),
    ],
)
def test_fit_refuses_what_makes_no_sense(as_for_users, arguments, sentence):
    with pytest.raises(AtlasError, match=sentence):
        fit(*arguments)
