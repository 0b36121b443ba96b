"""The Concept Atlas: its queries, and parts that do not fit each other."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Labels, WordTable, characteristic_words, words_of
from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline import SentenceStream
from atlas_jax.sae_lab import label_quality


@pytest.fixture(scope="module")
def atlas():
    return ConceptAtlas.from_pretrained(ATLAS)


def test_features_are_the_largest_code_over_content_tokens(atlas):
    tokens = atlas.tokenize(["Return the sum.", "A longer sentence about dates and times."])
    x = forward(atlas.model.decoder, tokens, capture=(atlas.site,), logits=False).acts[atlas.site]
    code = np.maximum(np.asarray(x, np.float64) @ np.asarray(atlas.sae.W_enc) + np.asarray(atlas.sae.b_enc), 0)
    code = np.where(code > np.asarray(atlas.sae.threshold), code, 0) * np.asarray(tokens.mask)[:, :, None]
    assert not tokens.mask[:, 0].any()
    np.testing.assert_allclose(atlas.encode(tokens)[atlas.site], code.max(axis=1), atol=1e-4)


def test_queries(atlas):
    q = np.asarray(atlas.query([3, 5], [1.0, 0.5]))
    assert q[3] == 1.0
    assert q[5] == 0.5
    assert np.count_nonzero(q) == 2
    q = np.asarray(atlas.query_text("probability"))
    hits = atlas.search("probability", 5)
    assert {h.index for h in hits} >= set(np.flatnonzero(q).tolist())
    texts, other = ["a random variable"], ["open a file"]
    mean = np.asarray(atlas.activations(texts)).mean(0)
    np.testing.assert_allclose(atlas.query_from(texts), mean, atol=1e-6)
    contrast = mean - np.asarray(atlas.activations(other)).mean(0)
    np.testing.assert_allclose(atlas.query_from(texts, other), contrast, atol=1e-4)


def test_wrong_queries_are_named(atlas):
    with pytest.raises(AtlasError, match="at least one"):
        atlas.query([])
    with pytest.raises(AtlasError, match=f"atlas feature {atlas.width} does not exist"):
        atlas.query([0, atlas.width])
    with pytest.raises(AtlasError, match="2 features need as many weights"):
        atlas.query([0, 1], [1.0])
    with pytest.raises(AtlasError, match="no text"):
        atlas.query_from([])


def test_parts_that_do_not_fit_are_refused(atlas, tmp_path):
    with pytest.raises(AtlasError, match="the SAE reads"):
        ConceptAtlas.from_parts(LanguageModel.from_pretrained(SUBJECT), atlas.sae, "resid_post.1", atlas.labels)
    with pytest.raises(AtlasError, match="the labels are for 7 features"):
        ConceptAtlas.from_parts(atlas.model, atlas.sae, atlas.site, Labels.empty(7))
    with pytest.raises(AtlasError, match="no atlas.json"):
        ConceptAtlas.from_pretrained(SUBJECT)
    shutil.copytree(ATLAS, tmp_path / "atlas")
    (tmp_path / "atlas" / "atlas.json").write_text(json.dumps({"model": "model"}))
    with pytest.raises(AtlasError, match="atlas.json is damaged"):
        ConceptAtlas.from_pretrained(tmp_path / "atlas")


def test_an_atlas_round_trips(atlas, tmp_path):
    atlas.save_pretrained(tmp_path / "copy")
    again = ConceptAtlas.from_pretrained(tmp_path / "copy")
    tokens = atlas.tokenize(["Return the sum."])
    assert jnp.array_equal(atlas.encode(tokens)[atlas.site], again.encode(tokens)[again.site])
    assert [again.labels[i] for i in range(20)] == [atlas.labels[i] for i in range(20)]


def test_characteristic_words_find_what_was_planted(rng):
    common = [f"word{i}" for i in range(40)]
    texts = [" ".join(rng.choice(common, 8)) for _ in range(400)]
    for i in range(0, 60, 2):
        texts[i] += " zebra stripes"
    table = WordTable.from_texts(texts)
    found = characteristic_words(table, [[words_of(texts[i]) for i in range(0, 40, 2)], []], count=2, common=0.2)
    assert {word for word, _ in found[0]} == {"zebra", "stripes"}
    assert found[1] == []
    assert table.contains_any(["zebra"]).sum() == 30


def test_label_quality_knows_good_labels_from_shuffled_ones(atlas):
    texts = [f"{a} {b}." for a in ("Return the", "Draw the", "Open the") for b in _WORDS]
    real = label_quality(atlas, texts, SentenceStream.from_texts([atlas], texts)).auroc
    entries = atlas.labels.entries
    keys = list(entries)
    moved = {k: entries[keys[(i + 7) % len(keys)]] for i, k in enumerate(keys)}
    moved = {k: tuple(label._replace(index=k) for label in group) for k, group in moved.items()}
    shuffled = dataclasses.replace(atlas, labels=Labels(atlas.width, moved))
    assert real.mean > label_quality(shuffled, texts, SentenceStream.from_texts([shuffled], texts)).auroc.mean + 0.1


_WORDS = [
    "probability of a random variable", "matrix product", "axis label of the figure", "socket", "file in binary mode",
    "copyright notice", "date and the time zone", "gradient of the loss", "image as a tensor", "tokenizer",
    "eigenvalues", "font size", "HTTP response", "array elements", "string", "warning", "columns of the table",
    "distribution", "license", "model configuration", "attention mask", "sample mean", "path", "module", "test case",
]  # fmt: skip
