"""Table 5: what is decoded, what a stopped evaluation leaves, and scores against their definitions."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.chat_server import chat_server
from typer.testing import CliRunner

from atlas_jax import AtlasError, Steer, run
from atlas_jax.cli._app import app
from atlas_jax.experiments import (
    CONTROLS,
    LabelledText,
    SteeringConcept,
    SteeringSettings,
    difference_of_means,
    distinct,
    labelled_difference_of_means,
    plan,
    read_labelled_texts,
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
from atlas_jax.experiments._steering_texts import Decoder, Row, read_rows
from atlas_jax.models._decode import complete
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


def test_difference_of_means_of_labelled_texts_is_theirs(alignment, settings):
    """Against activations of every text alone, averaged by hand; the other concept's are not read."""
    name, other = (c.name for c in settings.concepts)
    texts = [("a file is read", True), ("a list of numbers", False), ("an open file", True), ("sums", False)]
    labelled = [LabelledText(name, *t) for t in texts] + [LabelledText(other, *t) for t in texts[1:]]
    site = Site.parse("resid_post.2")
    own = dataclasses.replace(settings, labelled=tuple(labelled))
    found = labelled_difference_of_means(alignment, own, [site])
    subject = dataclasses.replace(alignment.subject, sites=(site,), pooling="mean")
    mean = {text: np.asarray(subject.encode(subject.tokenize([text]))[site][0], np.float64) for text, _ in texts}
    rows = [mean[text] for text, _ in texts]
    np.testing.assert_allclose(found[site, name], (rows[0] + rows[2]) / 2 - (rows[1] + rows[3]) / 2, atol=2e-5)
    np.testing.assert_allclose(found[site, other], rows[2] - (rows[1] + rows[3]) / 2, atol=2e-5)
    assert [c for c in plan(own) if c.method == "labelled diffmean"]
    assert "labelled diffmean" not in {c.method for c in plan(settings)}
    assert own.to_dict()["labelled"] != dataclasses.replace(own, labelled=own.labelled[:-1]).to_dict()["labelled"]


def test_more_concepts_take_more_chunks_of_the_same_memory(alignment, settings):
    """One compiled program decodes two concepts or six, and no chunk has more rows."""
    settings = dataclasses.replace(settings, controls=(), sites=settings.sites[:1], max_new_tokens=2)
    queries = single_features(alignment, 6)
    concepts = tuple(SteeringConcept(name, (int(np.argmax(q)),), (1.0,)) for name, q in queries.items())
    vectors = {("procrustes", Site.parse("resid_post.2"), c.name): np.ones(128, np.float32) for c in concepts}
    programs, rows = [], []
    for count in (2, 6):
        own = dataclasses.replace(settings, concepts=concepts[:count])
        decoder = Decoder(alignment, own, lambda: type("", (), {"subject": vectors, "native": {}}), row_bytes=2**22)
        chunks = [chunk for chunk in decoder.chunks() if chunk]
        assert {len(chunk) for chunk in chunks[:-1]} == {len(chunks[0])}
        assert len(chunks) > 1
        rows.append(len(chunks[0]))
        decoder.rows(chunks[0])
        decoder.rows(chunks[-1])
        programs.append(complete._cache_size())
    assert rows[0] == rows[1]
    assert programs[0] == programs[1]


def test_the_recipe_for_transformers_steers_as_we_do(alignment, settings):
    """The code block of docs/steering.md, run as it stands."""
    page = Path(__file__).parent.parent / "docs" / "steering.md"
    (recipe,) = [b for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if "forward_hook" in b]
    query = np.asarray(alignment.atlas.query(settings.concepts[0].features))
    names = {"run": alignment, "query": query}
    exec(recipe, names)
    tokens = alignment.subject.model.tokenize(["A file of numbers and a list of names"])
    edit = Steer(alignment.translation("resid_post.2", "procrustes").direction(query), 0.5)
    ours = run(alignment.subject.model, tokens, edits={"resid_post.2": edit}).logits
    unsteered = run(alignment.subject.model, tokens).logits
    with torch.no_grad():
        theirs = names["model"](torch.tensor(np.asarray(tokens.ids))).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(unsteered - theirs).max() > 0.1


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
    ("content", "says"),
    [
        ('{"concept": "a", "text": "b", "label": 2}', "line 1"),
        (
            '{"concept": "a", "text": "b", "label": 1}\n{"concept": "a", "text": "", "label": 0}',
            "line 2 of",
        ),
        ('{"concept": "a", "text": "b"}', 'write {"concept": name'),
        ("[]", "line 1"),
    ],
)
def test_damaged_labelled_texts_are_named(content, says, tmp_path):
    (tmp_path / "labelled.jsonl").write_text(content)
    with pytest.raises(AtlasError, match=says):
        read_labelled_texts(tmp_path / "labelled.jsonl", [SteeringConcept("a", (1,), (1.0,))])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"concepts": ()}, "needs concepts"),
        ({"strengths": (0.0,)}, "a strength other than 0"),
        ({"strengths": (float("nan"),)}, "finite"),
        ({"controls": ("magic",)}, f"unknown control 'magic'; known are {', '.join(CONTROLS)}"),
        ({"concepts": (SteeringConcept("a", (1,), (1.0,)),) * 2}, "two concepts have one name"),
        ({"labelled": (LabelledText("dogs", "A dog.", True),)}, "needs labelled texts of both kinds"),
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


SHOWN = re.compile(r"^'?Sequence ID (\d+): (.*?)'?$", re.MULTILINE)
SMALL = ["--site", "resid_post.2", "--method", "procrustes", "--strength", "0.5", "--max-new-tokens", "4"]
SMALL += ["--count", "2", "--control", "random", "--neutral", "2"]


@pytest.fixture
def server():
    rate = lambda prompt: json.dumps({i: 0 for i, _ in SHOWN.findall(prompt.rsplit("\nInput: ", 1)[1])})
    with chat_server(rate) as made:
        yield made


@pytest.fixture
def command(alignment, bundled_run, tmp_path, monkeypatch):
    """``evaluate steering`` on the run, with two prompts."""
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    (tmp_path / "prompts.txt").write_text("The\nThis\n")
    fixed = ["evaluate", "steering", str(bundled_run), "--prompts", str(tmp_path / "prompts.txt")]
    return lambda *options: CliRunner().invoke(
        app, [*fixed, "--out", str(tmp_path / "out"), "--json", *SMALL, *options]
    )


def test_a_dry_run_tells_what_a_chat_judge_is_then_asked(server, command, tmp_path):
    chat = ["--judge", "chat:tiny", "--base-url", server.url, "--price", "1", "2"]
    done = command(*chat, "--dry-run")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (server.requests, (tmp_path / "out").exists()) == ([], False)
    done = command(*chat)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert len(server.requests) == told["requests"] == 3 * 2
    assert result["judge tokens"] == {"prompt": 100 * told["requests"], "answer": 7 * told["requests"]}
    assert 0 < told["cost, about"] < 1
    said = " ".join(done.stderr.split())
    assert "2 of 2 concepts are a single atlas feature" in said
    assert f"the judge spent {100 * told['requests']:,} prompt and" in said
    assert json.loads((tmp_path / "out" / "table-chat-tiny.json").read_text()) == result
    assert result["diagnosis"]


def test_a_chat_judge_that_fails_in_mid_run_keeps_what_was_judged(server, command, tmp_path):
    chat = ["--judge", "chat:tiny", "--base-url", server.url]
    server.failures, book = [200] * 4 + [401], tmp_path / "out" / "replies.jsonl"
    done = command(*chat)
    assert isinstance(done.exception, AtlasError), done.output
    assert "401" in str(done.exception)
    kept, before = book.read_text().count("\n"), len(server.requests)
    assert kept >= 3
    assert command(*chat).exit_code == 0
    assert len(server.requests) - before == book.read_text().count("\n") - kept > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge", "gpt"], "unknown judge 'gpt'; give atlas, embedding, words, chat:MODEL or model:PATH"),
        (["--judge", "model:no/such"], "no/such"),
        (["--control", "magic"], "unknown control 'magic'"),
        (["--concept", "file", "--concepts", "{}"], "either by --concept or by --concepts"),
        (["--concepts", "{}/none.jsonl"], "none.jsonl' cannot be read"),
        (["--concepts", "{}/far.jsonl"], "concept 'far': .*999999"),
        (["--concepts", "{}/empty.jsonl"], "has no concept"),
        (["--labelled", "{}/empty.jsonl"], "has no labelled text of the concepts"),
        (["--labelled", "{}/far.jsonl"], "line 1 of .* is no labelled text"),
        (["--site", "mlp_act.77"], "no translation of mlp_act.77"),
        (["--method", "magic"], "no translation of .* by magic"),
        (["--strength", "0"], None),
        (["--unit", "miles"], "unknown unit of strength 'miles'; known are norm, raw, length"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(command, tmp_path, as_for_users, options, says):
    (tmp_path / "far.jsonl").write_text('{"concept": "far", "features": [999999]}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    done = command(*[o.format(tmp_path) for o in options], "--dry-run")
    if says is None:
        assert done.exit_code == 0, done.output
        return
    assert isinstance(done.exception, AtlasError), done.output
    assert re.search(says, str(done.exception)), done.exception
    assert not (tmp_path / "out").exists()
