"""Directions by gradients and from the next token: against plain definitions, one by one, and as users take them."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import atlas_jax as aj
from atlas_jax.cli._app import app
from atlas_jax.experiments import (
    HOWS,
    Recipe,
    SteeringConcept,
    SteeringSettings,
    WordsJudge,
    directions,
    steer,
    suggested_strength,
)
from atlas_jax.experiments._concept_directions import _chosen, _firing, _Task
from atlas_jax.experiments._firing_tokens import LENGTH, RIDGE, ahead, evenly
from atlas_jax.experiments._gradient_directions import examples, gradients, optimise

SITE = aj.Site("resid_post", 2)
RECIPE = Recipe(sentences=96, each=4, steps=3)


@pytest.fixture(scope="module")
def alignment(bundled_run):
    return aj.Alignment.load(bundled_run)


@pytest.fixture(scope="module")
def queries(alignment):
    """Three features that fire in many sentences, and a weighted pair."""
    often = np.argsort(-np.where(alignment.rate < 0.5, alignment.rate, 0))[:5].tolist()
    own = {f"feature {f}": np.asarray(alignment.atlas.query([f])) for f in often[:3]}
    return own | {"a pair": np.asarray(alignment.atlas.query(often[3:], [1.0, 0.5]))}


@pytest.fixture(scope="module")
def task(alignment, queries):
    return _Task(alignment, list(queries), np.stack(list(queries.values())), (SITE,), RECIPE, 0, None)


@pytest.fixture(scope="module")
def rows(alignment, task):
    """Where the concepts fire, which sentences were chosen, and both as examples."""
    where = _firing(task)
    chosen = _chosen(task, where)
    return where, chosen, examples(where, chosen, -1.0, alignment.subject.model.config.vocab_size)


def plain(alignment, texts, query, chosen, others, vector):
    """The objective of one concept, sentence by sentence: features and likelihoods as passes of their own give them."""
    atlas, model = alignment.atlas, alignment.subject.model
    total = jnp.zeros(())
    for kind, numbers in enumerate(chosen):
        for number in numbers:
            text, tokens = texts[number], _tokens(model, texts[number])
            logits = aj.run(model, tokens, edits={SITE: aj.Add(vector, 1.0)}).logits[0]
            nats = jax.nn.log_softmax(logits)[np.arange(len(logits) - 1), tokens.ids[0, 1:]]
            fires = np.ones(len(nats), bool)
            if kind == 0:
                read = _tokens(atlas.model, text)
                acts = np.asarray(atlas.sae.encode(aj.run(atlas.model, read, capture=atlas.sites).acts[atlas.site][0]))
                fires = _at_subject_tokens(alignment, text, acts @ query * np.asarray(read.mask[0]))[1:] > 0
            counts = np.asarray(tokens.mask[0, 1:]) & fires
            total += (1.0, others)[kind] * nats[counts].mean() / len(numbers)
    return total


def _tokens(model, text):
    return model.tokenize([text], max_length=LENGTH, length=LENGTH)


def _at_subject_tokens(alignment, text, acts):
    """Activations of the atlas token that has read the last character of each token of the subject."""
    subject, atlas = (s.model.tokenizer.spans([text], LENGTH)[0] for s in (alignment.subject, alignment.atlas))
    found = np.zeros(LENGTH)
    for place, (first, end) in enumerate(subject):
        covering = [i for i, (a, b) in enumerate(atlas) if first < end and a <= end - 1 < b]
        found[place] = acts[covering[-1]] if covering else 0.0
    return found


def test_the_gradient_is_that_of_the_plain_objective(alignment, task, rows):
    """Of one concept of four computed together, against jax.grad and finite differences of a written-out sum."""
    _, chosen, together = rows
    texts, zero = evenly(alignment, RECIPE.sentences), jnp.zeros(128)
    values, found = gradients(alignment.subject.model, SITE, jnp.zeros((4, 128)), together)
    of = lambda v: plain(alignment, texts, task.queries[1], chosen[1], -1.0, v)
    value, wanted = jax.value_and_grad(of)(zero)
    assert values[1] == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(found[1], wanted, atol=1e-5 * float(jnp.abs(wanted).max()), rtol=1e-3)
    along = wanted / jnp.linalg.norm(wanted)
    slope = (float(of(0.05 * along)) - float(of(-0.05 * along))) / 0.1
    assert slope == pytest.approx(float(found[1] @ along), rel=0.02)


@pytest.mark.parametrize("how", HOWS)
def test_many_concepts_are_found_as_each_alone(alignment, queries, how):
    together = aj.concept_directions(alignment, queries, SITE, how, recipe=RECIPE)
    norm = alignment.translation(SITE, "covariance").token_norm
    for name in (*queries,)[1:3]:
        alone = aj.concept_direction(alignment, queries[name], SITE, how, recipe=RECIPE)
        np.testing.assert_allclose(together[SITE, name].vector, alone.vector, atol=2e-3 * norm)
        assert np.linalg.norm(alone) == pytest.approx(norm, rel=1e-5)
        assert alone.cost["seconds"] > 0
        assert (alone.cost["tokens"] > 0) == (how != "translate")
        assert (alone.how, alone.site) == (how, SITE)


def test_the_ways_differ(alignment, queries):
    name = next(iter(queries))
    found = [aj.concept_direction(alignment, queries[name], SITE, how, recipe=RECIPE).vector for how in HOWS]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert abs(a @ b) < 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_other_concepts_compile_nothing(alignment, queries):
    names = list(queries)
    find = lambda own, how: aj.concept_directions(alignment, {n: queries[n] for n in own}, SITE, how, recipe=RECIPE)
    compiled = lambda: (gradients._cache_size(), optimise._cache_size())
    for how in HOWS:
        find(names[:2], how)
    before = compiled()
    for how in HOWS:
        find(names[2:], how)
    assert compiled() == before


def test_steps_keep_the_norm_and_the_best_one_counts(alignment, task, rows):
    """Against the objective of the best step computed anew; a start that cannot be bettered is kept."""
    where, chosen, _ = rows
    model = alignment.subject.model
    fit, held = (examples(where, chosen[:, :, at], 1.0, model.config.vocab_size) for at in ([1, 2, 3], [0]))
    start = 10.0 * jax.random.normal(jax.random.key(0), (4, 128)) / jnp.sqrt(128)
    done = optimise(model, SITE, start, fit, held, jnp.float32(0.02), 4)
    np.testing.assert_allclose(jnp.linalg.norm(done.vectors, axis=1), jnp.linalg.norm(start, axis=1), rtol=1e-5)
    again, _ = gradients(model, SITE, done.vectors, held, keep_norm=True)
    np.testing.assert_allclose(done.held.max(axis=0), again, rtol=1e-4)
    assert done.held.shape == (5, 4)
    assert (done.held[1:].max(axis=0) > done.held[0]).any()
    far = optimise(model, SITE, done.vectors, fit, held, jnp.float32(1e3), 1)
    kept = far.held[1] < far.held[0]
    assert kept.any()
    np.testing.assert_allclose(far.vectors[kept], done.vectors[kept], rtol=1e-5)


def test_ahead_is_the_whitened_covariance_with_the_next_token(alignment, task):
    """Against numpy in float64 over every token."""
    texts = evenly(alignment, 40)
    found, _ = ahead(alignment, task.queries, texts, (SITE,), None)
    model, atlas, befores, afters = alignment.subject.model, alignment.atlas, [], []
    unit = task.queries[3] / np.abs(task.queries[3]).sum()
    for text in texts:
        tokens, read = (_tokens(m, text) for m in (model, atlas.model))
        acts = np.asarray(aj.run(model, tokens, capture=[SITE], logits=False).acts[SITE][0], np.float64)
        features = atlas.sae.encode(aj.run(atlas.model, read, capture=atlas.sites, logits=False).acts[atlas.site][0])
        scores = _at_subject_tokens(alignment, text, np.asarray(features) @ unit * np.asarray(read.mask[0]))
        counts = np.asarray(tokens.mask[0])
        pairs = counts[:-1] & counts[1:]
        befores.append(acts[:-1][pairs])
        afters.append(scores[1:][pairs])
    x, y = np.concatenate(befores), np.concatenate(afters)
    x, y = x - x.mean(axis=0), y - y.mean()
    values, vectors = np.linalg.eigh(x.T @ x)
    wanted = vectors @ ((vectors.T @ (x.T @ y)) / np.sqrt(values + RIDGE * values.mean()))
    np.testing.assert_allclose(
        found[SITE][3] / np.linalg.norm(found[SITE][3]), wanted / np.linalg.norm(wanted), atol=1e-4
    )


def test_nothing_but_the_fit_half_is_read(alignment, queries, as_for_users):
    """No sentence of the eval half, and no label."""
    name = next(iter(queries))
    blind = dataclasses.replace(
        alignment, corpus=types.SimpleNamespace(fit=alignment.corpus.fit),
        atlas=dataclasses.replace(alignment.atlas, labels=aj.Labels.empty(alignment.atlas.width)),
    )  # fmt: skip
    for how in ("ahead", "optimise"):
        found, again = (aj.concept_direction(a, queries[name], SITE, how, recipe=RECIPE) for a in (alignment, blind))
        np.testing.assert_array_equal(found.vector, again.vector)


def test_refusals_are_one_sentence(alignment, queries, as_for_users):
    query, never = next(iter(queries.values())), np.asarray(alignment.atlas.query([int(np.argmin(alignment.rate))]))
    find = lambda q=query, site=SITE, how="gradient", recipe=RECIPE: aj.concept_direction(
        alignment, q, site, how, recipe=recipe
    )
    with pytest.raises(aj.AtlasError, match="unknown way 'magic' to find a direction; known are translate, ahead, gra"):
        find(how="magic")
    with pytest.raises(aj.AtlasError, match="query is zero everywhere"):
        find(np.zeros_like(query))
    with pytest.raises(aj.AtlasError, match="the query of the concept should be 1536 numbers"):
        find(np.ones(7, np.float32))
    with pytest.raises(aj.AtlasError, match="no translation of mlp_act.0 by .*; it has mlp_act.1"):
        find(site="mlp_act.0")
    with pytest.raises(aj.AtlasError, match="each of a recipe must be a whole number from 4 up, not 0"):
        find(recipe=Recipe(each=0))
    for how in ("gradient", "optimise"):
        with pytest.raises(
            aj.AtlasError, match="the concept fires in 0 of 96 sentences of the fit half, and directions"
        ):
            find(never, how=how)
    with pytest.raises(aj.AtlasError, match="the concept has no direction at resid_post.2"):
        find(never, how="ahead")


def test_a_direction_is_kept_and_steers_as_a_translation_does(alignment, queries, tmp_path, as_for_users):
    query = next(iter(queries.values()))
    along = aj.concept_direction(alignment, query, SITE, "gradient", recipe=RECIPE)
    again = aj.Direction.from_pretrained(along.save_pretrained(tmp_path / "kept"))
    for name in ("vector", "query"):
        np.testing.assert_array_equal(getattr(again, name), getattr(along, name))
    assert (again.site, again.how, again.cost) == (along.site, along.how, along.cost)
    model, options = alignment.subject.model, {"max_new_tokens": 5, "temperature": 0.0}
    text = aj.generate(model, ["The"], edits={SITE: aj.Steer(again.vector, 0.5)}, **options).texts[0]
    steered = lambda strength, unit: (
        steer(model, alignment.atlas, {SITE: again}, query, ["The"], [strength], unit=unit, **options)[0].text
    )
    norm = alignment.translation(SITE, "covariance").token_norm
    assert steered(0.5, "norm") == steered(0.5 * norm, "length") == text
    with pytest.raises(aj.AtlasError, match="a direction by gradient has no λ of Eq. 4"):
        steered(0.5, "raw")
    (tmp_path / "kept" / "direction.safetensors").write_bytes(b"damaged")
    with pytest.raises(aj.AtlasError, match=r"direction.safetensors' is damaged .*save the direction again"):
        aj.Direction.from_pretrained(tmp_path / "kept")


def test_ways_stand_beside_translators_in_an_evaluation(alignment, queries):
    concepts = tuple(
        SteeringConcept(name, tuple(np.flatnonzero(q).tolist()), tuple(q[q > 0].tolist()))
        for name, q in queries.items()
    )
    settings = SteeringSettings(
        concepts, ("The",), (0.5,), ((str(SITE),),), ("gradient", "procrustes"), controls=("random",), random=1
    )
    along = directions(alignment, settings).subject
    assert {method for method, _, _ in along} == {"gradient", "procrustes", "random 0", "other concept"}
    lengths = [np.linalg.norm(vector) for vector in along.values()]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)


def test_the_command_steers_by_gradients_and_keeps_the_direction(
    alignment, bundled_run, monkeypatch, tmp_path, queries, as_for_users
):
    monkeypatch.setattr(aj.Alignment, "load", lambda directory: alignment)
    feature = str(int(np.argmax(next(iter(queries.values())))))
    options = ["steer", str(bundled_run), "--site", str(SITE), "--prompt", "The", "--max-new-tokens", "4", "--json"]

    def command(*more):
        done = CliRunner().invoke(app, [*options, *more])
        return json.loads(done.stdout) if done.exit_code == 0 else str(done.exception)

    kept = tmp_path / "kept"
    found = command("--feature", feature, "--how", "gradient", "--save", str(kept))
    assert found["method"] == "gradient"
    vector = aj.Direction.from_pretrained(kept / str(SITE)).vector
    dose = suggested_strength(alignment, [SITE], along={SITE: vector[None]})
    assert {s["strength"] for s in found["steered"]} == {0.0, dose / 2, dose}
    assert command("--feature", feature, "--how", str(kept))["steered"] == found["steered"]
    assert "of another concept" in command("--feature", "3", "--how", str(kept))
    assert "unknown way 'magic'" in command("--feature", feature, "--how", "magic")


@pytest.mark.parametrize(
    ("concept", "text", "rating"),
    [
        ("978 datetime, line", "Two lines.", 2), ("978 datetime, line", "978 roofs.", 0), ("dog", "Dogs bark.", 2),
        ("dog", "A cat.", 0), ("12", "12", None),
    ],
)  # fmt: skip
def test_words_of_a_label(concept, text, rating):
    judge = WordsJudge()
    assert judge.judge(concept, [text]) == [rating]
    assert judge.missing == (rating is None)
    assert isinstance(judge, aj.experiments.Judge)
