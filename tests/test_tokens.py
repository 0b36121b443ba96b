"""Tokens of two tokenizers matched by their characters, and statistics over such pairs."""

import json
import os
from itertools import permutations
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_jax import AlignSettings, LanguageModel, Site, Subject, load_pair, make_mesh, names, run
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.bundled._tokenizers import train_byte_fallback, train_byte_level
from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import evaluate_quality, localisation
from atlas_jax.models import Tokenizer, match_tokens, pad_spans
from atlas_jax.pipeline import PAIRS, Alignment, SentenceStream, fit_token_statistics, solve

MODELS = Path(os.environ.get("ATLAS_JAX_DATA", "/nowhere")) / "models"
PLACES = {"subject": SUBJECT, "atlas": ATLAS / "model", "babyllama": MODELS / "babyllama-tok361"}
PLACES["stories"] = MODELS / "stories260K"
TEXTS = [
    "Return the value of an informative dictionary.",
    "  The naïve café 😀 costs 12345 €, information. ",
    "<s>hello</s> world\n\n漢字 ok",
    "tabs\tand  two   spaces",
    "ﬁne ligatures and e\u0301",
    " ",
]


def _tokenizer(name):
    if name in ("trained-bytes", "trained-spaces"):
        train = train_byte_level if name == "trained-bytes" else train_byte_fallback
        return Tokenizer.from_backend(train(TEXTS, 300), "<s>")
    if not PLACES[name].is_dir():
        pytest.skip(f"{PLACES[name]} is not there")
    return Tokenizer.load(PLACES[name])


def _by_definition(a, b):
    """The last token of a that covers the last character of each token of b, one at a time."""
    covers = lambda span, c: span[0] <= c < span[1]
    return [
        max((i for i, span in enumerate(a) if after > first and covers(span, after - 1)), default=-1)
        for first, after in b
    ]


@pytest.mark.parametrize(("a", "b"), [*permutations(PLACES, 2), ("trained-bytes", "trained-spaces")])
@pytest.mark.parametrize("max_length", [None, 6])
def test_matched_tokens_end_at_the_same_character(a, b, max_length):
    a, b = _tokenizer(a), _tokenizer(b)
    spans_a, spans_b = a.spans(TEXTS, max_length), b.spans(TEXTS, max_length)
    for tokenizer, spans in ((a, spans_a), (b, spans_b)):
        assert list(map(len, spans)) == list(map(len, tokenizer.encode(TEXTS, max_length)))
    match = match_tokens(pad_spans(spans_a, 80), pad_spans(spans_b, 70))
    assert (match.shape, match.dtype) == ((len(TEXTS), 70), np.int32)
    for text, row, one, other in zip(TEXTS, match, spans_a, spans_b, strict=True):
        assert row[: len(other)].tolist() == _by_definition(one, other), text
        assert (row[len(other) :] == -1).all()
        read = max(after for _, after in one)
        for place, (first, after) in zip(row, other, strict=False):
            # Every character of these tokenizers has a token: what was read and is no special token is matched.
            assert (place >= 0) == (first < after <= read), (text, first, after)


def test_matching_holds_pieces_to_words_in_one_piece():
    """Values by hand: words against pieces, a space in or out of the span, a character of several tokens."""
    words = [(0, 0), (0, 6), (6, 18), (18, 19)]
    pieces = [(0, 0), (0, 3), (3, 6), (7, 13), (13, 18), (18, 19), (18, 19), (18, 19), (19, 19)]
    spans = pad_spans([words]), pad_spans([pieces])
    assert match_tokens(*spans).tolist() == [[-1, 1, 1, 2, 2, 3, 3, 3, -1]]
    assert match_tokens(*spans[::-1]).tolist() == [[-1, 2, 4, 7]]
    moved = pad_spans([[(first + 1, after + 1) for first, after in pieces]])
    assert match_tokens(spans[0], moved).tolist() != match_tokens(*spans).tolist()


SITES = (Site("mlp_act", 1), Site("resid_post", 2))
CUT = 16  # tokens, less than the first text has, of which the two read different parts
SENTENCES = [
    "é à é à é à é à",
    *TEXTS,
    "a list of numbers",
    "the font of a text",
    "an open file 12345",
    "if x is None: return",
]


@pytest.fixture(scope="module")
def pair():
    return load_pair(SUBJECT, ATLAS, AlignSettings(SITES, ("covariance",)))[:2]


@pytest.fixture(scope="module")
def activations(pair):
    """Both sides of each sentence by itself, and the places of its matched tokens."""
    subject, atlas = pair
    found = []
    for text in SENTENCES:
        tokens_s, tokens_c = (space.model.tokenize([text], max_length=CUT, length=CUT) for space in pair)
        acts = run(subject.model, tokens_s, capture=SITES, logits=False).acts
        h = {site: np.asarray(acts[site][0], np.float64) for site in SITES}
        x = run(atlas.model, tokens_c, capture=[atlas.site], logits=False).acts[atlas.site]
        spans = [space.model.tokenizer.spans([text], CUT)[0] for space in pair]
        mask_s, mask_c = (np.asarray(t.mask[0]) for t in (tokens_s, tokens_c))
        places = [(i, j) for j, i in enumerate(_by_definition(*spans)) if i >= 0 and mask_s[i] and mask_c[j]]
        found.append((h, np.asarray(atlas.sae.encode(x)[0], np.float64), mask_c, places))
    return found


def _rows(activations, which, late=0):
    """Rows of both sides and their weights, a sentence and a token at a time; ``late`` is a planted fault."""
    rows = []
    for h, a, mask, places in activations:
        if which == "next":
            places = [(i, j + 1) for i, j in places if j + 1 < len(mask) and mask[j + 1]]
        if which == "peak":
            at = [j for _, j in places]
            peaks = np.array(at)[np.argmax(a[at], axis=0)]
            a = np.where(np.arange(len(a))[:, None] == peaks, a, 0)
        weight = 1.0 if which == "peak" else 1 / max(1, len(places))
        rows += [({s: h[s][max(0, i - late)] for s in SITES}, a[j], weight) for i, j in places]
    return rows


def _centred(x, y, weight):
    x, y = (m - np.average(m, axis=0, weights=weight) for m in (x, y))
    return (x * weight[:, None]).T @ y


def _unit(x):
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


@pytest.mark.parametrize("which", PAIRS)
def test_token_statistics_are_those_of_the_pairs(pair, activations, which):
    stream = SentenceStream.from_texts(pair, SENTENCES, max_length=CUT, token_budget=64)
    result = fit_token_statistics(stream, ["cross", "unit_cross", "subject_gram"], which=which)
    statistics = result.fitted.statistics

    def difference(rows):
        weight, a = np.array([w for *_, w in rows]), np.stack([a for _, a, _ in rows])
        worst = abs(float(statistics.sums.weight) / weight.sum() - 1)
        for site in SITES:
            h, got = np.stack([h[site] for h, *_ in rows]), statistics.statistics(site)
            for mine, wanted in (
                (got.cross.raw, _centred(h, a, weight)),
                (got.cross.unit, _centred(_unit(h), _unit(a), weight)),
                (got.subject.raw.gram, _centred(h, h, weight)),
            ):
                worst = max(worst, np.linalg.norm(np.asarray(mine) - wanted) / np.linalg.norm(wanted))
        return worst

    assert difference(_rows(activations, which)) < 1e-5
    assert difference(_rows(activations, which, late=1)) > 0.1  # the same with the subject's token before
    fires = np.array([a[mask].max(axis=0) > 0 for _, a, mask, _ in activations]).sum(axis=0)
    np.testing.assert_array_equal(result.fitted.active, fires)
    matched = sum(len(places) for *_, places in activations) / sum(mask.sum() for _, _, mask, _ in activations)
    assert result.share == pytest.approx(matched)
    assert matched < 1
    assert {method for _, method in solve(stream, result.fitted, ["covariance", "procrustes"])} == {
        "covariance", "procrustes",
    }  # fmt: skip


def test_a_mesh_changes_nothing(pair):
    mesh = make_mesh(model=2)
    spread = load_pair(SUBJECT, ATLAS, AlignSettings(SITES, ("covariance",)), mesh)[:2]
    one, many = (
        fit_token_statistics(SentenceStream.from_texts(spaces, SENTENCES, max_length=CUT), ["cross"], which="peak")
        for spaces in (pair, spread)
    )
    assert one.share == many.share
    np.testing.assert_array_equal(one.fitted.active, many.fitted.active)
    for site in SITES:
        mine, other = (np.asarray(x.fitted.statistics.statistics(site).cross.raw) for x in (one, many))
        assert np.linalg.norm(mine - other) < 1e-5 * np.linalg.norm(mine)


def test_sentences_that_are_not_finite_are_left_out_once(pair):
    subject, atlas = pair
    broken = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), SITES)
    texts = ["a list of numbers", "the font font font", "an open file"]
    token = subject.model.tokenizer.encode(texts[1:2])[0][-1]
    weight = broken.model.decoder.embed_tokens.weight
    weight[...] = weight[...].at[token].set(jnp.nan)
    kept = fit_token_statistics(SentenceStream.from_texts(pair, [texts[0], texts[2]]), ["cross"]).fitted
    some = fit_token_statistics(SentenceStream.from_texts((broken, atlas), texts, first=5), ["cross"]).fitted
    assert (some.faulty, int(some.statistics.nonfinite.rows)) == ([6], 1)
    np.testing.assert_array_equal(some.active, kept.active)
    np.testing.assert_allclose(some.statistics.sums.atlas.raw.mean, kept.statistics.sums.atlas.raw.mean, atol=1e-6)
    assert some.token_norm(SITES[0]) == pytest.approx(kept.token_norm(SITES[0]))


def test_localisation_is_the_auroc_of_tokens_in_sentences_that_fire(pair, activations):
    from sklearn.metrics import average_precision_score, roc_auc_score

    rates = np.array([a[mask].max(axis=0) > 0 for _, a, mask, _ in activations]).sum(axis=0)
    features = np.flatnonzero(rates >= 2)[:6]
    rng = np.random.default_rng(0)
    directions = {(site, "random"): rng.normal(size=(6, width)) for site, width in pair[0].widths.items()}
    stream = SentenceStream.from_texts(pair, SENTENCES, max_length=CUT, token_budget=64)
    found, (tokens, chance) = localisation(stream, {k: d.astype(np.float32) for k, d in directions.items()}, features)
    assert tokens == sum(len(places) for *_, places in activations)
    for (site, name), d in directions.items():
        measures, shares = [], []
        for c, v in zip(features, d, strict=True):
            of = [(h, a, places) for h, a, _, places in activations if any(a[j, c] > 0 for _, j in places)]
            fires = [a[j, c] > 0 for _, a, places in of for _, j in places]
            score = [h[site][i] @ v / np.linalg.norm(h[site][i]) for h, _, places in of for i, _ in places]
            measures.append((roc_auc_score(fires, score), average_precision_score(fires, score)))
            shares.append(np.mean(fires))
        means = [interval.mean for interval in found[site, name]]
        np.testing.assert_allclose(means, np.mean(measures, axis=0), atol=1e-4)
        assert chance == pytest.approx(np.mean(shares))


def test_the_command_puts_token_level_translations_beside_those_of_the_run(bundled_run, tmp_path):
    words = ["evaluate", "tokens", bundled_run, "--pairs", "all", "--method", "covariance", "--features", 10]
    words += ["--sentences", 100, "--out", tmp_path / "tokens.json"]
    found = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "tokens.json").read_text())
    alignment = Alignment.load(bundled_run)
    quality = evaluate_quality(alignment, features=10)[1]
    pooled = {row["site"]: row["ap"]["mean"] for row in result["rows"] if row["rows"] == "pooled"}
    assert pooled == {
        str(row.site): pytest.approx(row.average_precision.mean, abs=1e-3)
        for row in quality.rows
        if row.method == "covariance"
    }
    assert [row["rows"] for row in result["rows"]] == ["pooled", "all"] * len(alignment.subject.sites)
    for pooled, token in zip(result["rows"][::2], result["rows"][1::2], strict=True):
        assert token["tokens"]["auroc"]["mean"] != pooled["tokens"]["auroc"]["mean"]
        assert f"{token['tokens']['auroc']['mean']:.3f}" in found.stdout
    assert 0.9 < result["matched"] <= 1
    assert tuple(PAIRS) == names.PAIR_NAMES


@pytest.mark.parametrize(
    ("needs", "which", "sentence"),
    [
        (["cross"], "peaks", "unknown pairs of tokens 'peaks'; known are all, next, peak"),
        (["top_k"], "all", "semantic_lens"),
    ],
)
def test_mistakes(pair, needs, which, sentence):
    with pytest.raises(AtlasError, match=sentence):
        fit_token_statistics(SentenceStream.from_texts(pair, ["a"]), needs, which=which)
