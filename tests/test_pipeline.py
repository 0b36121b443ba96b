"""The streamed pass against the same activations held whole, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import choose_features, translation_quality
from atlas_jax.metrics import auroc
from atlas_jax.models import LanguageModel, run
from atlas_jax.pipeline import BatchShapes, SentenceStream, fit_statistics, pooled_activations, solve, top_sentences
from atlas_jax.statistics import NormSums, TokenNorms, add_norms
from atlas_jax.subject import Subject

SITES = ("mlp_act.1", "resid_post.2")
METHODS = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens")


@pytest.fixture(scope="module")
def spaces():
    subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), SITES)
    return subject, ConceptAtlas.from_pretrained(ATLAS)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(installed_documentation(max_bytes=200_000), n_fit=400, n_eval=200)


@pytest.fixture(scope="module")
def streamed(spaces, corpus):
    stream = SentenceStream.from_texts(spaces, corpus.fit, token_budget=1024)
    needs, further = ["cross", "unit_cross", "atlas_gram", "top_k"], {"mean": ["cross"], "last": ["unit_cross"]}
    fitted = fit_statistics(stream, needs, top_k=20, further=further)
    return stream, fitted, solve(stream, fitted, METHODS)


@pytest.fixture(scope="module")
def held(spaces, corpus):
    subject, atlas = spaces
    a_s = pooled_activations(SentenceStream.from_texts([subject], corpus.fit))
    return a_s, pooled_activations(SentenceStream.from_texts([atlas], corpus.fit))[atlas.site].astype(np.float64)


def test_a_plan_visits_every_sentence_once_in_few_shapes(rng):
    lengths = rng.integers(3, 90, 500)
    grid = BatchShapes.from_lengths(lengths[:50], 96, token_budget=512, shapes=4, multiple=4)
    plan = grid.plan(lengths)
    assert sorted(np.concatenate([b.rows for b in plan]).tolist()) == list(range(500))
    assert all(b.length % 8 == 0 and lengths[b.rows].max() <= b.length for b in plan)
    assert all(b.size % 4 == 0 and len(b.rows) <= b.size and b.length * b.size <= 512 for b in plan)
    assert len({(b.length, b.size) for b in plan}) <= 5


def test_no_other_lengths_of_a_grid_would_pad_less(rng):
    sample = np.clip(rng.gamma(2, 10, 200).astype(int) + 1, 1, 60)
    longest = int(-(-sample.max() // 8) * 8)
    padded = lambda lengths: np.asarray(lengths)[np.searchsorted(lengths, sample)].sum()
    for shapes in (1, 2, 3, 4):
        chosen = itertools.combinations_with_replacement(range(8, longest + 1, 8), shapes - 1)
        least = min(padded(sorted({*some, longest})) for some in chosen)
        assert padded(BatchShapes.from_lengths(sample, longest, token_budget=64, shapes=shapes).lengths) == least


def test_a_pass_in_blocks_pads_like_the_tokenizer_and_starts_anywhere(spaces, corpus, monkeypatch):
    monkeypatch.setattr("atlas_jax.pipeline._stream.BLOCK", 90)
    stream = SentenceStream.from_texts(spaces, corpus.fit, first=7, token_budget=512, max_length=24)
    steps = list(stream.steps())
    assert max(cursor.block for cursor, _ in steps) == 5
    index = np.concatenate([tokens[0].index for _, tokens in steps])
    assert sorted(index[index >= 0].tolist()) == list(range(7, 407))
    for _, batch in steps[::7]:
        for space, tokens in zip(spaces, batch, strict=True):
            texts = [corpus.fit[i - 7] for i in tokens.index.tolist() if i >= 0]
            rows = space.model.tokenizer.encode(texts, 24) + [[]] * int(np.sum(tokens.index < 0))
            jax.tree.map(
                np.testing.assert_array_equal,
                tokens,
                space.model.tokenizer.pad(rows, tokens.ids.shape[1], tokens.index.tolist()),
            )
    assert steps[-1][0].tokens == sum(int(t.attention_mask.sum()) for _, batch in steps for t in batch)
    for start in (0, 3, len(steps) // 2, len(steps) - 2):
        again = list(stream.steps(steps[start][0]))
        jax.tree.map(np.testing.assert_array_equal, again, steps[start + 1 :])
    assert list(stream.steps(steps[-1][0])) == []


def test_a_pass_over_some_sentences_keeps_the_shapes(spaces, corpus):
    stream = SentenceStream.from_texts(spaces, corpus.fit, first=100, token_budget=512)
    some = stream.only(np.array([499, 100, 7, 133, 500]))
    batches = list(some.batches())
    index = np.concatenate([tokens[0].index for tokens in batches])
    assert (some.size, sorted(index[index >= 0].tolist())) == (3, [100, 133, 499])
    assert {b[0].ids.shape for b in batches} <= {b[0].ids.shape for b in stream.batches()}
    assert list(stream.only(np.array([], np.int64)).batches()) == []


def test_a_streamed_pass_equals_the_formulas_on_held_activations(streamed, held, spaces):
    _, fitted, translations = streamed
    a_s, a_c = held
    assert np.asarray(fitted.active).tolist() == (a_c > 0).sum(axis=0).tolist()
    for site in spaces[0].sites:
        x = a_s[site].astype(np.float64)
        centred_s, centred_c = x - x.mean(0), a_c - a_c.mean(0)
        covariance = centred_s.T @ centred_c
        _close(translations[site, "covariance"].matrix, covariance / 400, 1e-5)
        deviation = np.outer(x.std(0), a_c.std(0))
        correlation = covariance / 400 / np.where(deviation > 0, deviation, np.inf)
        _close(translations[site, "correlation"].matrix, correlation, 1e-4)
        _close(translations[site, "least_squares"].matrix, np.linalg.lstsq(a_c, x, rcond=1e-6)[0].T, 2e-2)
        unit = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)
        u, _, vt = np.linalg.svd(unit(x).T @ unit(a_c), full_matrices=False)
        _close(translations[site, "procrustes"].matrix, u @ vt, 2e-2)
        top = fitted.statistics.statistics(site).top
        chosen = np.take_along_axis(x.T, np.asarray(top.index), axis=1)
        np.testing.assert_allclose(chosen, -np.sort(-x.T, axis=1)[:, :20], atol=1e-4)
        _close(translations[site, "semantic_lens"].matrix, a_c[np.asarray(top.index)].mean(axis=1), 1e-5)


@pytest.mark.parametrize(
    ("pooling", "method"), [("mean", "covariance"), ("mean", "correlation"), ("last", "procrustes")]
)
def test_one_pass_serves_several_poolings(streamed, held, spaces, corpus, pooling, method):
    """Each against the activations pooled that way in a pass of its own."""
    stream, fitted, first = streamed
    subject = Subject.from_model(spaces[0].model, SITES, pooling)
    a_s = pooled_activations(SentenceStream.from_texts([subject], corpus.fit))
    a_c = held[1] - held[1].mean(0)
    for (site, _), found in solve(stream, fitted, [method], pooling=pooling).items():
        x = a_s[site].astype(np.float64)
        unit = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)
        u, _, vt = np.linalg.svd(unit(x).T @ unit(held[1]), full_matrices=False)
        covariance = (x - x.mean(0)).T @ a_c / 400
        deviation = np.outer(x.std(0), a_c.std(0))
        truth = {
            "covariance": covariance,
            "correlation": covariance / np.where(deviation > 0, deviation, np.inf),
            "procrustes": u @ vt,
        }[method]
        _close(found.matrix, truth, 2e-2 if method == "procrustes" else 1e-4)
        _close(found.mean_subject, x.mean(0), 1e-5)
        other = first[site, method]
        assert (found.pooling, other.pooling) == (pooling, "max")
        assert found.token_norm == other.token_norm
        assert np.linalg.norm(np.asarray(other.matrix) - truth) > 0.1 * np.linalg.norm(truth)


def _close(ours, theirs, tolerance):
    ours = np.asarray(ours, np.float64)
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def test_token_norms_are_those_of_every_token_that_counts(spaces, corpus, streamed):
    subject, _ = spaces
    stream, fitted, translations = streamed
    tokens = subject.tokenize(list(corpus.fit))
    acts = run(subject.model, tokens, capture=SITES, logits=False).acts
    for site in subject.sites:
        norms = np.linalg.norm(np.asarray(acts[site], np.float64), axis=-1)[np.asarray(tokens.mask)]
        assert fitted.token_norm(site) == pytest.approx(norms.mean(), rel=1e-5)
        assert translations[site, "procrustes"].token_norm == fitted.token_norm(site)
    assert float(fitted.norms.sums.tokens) == np.asarray(tokens.mask).sum()


def test_token_norms_keep_what_float32_rounds_away():
    add = jax.jit(add_norms)
    norms, batch = TokenNorms.init(["a"]), NormSums({"a": jnp.float32(0.1)}, jnp.float32(1 / 3))
    norms = add(norms, NormSums({"a": jnp.float32(2.0**24)}, jnp.float32(2.0**24)))
    for _ in range(300):
        norms = add(norms, batch)
    expected = (2.0**24 + 300 * float(np.float32(0.1))) / (2.0**24 + 300 * float(np.float32(1 / 3)))
    assert norms.mean("a") == pytest.approx(expected, rel=1e-9)
    assert math.isnan(TokenNorms.init(["a"]).mean("a"))


def test_a_space_that_tells_no_norms_has_none(spaces, corpus):
    fitted = fit_statistics(SentenceStream.from_texts((spaces[1], spaces[1]), corpus.fit[:40]), ["cross"])
    assert fitted.token_norm(spaces[1].site) is None


def test_batches_and_filler_rows_change_nothing(spaces, corpus, streamed):
    other = fit_statistics(SentenceStream.from_texts(spaces, corpus.fit, token_budget=3000), ["cross"])
    site = spaces[0].sites[0]
    one, two = (f.statistics.statistics(site) for f in (streamed[1], other))
    assert float(one.weight) == float(two.weight) == 400
    assert streamed[1].token_norm(site) == pytest.approx(other.token_norm(site), rel=1e-6)
    _close(one.cross.raw, np.asarray(two.cross.raw, np.float64), 1e-5)


@pytest.mark.parametrize("further", [{}, {"mean": ["cross"]}])
def test_the_step_is_traced_once_a_shape(spaces, corpus, monkeypatch, further):
    traces, encode = [], Subject.encode_poolings
    monkeypatch.setattr(
        Subject, "encode_poolings", lambda space, tokens: traces.append(tokens.ids.shape) or encode(space, tokens)
    )
    stream = SentenceStream.from_texts(spaces, corpus.fit, token_budget=448)  # shapes that no other test has traced
    fit_statistics(stream, ["cross"], further=further)
    assert 1 < len(traces) == len(set(traces)) <= 5 < len(list(stream.steps()))


def test_quality_equals_scores_from_held_activations(spaces, corpus, streamed):
    subject, atlas = spaces
    _, fitted, translations = streamed
    features = choose_features(np.asarray(fitted.active) / 400, count=7, band=(0.02, 0.3), seed=0)
    stream = SentenceStream.from_texts(spaces, corpus.eval, first=400, token_budget=1024)
    quality, scored = translation_quality(stream, translations, features, band=(0.02, 0.3))
    a_s = pooled_activations(SentenceStream.from_texts([subject], corpus.eval))
    fires = pooled_activations(SentenceStream.from_texts([atlas], corpus.eval))[atlas.site][:, features].T > 0
    np.testing.assert_array_equal(scored.positive, fires)
    site = subject.sites[1]
    t = translations[site, "covariance"].matrix
    query = np.asarray(t)[:, features] / np.maximum(np.linalg.norm(t, axis=1, keepdims=True), 1e-30)
    cosine = (query / np.linalg.norm(query, axis=0)).T @ (
        a_s[site] / np.linalg.norm(a_s[site], axis=1, keepdims=True)
    ).T
    row = next(r for r in quality.rows if r.site == site and r.method == "covariance")
    np.testing.assert_allclose(row.auroc.mean, np.nanmean(auroc(cosine, fires)), atol=2e-3)
    top = scored.top[site]
    chosen = np.take_along_axis(a_s[site].T, np.asarray(top.index) - 400, axis=1)
    np.testing.assert_allclose(top.values, -np.sort(-a_s[site].T, axis=1)[:, :5], atol=1e-4)
    np.testing.assert_allclose(top.values, chosen, atol=1e-4)


def test_peaks_point_at_the_largest_token(spaces, corpus):
    subject, _ = spaces
    top = top_sentences(SentenceStream.from_texts([subject], corpus.eval), top_k=3)[subject.sites[1]]
    for feature in (0, 11):
        text = corpus.eval[int(top.index[feature, 0])]
        tokens = subject.tokenize([text])
        values, peak = subject.pooled(tokens)[subject.sites[1]]
        np.testing.assert_allclose(values[0, feature], top.values[feature, 0], rtol=1e-4, atol=1e-5)
        assert int(peak[0, feature]) == int(top.position[feature, 0])


def test_no_text_no_site_and_no_pooling_are_named(spaces):
    with pytest.raises(AtlasError, match="no sentence"):
        SentenceStream.from_texts(spaces, [])
    with pytest.raises(AtlasError, match="no site"):
        Subject.from_model(spaces[0].model, [])
    with pytest.raises(AtlasError, match="unknown pooling"):
        Subject.from_model(spaces[0].model, SITES, "median")
