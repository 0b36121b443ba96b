"""Table 5: what is decoded, what a stopped evaluation leaves, and scores against their definitions."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from atlas_jax import AtlasError
from atlas_jax.experiments import (
    CONTROLS,
    SteeringConcept,
    SteeringSettings,
    difference_of_means,
    distinct,
    plan,
    read_steering_concepts,
    repetition,
    single_features,
    steer,
    steering_evaluation,
)
from atlas_jax.experiments._steering import concept_activation
from atlas_jax.experiments._steering_evaluation import COSTS, GENERATIONS
from atlas_jax.experiments._steering_plan import Cell
from atlas_jax.experiments._steering_scores import Rated, evaluate_ratings
from atlas_jax.experiments._steering_texts import Row, read_rows
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site

PROMPTS = ("The", "Return the", "A list of", "This")
STRENGTHS = (-0.5, 0.25, 1.0)


class Fires:
    """Rates a text 2 where the concept's features fire, 0 elsewhere, and counts what it is asked for."""

    name, aspects = "fires", ("concept",)

    def __init__(self, atlas, queries):
        self.atlas, self.queries, self.asked = atlas, queries, 0

    def judge(self, concept, texts, aspect="concept", *, instruction=None):
        self.asked += len(texts)
        return [2 if a > 0 else 0 for a in concept_activation(self.atlas, self.queries[concept], texts)]


@pytest.fixture(scope="module")
def alignment(bundled_run):
    return Alignment.load(bundled_run)


@pytest.fixture(scope="module")
def settings(alignment):
    queries = single_features(alignment, 2)
    concepts = tuple(SteeringConcept(name, (int(np.argmax(q)),), (1.0,)) for name, q in queries.items())
    sites = (("resid_post.2",), ("mlp_act.1", "resid_post.2"))
    return SteeringSettings(concepts, PROMPTS, STRENGTHS, sites, ("procrustes",), random=1, max_new_tokens=6)


@pytest.fixture(scope="module")
def judge(alignment, settings):
    return Fires(alignment.atlas, {c.name: np.asarray(alignment.atlas.query(c.features)) for c in settings.concepts})


@pytest.fixture(scope="module")
def evaluation(alignment, settings, judge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steering")
    return folder, steering_evaluation(alignment, settings, judge, folder, neutral=3)


def test_every_cell_is_there_once_and_the_unsteered_one_once_for_all(settings, evaluation):
    rows = read_rows(evaluation[0] / GENERATIONS)
    cells = [row.cell for row in rows[:: len(PROMPTS)]]
    assert sorted(map(str, cells)) == sorted(map(str, plan(settings)))
    assert len(set(cells)) == len(cells)
    assert [row.prompt for row in rows] == [*PROMPTS] * len(cells)
    steered = {c.method for c in cells}
    assert steered == {"unsteered", "procrustes", "random 0", "other concept", "diffmean", "prompt", "native"}


def test_a_cell_says_what_steer_says(alignment, settings, evaluation):
    """The one batched program decodes as steering a concept at a site alone does."""
    rows = {(r.cell, r.prompt): r for r in read_rows(evaluation[0] / GENERATIONS)}
    concept = settings.concepts[0]
    translations = {s: alignment.translation(s, "procrustes") for s in map(Site.parse, settings.sites[1])}
    query = np.asarray(alignment.atlas.query(concept.features))
    options = {"max_new_tokens": 6, "temperature": 0.0, "unit": "norm"}
    for s in steer(alignment.subject.model, alignment.atlas, translations, query, PROMPTS, (0.25,), **options):
        row = rows[Cell(concept.name, "procrustes", "+".join(settings.sites[1]), 0.25), s.prompt]
        assert row.text == s.text
        assert row.activations[concept.name] == pytest.approx(s.concept, abs=1e-5)
        assert row.perplexity == pytest.approx(s.perplexity, rel=1e-4)


def test_five_stopped_evaluations_end_with_the_same_table(alignment, settings, judge, tmp_path):
    """A process that is killed leaves files that end anywhere; nothing that is whole is paid for twice."""
    folder = tmp_path / "whole"
    settings = dataclasses.replace(settings, controls=("random",), sites=settings.sites[:1])
    whole = steering_evaluation(alignment, settings, judge, folder, neutral=3)
    rng = np.random.default_rng(0)
    for i in range(5):
        shutil.copytree(folder, tmp_path / str(i))
        path = tmp_path / str(i) / (GENERATIONS, "ratings-fires.jsonl", COSTS)[i % 3]
        content = path.read_bytes()
        path.write_bytes(content[: int(rng.integers(1, len(content)))])
        judge.asked = 0
        again = steering_evaluation(alignment, settings, judge, tmp_path / str(i), neutral=3)
        assert again.to_dict() == whole.to_dict()
        assert path.read_bytes().count(b"\n") == content.count(b"\n")
        assert judge.asked == 0 or path.name.startswith("ratings")


def test_another_evaluation_in_its_place_is_refused(alignment, settings, judge, evaluation):
    other = dataclasses.replace(settings, seed=5)
    with pytest.raises(AtlasError, match="holds the texts of another evaluation: seed was 0 and is 5"):
        steering_evaluation(alignment, other, judge, evaluation[0])


def test_costs_are_none_without_strength_and_grow(evaluation):
    _, result = evaluation
    for method in ("procrustes", "random 0"):
        own = {c.strength: c for c in result.costs if (c.method, c.sites) == (method, "resid_post.2")}
        assert own[1.0].kl > own[0.25].kl > 0
        assert own[1.0].perplexity > own[0.25].perplexity


def test_difference_of_means_is_that_of_the_sentences(alignment, settings):
    """Against numpy over the activations of every sentence."""
    from atlas_jax.pipeline import SentenceStream, pooled_activations
    from atlas_jax.subject import Subject

    site, concept = Site.parse("resid_post.2"), settings.concepts[0]
    query = np.asarray(alignment.atlas.query(concept.features))
    found = difference_of_means(alignment, {concept.name: query}, [site], sentences=64)[site, concept.name]
    texts = [alignment.corpus.fit[i] for i in np.unique(np.linspace(0, len(alignment.corpus.fit) - 1, 64).astype(int))]
    acts = {}
    for space in (Subject.from_model(alignment.subject.model, [site], "mean"), alignment.atlas):
        stream = SentenceStream.from_texts([space], texts, max_length=alignment.settings.max_length)
        acts |= {str(s): a for s, a in pooled_activations(stream).items()}
    fires = acts[str(alignment.atlas.site)][:, concept.features[0]] > 0
    a = acts["resid_post.2"].astype(np.float64)
    wanted = a[fires].mean(0) - a[~fires].mean(0) if 0 < fires.sum() < len(fires) else np.zeros(a.shape[1])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def _scored(ratings, strengths=(-1.0, 1.0, 2.0), controls=()):
    """Scores of one concept from ratings by strength, four prompts each."""
    concept = SteeringConcept("c", (0,), (1.0,))
    settings = SteeringSettings((concept,), PROMPTS, strengths, (("a.1",),), ("m",), controls=controls)
    rows, rated = [], []
    for strength, own in ratings.items():
        cell = Cell("c" if strength else None, "m" if strength else "unsteered", "a.1" if strength else "", strength)
        rows += [Row(cell, p, 0, "", [1, 2, 1, 2, 1, 2], {"c": strength}, 2.0 + abs(strength)) for p in PROMPTS]
        rated.append(Rated("c", "concept", cell.method, cell.sites, strength, own))
    (score,) = evaluate_ratings(settings, "j", rows, rated, []).scores
    return score


def test_scores_are_those_of_the_definitions():
    score = _scored({0.0: [0, 0, 0, 2], -1.0: [0, 0, 0, 0], 1.0: [2, 2, 0, 2], 2.0: [0, 0, 2, 0]})
    assert score.faithfulness.mean == pytest.approx(100 * (0.75 - 0.25) / 0.75)
    assert score.reversed.mean == 0
    assert score.activation_change.mean == 1.0
    assert (score.without_effect, score.missing) == (0, 0)
    assert score.perplexity == 1.5
    assert (score.distinct, score.repetition) == (0.4, pytest.approx(1 / 3))
    # prompts 0 and 2 choose 1, where the others gain (1 - .5) / .5; those choose 1 too, where 0 and 2 gain a half
    assert score.held_out.mean == pytest.approx((100 + 50) / 2)


def test_class_one_and_what_is_missing_are_left_out():
    score = _scored({0.0: [0, 0, 1, None], -1.0: [1, 1, 1, 1], 1.0: [2, 1, None, 0], 2.0: [0, 0, 0, 0]})
    assert score.faithfulness.mean == 50
    assert score.missing == 1
    without = _scored({0.0: [0] * 4, -1.0: [0] * 4, 1.0: [0] * 4, 2.0: [0] * 4})
    assert (without.faithfulness.mean, without.activation_change, without.without_effect) == (0, None, 1)


def test_a_gain_that_is_none_of_the_definitions_is_told_apart():
    ratings = {0.0: [0, 0, 0, 2], -1.0: [0] * 4, 1.0: [2, 2, 0, 2], 2.0: [0] * 4}
    assert _scored(ratings | {2.0: [2] * 4}).faithfulness.mean != _scored(ratings).faithfulness.mean
    assert _scored(ratings | {0.0: [0] * 4}).faithfulness.mean == 75


@pytest.mark.parametrize(("ids", "n", "share"), [([1, 2, 3], 1, 1.0), ([1, 1, 1, 1], 2, 1 / 3), ([1], 2, None)])
def test_distinct(ids, n, share):
    assert distinct(ids, n) == (None if share is None else pytest.approx(share))
    assert repetition([5, 6], 4) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no concept"),
        ('{"concept": "a", "features": [1]}\n{"concept": "b"}\n', "line 2 of .* is no concept"),
        ('{"concept": "", "features": [1]}', "line 1"),
        ('{"concept": "a", "features": []}', "line 1"),
        ('{"concept": "a", "features": [1.5]}', "line 1"),
        ('{"concept": "a", "features": [1], "weights": [1, 2]}', "line 1"),
        ("{", "line 1"),
    ],
)
def test_a_damaged_concept_file_is_named(content, says, tmp_path):
    (tmp_path / "concepts.jsonl").write_text(content)
    with pytest.raises(AtlasError, match=says):
        read_steering_concepts(tmp_path / "concepts.jsonl")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"concepts": ()}, "needs concepts"),
        ({"strengths": (0.0,)}, "a strength other than 0"),
        ({"strengths": (float("nan"),)}, "finite"),
        ({"controls": ("magic",)}, f"unknown control 'magic'; known are {', '.join(CONTROLS)}"),
        ({"concepts": (SteeringConcept("a", (1,), (1.0,)),) * 2}, "two concepts have one name"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, change, says):
    with pytest.raises(AtlasError, match=says):
        dataclasses.replace(settings, **change)


def test_a_feature_that_the_atlas_has_not_names_its_concept(alignment, settings, judge, tmp_path):
    wrong = dataclasses.replace(settings, concepts=(SteeringConcept("dogs", (10**6,), (1.0,)),))
    with pytest.raises(AtlasError, match="concept 'dogs': .*1000000"):
        steering_evaluation(alignment, wrong, judge, tmp_path)


def test_what_is_kept_is_plain_json_lines(evaluation):
    lines = (evaluation[0] / GENERATIONS).read_text().splitlines()
    assert {"concept", "method", "sites", "strength", "prompt", "seed", "text", "ids"} <= set(json.loads(lines[0]))
