"""Concept queries: of features, texts and vectors, exact or refused."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.atlas._query import as_texts, feature_query
from atlas_jax.bundled import ATLAS
from atlas_jax.errors import AtlasError

TEXTS = ["Return the sum of the array.", "Dates and times.", "The font size of a figure is 10."]


@pytest.fixture(scope="module")
def bundled():
    return ConceptAtlas.from_pretrained(ATLAS)


def test_the_corpus_mean_is_subtracted_where_it_is_known(bundled):
    mean = np.asarray(bundled.activations(TEXTS[:1]))[0]
    known = dataclasses.replace(bundled, mean=jnp.asarray(mean))
    raw = np.asarray(bundled.query_from(TEXTS))
    np.testing.assert_allclose(known.query_from(TEXTS), raw - mean, atol=1e-6)
    np.testing.assert_allclose(bundled.query_from(TEXTS, mean=mean), raw - mean, atol=1e-6)
    assert jnp.array_equal(known.query_from(TEXTS, TEXTS[:1]), bundled.query_from(TEXTS, TEXTS[:1]))
    with pytest.raises(AtlasError, match="a corpus mean should be 1536 numbers, and 5 were given"):
        bundled.query_from(TEXTS, mean=mean[:5])
    best = known.top_features(known.query_from(TEXTS), 4)
    assert best[0].weight == 1.0
    assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
    assert best[0].index == int(np.argmax(raw - mean))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.5],), "atlas features are whole numbers such as 17, not 1.5"),
        ((["3"],), "whole numbers such as 17, not '3'"),
        (([True, False],), "whole numbers such as 17, not True"),
        ((3,), "needs a list of at least one atlas feature"),
        (([[1, 2]],), "needs a list of at least one atlas feature"),
        (([-1],), "atlas feature -1 does not exist; this atlas has 0 to 1535"),
        (([1536],), "atlas feature 1536 does not exist"),
        (([1, 2], [1.0, math.nan]), "the weights should hold finite numbers only, and number 1 is nan"),
        (([1, 2], [math.inf, 1.0]), "number 0 is inf"),
        (([1, 2], [1.0]), "2 features need as many weights"),
        (([1, 2], 1.0), "2 features need as many weights, not 1.0"),
        (([1, 2], ["a", "b"]), "the weights should be 2 numbers"),
        (([1, 1], [1.0, 2.0]), "atlas feature 1 is given twice, with different weights"),
    ],
)
def test_a_query_that_is_none_is_refused(arguments, says):
    """Asked of what ``query`` calls, because types are checked at its own door only in tests."""
    with pytest.raises(AtlasError, match=says):
        feature_query(*arguments, *[None] * (2 - len(arguments)), 1536)


def test_queries_of_features_are_exact(bundled):
    q = np.asarray(bundled.query(np.array([7, 2], np.uint8), (0.5, -1.0)))
    assert {int(i): float(q[i]) for i in np.flatnonzero(q)} == {2: -1.0, 7: 0.5}
    assert jnp.array_equal(bundled.query(range(3)), bundled.query([0, 1, 2, 2]))


def test_one_string_is_one_text(bundled):
    assert bundled.activations(TEXTS[0]).shape == (1, 1536)
    assert jnp.array_equal(bundled.query_from(TEXTS[0]), bundled.query_from([TEXTS[0]]))
    assert jnp.array_equal(bundled.query_from(TEXTS[0], TEXTS[1]), bundled.query_from([TEXTS[0]], [TEXTS[1]]))


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda atlas: atlas.query_from([]), "there is no text"),
        (lambda atlas: atlas.query_from("a", []), "there is no text"),
        (lambda atlas: as_texts(["a", 3]), "a text should be a string, not 3"),
        (lambda atlas: as_texts(7), "a text should be a string, not 7"),
        (lambda atlas: atlas.query_from("a", mean=np.full(1536, np.nan)), "a corpus mean should hold finite numbers"),
        (
            lambda atlas: atlas.query_from("a", mean=np.ones(1)),
            "a corpus mean should be 1536 numbers, and 1",
        ),
        (lambda atlas: atlas.top_features(np.full(1536, np.inf)), "a concept query should hold finite numbers only"),
        (lambda atlas: atlas.top_features(np.ones(7)), "a concept query should be 1536 numbers, and 7 were given"),
        (lambda atlas: atlas.search(""), "blank"),
    ],
)
def test_other_queries_that_are_none_are_refused(bundled, ask, says):
    with pytest.raises(AtlasError, match=says):
        ask(bundled)
