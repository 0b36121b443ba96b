"""Choosing a member of the whitened family, and semantic retrieval, against activations held whole."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.float64 import unit

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import Chooser, semantic_retrieval, steering_preference, whitened_grid
from atlas_jax.experiments._choose import _cosine
from atlas_jax.metrics import auroc, average_precision
from atlas_jax.models import LanguageModel, run
from atlas_jax.pipeline import (
    Alignment,
    AlignSettings,
    Pair,
    SentenceStream,
    align,
    fit_statistics,
    held_out,
    merge_fitted,
    pooled_activations,
)
from atlas_jax.sharding import device_put, make_mesh
from atlas_jax.subject import Subject
from atlas_jax.translators import Member
from atlas_jax.types import Site

GRID = (Member(0.0, 0.0, False, True), Member(1.0, 0.0, True, False, 0.1), Member(0.5, 1.0, False, True, 0.1))
SITE = Site.parse("mlp_act.2")
FIT, EVAL = 600, 300


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(installed_documentation(max_bytes=200_000), n_fit=FIT, n_eval=EVAL)


@pytest.fixture(scope="module")
def pair():
    subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), [SITE])
    sources = {"subject": {"path": str(SUBJECT), "sha256": "s"}, "atlas": {"path": str(ATLAS), "sha256": "a"}}
    return Pair(subject, ConceptAtlas.from_pretrained(ATLAS), sources)


@pytest.fixture(scope="module")
def alignment(pair, corpus):
    settings = AlignSettings((str(SITE),), ("procrustes", "covariance"))
    return align(pair, corpus, settings, chooser=Chooser(("detect", "retrieve", "steer"), GRID))


@pytest.fixture(scope="module")
def held(pair, corpus):
    """Pooled activations of both halves, in float64."""
    both = lambda texts: [pooled_activations(SentenceStream.from_texts([s], texts)) for s in pair[:2]]
    sides = [(s[SITE], c[pair.atlas.site]) for s, c in map(both, (corpus.fit, corpus.eval))]
    return [tuple(np.asarray(a, np.float64) for a in side) for side in sides]


def member_matrix(member, a_s, a_c):
    """A member from activations, float64, by singular values."""
    a_s, a_c = (unit(a) if member.normalize_rows else a for a in (a_s, a_c))
    a_s, a_c = (a - a.mean(0) if member.centre else a for a in (a_s, a_c))

    def power(a, p):
        _, s, vt = np.linalg.svd(a, full_matrices=False)
        keep = s > 1e-3 * s[0]
        ridge = member.ridge * (s**2).sum() / a.any(axis=0).sum()
        return (vt[keep].T * (s[keep] ** 2 + ridge) ** -p) @ vt[keep]

    t = a_s.T @ a_c
    t = power(a_s, member.alpha) @ t if member.alpha else t
    return t @ power(a_c, member.beta) if member.beta else t


def mrr(matrix, a_s, a_c, mean_c, deviation, mean_s, k=20):
    """Table 4 from activations: queries averaged over the strongest sentences, ranked among valid features."""
    top = np.argsort(-a_s, axis=0, kind="stable")[:k].T
    score = (a_s[top].mean(1) - mean_s) / np.where(deviation > 0, deviation, np.inf)
    valid = np.flatnonzero(score.argmax(1) == np.arange(len(score)))
    similarity = unit(a_c[top].mean(1)[valid] - mean_c) @ unit(matrix)[valid].T
    own = np.diagonal(similarity)[:, None]
    return (1 / (1 + (similarity > own).sum(1))).mean(), len(valid)


def test_the_parts_are_disjoint_whole_and_repeatable(pair, corpus):
    stream = SentenceStream.from_texts(pair[:2], corpus.fit, first=1000)
    most, part = held_out(stream, seed=3)
    assert part.size == FIT // 10
    assert sorted([*most.rows, *part.rows]) == list(range(FIT))
    assert held_out(stream, seed=3)[1].rows.tolist() == part.rows.tolist()
    assert held_out(stream, seed=4)[1].rows.tolist() != part.rows.tolist()
    with pytest.raises(AtlasError, match="too few to hold some out"):
        held_out(SentenceStream.from_texts(pair[:2], corpus.fit[:5]), seed=0)


def test_nothing_is_lost_to_the_choice(pair, corpus):
    """The statistics of the parts, merged, are those of one pass over all."""
    stream = SentenceStream.from_texts(pair[:2], corpus.fit)
    fit = lambda stream: fit_statistics(stream, ["cross", "unit_cross"], further={"mean": ["cross"]})
    merged, whole = merge_fitted(*map(fit, held_out(stream, seed=0))), fit(stream)
    assert merged.active.tolist() == whole.active.tolist()
    assert merged.token_norm(SITE) == pytest.approx(whole.token_norm(SITE), rel=1e-6)
    for view in ("raw", "unit"):
        ours, theirs = (getattr(f.statistics.sums.crosses[SITE], view) for f in (merged, whole))
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))
    ours, theirs = (f.further["mean"].sums.crosses[SITE].raw for f in (merged, whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


def test_held_out_scores_are_those_of_held_activations(alignment, held, pair, corpus):
    """The grid again from float64 activations: solved on nine tenths, scored on the other."""
    (a_s, a_c), record = held[0], alignment.choice.record
    most, part = (p.rows for p in held_out(alignment.stream("fit"), seed=0))
    features = np.array(record["features"])
    rate = (a_c[most] > 0).mean(0)
    assert ((rate[features] >= 0.005) & (rate[features] <= 0.2)).all()
    fires = (a_c[part][:, features] > 0).T
    features, fires = features[fires.any(1)], fires[fires.any(1)]
    found = {(r["use"], Member(*(r[f] for f in Member._fields))): r for r in record["grid"]}
    assert len(found) == 3 * len(GRID)
    for member in GRID:
        matrix = member_matrix(member, a_s[most], a_c[most])
        scores = unit(unit(matrix)[:, features].T) @ unit(a_s[part]).T
        row = found["detect", member]
        assert row["auroc"] == pytest.approx(np.mean(auroc(scores, fires)), abs=5e-3)
        assert row["ap"] == pytest.approx(np.mean(average_precision(scores, fires)), abs=1e-2)
        assert row["score"] == pytest.approx((row["auroc"] + row["ap"]) / 2)
        moments = a_c[most].mean(0), a_s[part].std(0), a_s[part].mean(0)
        assert found["retrieve", member]["mrr"] == pytest.approx(
            mrr(matrix, a_s[part], a_c[part], *moments)[0], abs=0.02
        )


def test_the_best_of_the_grid_is_solved_on_the_whole_fit_half(alignment, held, pair, corpus):
    a_s, a_c = held[0]
    of_mean = Subject.from_model(pair.subject.model, [SITE], "mean")
    mean = pooled_activations(SentenceStream.from_texts([of_mean], corpus.fit))[SITE].astype(np.float64)
    assert {m for _, m in alignment.translations} == {
        "procrustes",
        "covariance",
        "whitened_detect",
        "whitened_retrieve",
    }
    assert {m for _, m in alignment.steering} == {"covariance", "whitened_steer"}
    assert alignment.recommended("steer") == ("whitened_steer", "mean")
    assert [alignment.recommended(u)[0] for u in ("detect", "retrieve")] == ["whitened_detect", "whitened_retrieve"]
    assert alignment.recommended("identify") == ("procrustes", "max")  # of no member, and this run has no correlation
    for use in ("detect", "retrieve"):  # the member of the other use is no substitute
        rest = {key: t for key, t in alignment.translations.items() if key[1] != f"whitened_{use}"}
        assert dataclasses.replace(alignment, translations=rest).recommended(use) == ("procrustes", "max")
    for use in ("detect", "retrieve", "steer"):
        rows = [r for r in alignment.choice.record["grid"] if r["use"] == use]
        best = max(rows, key=lambda r: r["score"])
        assert [r for r in alignment.choice.record["chosen"] if r["use"] == use] == [best]
        member = alignment.choice.members[SITE, f"whitened_{use}"]
        assert member == Member(*(best[f] for f in Member._fields))
        translation = alignment.translation(SITE, f"whitened_{use}")
        assert translation.certificate["alpha"] == member.alpha
        assert translation.pooling == ("mean" if use == "steer" else "max")
        truth = member_matrix(member, mean if use == "steer" else a_s, a_c)
        ours = np.asarray(translation.matrix, np.float64)
        assert np.linalg.norm(ours - truth) < 0.02 * np.linalg.norm(truth)


def test_a_chosen_run_is_read_back(alignment, tmp_path, monkeypatch):
    monkeypatch.setattr("atlas_jax.pipeline._pair.directory_hash", lambda path: "sa"[path == ATLAS])
    alignment.save(tmp_path)
    again = Alignment.load(tmp_path)
    assert set(again.translations) == set(alignment.translations)
    assert set(again.steering) == set(alignment.steering)
    np.testing.assert_array_equal(
        again.translation(SITE, "whitened_retrieve").matrix, alignment.translation(SITE, "whitened_retrieve").matrix
    )
    assert (tmp_path / "tables" / "whitened.json").is_file()


def test_retrieval_equals_the_formulas_on_held_activations(alignment, held):
    (fit_s, fit_c), (a_s, a_c) = held
    del fit_s
    table = semantic_retrieval(alignment.stream("eval"), alignment.translations)
    moments = a_s.std(0), a_s.mean(0)
    for row in table.rows:
        matrix = np.asarray(alignment.translations[row.site, row.method].matrix, np.float64)
        value, candidates = mrr(matrix, a_s, a_c, fit_c.mean(0), *moments)
        assert row.mrr.mean == pytest.approx(value, abs=0.01)
        assert table.candidates[SITE] == candidates
    raw = semantic_retrieval(alignment.stream("eval"), alignment.translations, centre=False)
    value, _ = mrr(np.asarray(alignment.translation(SITE, "covariance").matrix), a_s, a_c, 0.0, *moments)
    assert next(r for r in raw.rows if r.method == "covariance").mrr.mean == pytest.approx(value, abs=0.01)


def test_preference_finds_the_direction_that_raises_a_token(pair):
    """At the last residual stream a token's unembedding raises its probability, and the opposite lowers it."""
    model = pair.subject.model
    texts = [
        "the file is read from the file",
        "open the file and close the file",
        "a mean of the numbers",
        "it is a number",
    ]
    tokens = model.tokenize(texts)
    site = Site("resid_post", model.config.num_layers - 1)
    word = model.tokenizer.encode(["the file"])[0][-1]
    row = jnp.asarray(model.decoder.embed_tokens(jnp.array([[word]]))[0, 0], jnp.float32)
    expresses = np.array([True, True, False, False])
    found = steering_preference(model, site, jnp.stack([row, -row, jnp.zeros_like(row)]), tokens, expresses)
    assert found[0] == 1.0
    assert found[1] == 0.0
    assert found[2] == 0.5
    norm = jnp.linalg.norm(run(model, tokens, capture=[site]).acts[site], axis=-1)
    assert float(norm.min()) > 0


def test_grids_and_uses():
    grid = whitened_grid()
    assert {Member(0.5, 0.0), Member(0.0, 1.0, False), Member(1.0, 0.0, False), Member(0.5, 0.5, False)} <= set(grid)
    assert sum(m.alpha == m.beta == 0 for m in grid) == 4
    assert Chooser(("detect",), (Member(1.0, 0.0, True),)).needs == {"unit_cross", "unit_subject_gram"}
    with pytest.raises(AtlasError, match="unknown use 'magic' of a translation; known are detect, retrieve, steer"):
        Chooser(("magic",))


def test_cosines_of_members_are_the_same_on_a_mesh(rng):
    queries, rows = rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=(24, 16)).astype(np.float32)
    mesh = make_mesh(model=2)
    found = _cosine(jnp.asarray(queries), device_put(rows, mesh, "data", "model"), mesh)
    assert found.sharding.is_fully_replicated
    np.testing.assert_allclose(found, queries @ rows.T, atol=1e-5)
