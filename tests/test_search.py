"""Search over labels: each retriever against its definition, and together on planted and real labels."""

import importlib.util
import json
import math
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer, models, pre_tokenizers

from atlas_jax.bundled import ATLAS
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Label, Labels, StaticEmbedding, TextIndex, open_index, train_static, write_index
from atlas_jax.labels._retrievers import leading_directions, terms

DATA = os.environ.get("ATLAS_JAX_DATA")
TOPICS = {
    "animals": ["dog", "cat", "horse", "cow", "kitten", "puppy"],
    "money": ["bank", "loan", "credit", "stock", "price", "tax"],
    "music": ["song", "guitar", "piano", "album", "band", "melody"],
}


def planted_labels(rng, n=120):
    """Labels of three words of one topic each; feature i is of topic i % 3, every fifth feature has no label."""
    names = list(TOPICS)
    rows = [
        Label(i, "references to " + " and ".join(rng.permutation(TOPICS[names[i % 3]])[:3]))
        for i in range(n)
        if i % 5 != 4
    ]
    return Labels.from_rows(rows, n_features=n)


def planted_texts(rng, n=600):
    return [" ".join(rng.choice(list(TOPICS.values())[i % 3], 6)) for i in range(n)]


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    return TextIndex.from_labels(planted_labels(rng), [train_static(planted_texts(rng), width=4)])


def small_static(directory):
    """A quantised model2vec directory: six tokens on three vectors."""
    words = ["[UNK]", "red", "blue", "cat", "dog", "sky"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    tensors = {
        "embeddings": np.arange(6, dtype=np.float32).reshape(3, 2) + 1,
        "mapping": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "weights": np.array([9.0, 0.5, 1.0, 2.0, 1.0, 0.25]),
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": False}))
    return directory


@pytest.mark.parametrize(
    ("words", "stem"),
    [("dream dreams dreaming dreamed", "dream"), ("city cities", "citi"), ("running run runs", "run")]
    + [("class classes", "class"), ("box boxes", "box"), ("bake baking bakes baked", "bak"), ("the of to", None)],
)
def test_inflections_share_a_stem(words, stem):
    assert {t for word in words.split() for t in terms(word)} == ({stem} if stem else set())


def test_bm25_is_its_definition(index):
    bags = [terms(text) for text in index.texts]
    mean = np.mean([len(bag) for bag in bags])
    query = terms("a dog, dogs and a bank")

    def slow(bag):
        total = 0.0
        for word in query:
            n = sum(word in other for other in bags)
            f = Counter(bag)[word]
            idf = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5))
            total += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(bag) / mean))
        return total

    expected = [slow(bag) for bag in bags]
    np.testing.assert_allclose(index.scores("a dog, dogs and a bank", "bm25"), expected, rtol=1e-5)


def test_lsa_is_a_truncated_svd(rng):
    words = ["ape", "bee", "cow", "dog", "eel", "fox", "gnu", "hen"]
    texts = [" ".join(rng.choice(words, 5)) for _ in range(40)]
    index = TextIndex.from_labels(Labels.from_rows(Label(i, t) for i, t in enumerate(texts)), [])
    counts = np.array([[t.split().count(w) for w in words] for t in texts], float)
    weighted = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)
    weighted *= np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    basis = np.linalg.svd(weighted)[2][:7]
    rows = weighted @ basis.T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for i in range(3):
        np.testing.assert_allclose(index.scores(texts[i], "lsa"), rows @ rows[i], atol=1e-5)


def tied_labels(rng, n):
    """Labels of a word of their own and one of few others, so that many singular values are equal."""
    return Labels.from_rows([Label(i, f"word{i // 2} kind{i % 7}") for i in range(n)])


@pytest.mark.parametrize("make", [planted_labels, tied_labels])
@pytest.mark.parametrize("n", [300, 1200])
def test_an_index_is_the_same_to_the_bit_each_time(rng, make, n):
    labels = make(rng, n)
    built = []
    with threadpool_limits(2):
        for i in range(4):
            np.random.default_rng(i).standard_normal(100 + i)  # other allocations in between
            built.append(TextIndex.from_labels(labels))
    for index in built[1:]:
        for name, dense in index.dense.items():
            assert np.array_equal(dense.documents, built[0].dense[name].documents)
        assert index.search("dog word7", 20) == built[0].search("dog word7", 20)


def test_the_bundled_atlas_is_searched_alike_each_time():
    labels = Labels.load(ATLAS / "labels.jsonl")
    scores = {hit.score for _ in range(5) for hit in TextIndex.from_labels(labels).search("font", 1)}
    assert len(scores) == 1


@pytest.mark.parametrize(("rows", "columns"), [(60, 40), (30, 900), (900, 1000)])
def test_leading_directions_are_those_of_a_dense_svd(rng, rows, columns):
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < 0.1)
    found = leading_directions(sp.csr_matrix(matrix), 20)
    u, s, vt = np.linalg.svd(matrix)
    assert found.shape == (columns, 20)
    np.testing.assert_allclose(np.linalg.norm(matrix @ found, axis=0), s[:20], rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.T * vt[:20], axis=1)), 1, atol=1e-6)


def test_no_cut_goes_through_equal_singular_values(rng):
    q = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    matrix = sp.csr_matrix(q @ np.diag([5.0, 4, 3, 3, 3, 2] + [1e-3] * 34) @ np.linalg.qr(rng.normal(size=(40, 40)))[0])
    assert [leading_directions(matrix, width).shape[1] for width in range(1, 8)] == [1, 2, 2, 2, 5, 6, 6]
    assert leading_directions(sp.csr_matrix(np.eye(30)), 10).shape == (30, 0)
    assert leading_directions(sp.csr_matrix((30, 20)), 10).shape == (20, 0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 2}', b"null"])
def test_a_damaged_index_is_one_sentence(tmp_path, rng, damage):
    labels = planted_labels(rng)
    write_index(labels, tmp_path / "index")
    (tmp_path / "index" / "index.json").write_bytes(damage)
    with pytest.raises(AtlasError, match="search index in .* is damaged") as caught:
        open_index(labels, tmp_path / "index")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_array_of_an_index_is_one_sentence(tmp_path, rng, damage):
    labels = planted_labels(rng)
    write_index(labels, tmp_path / "index")
    file = tmp_path / "index" / "lsa_documents.npy"
    if damage is None:
        np.save(file, np.load(file)[:-1])
    else:
        file.write_bytes(damage)
    with pytest.raises(AtlasError, match="search index in .* is damaged"):
        open_index(labels, tmp_path / "index")


def test_static_embedding_is_model2vecs_mean(tmp_path):
    model = StaticEmbedding.load(small_static(tmp_path / "m"))
    vectors = {"red": [1.5, 2.0], "cat": [2.0, 4.0], "sky": [1.25, 1.5]}
    expected = [np.mean([vectors["red"], vectors["cat"]], 0), vectors["sky"], [0, 0]]
    np.testing.assert_allclose(model.encode(["red unheard cat", "sky", "nothing known"]), expected, rtol=1e-6)


def test_unigram_models_and_missing_settings_are_read_as_model2vec_reads_them(tmp_path):
    directory = small_static(tmp_path / "m")
    pieces = [("<unk>", 0.0), ("red", -1.0), ("sky", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    save_file({"embeddings": np.array([[9, 9], [1, 2], [3, 4]], np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    model = StaticEmbedding.load(directory)
    assert model.token_ids(["red unheard sky"]) == [[1, 2]]
    np.testing.assert_allclose(model.encode(["red sky", "unheard"]), [[2, 3], [0, 0]])


def test_static_embedding_round_trip(tmp_path, rng):
    model = train_static(planted_texts(rng), width=4)
    model.save(tmp_path / "saved")
    back = StaticEmbedding.load(tmp_path / "saved")
    texts = ["dog cat unheard", "Guitar, piano!", "?"]
    np.testing.assert_allclose(back.encode(texts), model.encode(texts), atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(model.encode(texts), axis=1), [1, 1, 0], rtol=1e-5)


def test_trained_vectors_put_topics_apart(rng):
    model = train_static(planted_texts(rng), width=4)
    vectors = {topic: model.encode(words) for topic, words in TOPICS.items()}
    for topic, own in vectors.items():
        nearest_other = max(float((own @ other.T).max()) for name, other in vectors.items() if name != topic)
        assert float((own @ own.T).min()) > nearest_other + 0.5


@pytest.mark.parametrize("method", ["static", "hybrid"])
@pytest.mark.parametrize(("query", "topic"), [("Puppy!", 0), ("the loan", 1), ("melody", 2)])
def test_meaning_finds_labels_without_the_word(index, method, query, topic):
    hits = index.search(query, k=25, method=method)
    assert [hit.index % 3 for hit in hits] == [topic] * 25
    assert any(not set(terms(query)) & set(terms(hit.label)) for hit in hits)


@pytest.mark.parametrize("method", ["hybrid", "bm25", "lsa", "static"])
def test_hits_are_ordered_and_weighted(index, method):
    hits = index.search("dog", k=10, method=method)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert hits[0].weight == 1
    assert all(0 <= hit.weight <= 1 for hit in hits)
    assert all(hit.index % 5 != 4 for hit in hits)
    assert hits == index.search("dog", k=10, method=method)


def test_bm25_returns_only_labels_that_share_a_word(index):
    hits = index.search("guitar", k=500, method="bm25")
    assert len(hits) == sum("guitar" in text for text in index.texts)


@pytest.mark.parametrize("method", ["hybrid", "bm25", "lsa", "static"])
def test_unknown_words_find_nothing(index, method):
    assert index.search("xyzzy", method=method) == []


def test_a_single_label_is_found():
    index = TextIndex.from_labels(Labels.from_rows([Label(3, "dogs")]), [])
    assert [(hit.index, hit.weight) for hit in index.search("dog")] == [(3, 1.0)]


def test_bad_searches_are_refused(index):
    with pytest.raises(AtlasError, match="blank"):
        index.search("  ")
    with pytest.raises(AtlasError, match="no retriever 'glove'; this index has hybrid, bm25, lsa, static"):
        index.search("dog", method="glove")
    with pytest.raises(AtlasError, match="at least one"):
        index.search("dog", k=0)
    with pytest.raises(AtlasError, match="empty"):
        TextIndex.from_labels(Labels.empty(4))


def test_bad_embeddings_are_refused(tmp_path):
    with pytest.raises(AtlasError, match=r"tokenizer.json is missing"):
        StaticEmbedding.load(tmp_path)
    (small_static(tmp_path / "a") / "tokenizer.json").write_text("{")
    with pytest.raises(AtlasError, match="no tokenizer"):
        StaticEmbedding.load(tmp_path / "a")
    (small_static(tmp_path / "b") / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(AtlasError, match="no static embeddings"):
        StaticEmbedding.load(tmp_path / "b")
    save_file({"embeddings": np.ones((5, 2), np.float32)}, small_static(tmp_path / "c") / "model.safetensors")
    with pytest.raises(AtlasError, match="6 tokens and tensors for 5"):
        StaticEmbedding.load(tmp_path / "c")
    with pytest.raises(AtlasError, match="need more than"):
        train_static(["too few words"], width=4)


def test_the_packages_own_vectors_know_everyday_words():
    model = StaticEmbedding.default()
    dog, cat, plant, garden = model.encode(["dog", "cat", "plants", "garden"])
    assert dog @ cat > dog @ garden + 0.2
    assert garden @ plant > garden @ dog


def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "label_search.py"
    spec = importlib.util.spec_from_file_location("label_search", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(DATA is None, reason="ATLAS_JAX_DATA is not set")
def test_search_over_the_papers_labels():
    bench = benchmark()
    labels = Labels.load(Path(DATA) / bench.LABELS, n_features=16_384)
    index = TextIndex.from_labels(labels)
    found = bench.measure(index, bench.table_8(index), "hybrid")
    assert found["auroc"] > 0.85
    assert found["recall_50"] > 0.28
    start = time.process_time()
    index.search("dreams and imagination", k=50)
    assert time.process_time() - start < 0.2


@pytest.mark.skipif(DATA is None, reason="ATLAS_JAX_DATA is not set")
def test_quantised_model2vec_directory():
    model = StaticEmbedding.load(Path(DATA) / "embeddings/model2vec-vq64")
    assert model.vectors.shape == (29_524, 64)
    dog, puppy, tax = model.encode(["dog", "puppy", "income tax"])
    assert dog @ puppy > dog @ tax
