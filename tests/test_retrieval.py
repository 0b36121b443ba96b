"""Table 4: in bounded memory, and with given or written sequences against an oracle in numpy."""

import dataclasses
import json

import numpy as np
import pytest
import sklearn.metrics
from helpers.chat_server import chat_server
from typer.testing import CliRunner

from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import ConceptSet, _retrieval, concept_retrieval, read_concepts, semantic_retrieval
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site

SITE = Site("mlp_act", 1)
WIDTHS = {SITE: 384, Site("resid_post", 2): 128}


@pytest.fixture(scope="module")
def alignment(bundled_run):
    """The run with four of its translations."""
    whole = Alignment.load(bundled_run)
    few = {key: t for key, t in whole.translations.items() if t.method in ("procrustes", "covariance")}
    return dataclasses.replace(whole, translations={k: t for k, t in few.items() if str(t.site) != "mlp_act.2"})


def retrieval(alignment, **options):
    return semantic_retrieval(alignment.stream("eval"), alignment.translations, **options)


def test_blocks_change_nothing(alignment, monkeypatch):
    """Not even where they do not divide the features."""
    whole = retrieval(alignment, sentences=7)
    monkeypatch.setattr(_retrieval, "QUERIES", 100)
    parted = retrieval(alignment, sentences=7)
    assert parted.candidates == whole.candidates
    assert max(whole.candidates.values()) > 100
    for ours, theirs in zip(parted.rows, whole.rows, strict=True):
        assert ours.mrr == pytest.approx(theirs.mrr, abs=1e-3)
        assert ours.mpp == pytest.approx(theirs.mpp, abs=1e-5)


def test_no_more_sentences_than_half_of_those_there_are(alignment, bundled_run, monkeypatch):
    """Queries over all sentences would be the same for every feature."""
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    command = ["evaluate", "retrieval", str(bundled_run), "--json", "--sentences"]
    found, most = (CliRunner().invoke(app, [*command, count], catch_exceptions=False) for count in ("100000", "100"))
    told = "queries are averaged over 100 sentences, not over 100000: over at most half of the 200 held out"
    assert told in " ".join(found.stderr.split())
    assert "queries are averaged" not in most.stderr
    assert json.loads(found.stdout) == json.loads(most.stdout)
    assert json.loads(most.stdout)["sentences"] == 100


@pytest.mark.parametrize("sentences", [0, -3, 2.5])
def test_sentences_are_a_number_of_them(alignment, as_for_users, sentences):
    with pytest.raises(AtlasError, match=f"sentences of a query must be a whole number from 1 up, not {sentences}"):
        retrieval(alignment, sentences=sentences)


@pytest.fixture(scope="module")
def concepts(alignment):
    """Features with their own sentences, with those of others, and with sentences at random; one with FADE scores."""
    top = alignment.strongest(SITE)
    texts = lambda i: tuple(alignment.corpus.sentence(int(j)) for j in np.asarray(top.index[i])[: 3 + i % 3])
    own = [ConceptSet(SITE, i, texts(i)) for i in range(0, 60, 3)]
    others = [ConceptSet(SITE, i + 1, texts(i)) for i in range(0, 30, 3)]
    random = [ConceptSet(SITE, i + 2, tuple(alignment.corpus.eval[i : i + 3])) for i in range(0, 30, 3)]
    scored = [own[0]._replace(fade={"responsiveness": 0.5, "purity": 0.9})]  # 0.73 at most
    return [*scored, *own[1:], *others, *random, ConceptSet(SITE, 200, (), "nothing")]


def oracle(alignment, concepts, *, centre):
    """Filters and ranks one concept after the other, in float64."""
    encode = lambda space, site, texts: np.asarray(space.encode(space.tokenize(list(texts)))[site], np.float64)
    concepts = [c for c in concepts if c.sequences]
    texts = [text for c in concepts for text in c.sequences]
    natural = encode(alignment.subject, SITE, alignment.corpus.eval)
    together = encode(alignment.subject, SITE, texts), encode(alignment.atlas, alignment.atlas.site, texts)
    both = np.concatenate([natural, together[0]])
    mean, deviation = both.mean(0), both.std(0)
    kept, queries, counts, at = [], [], {"unreliable": 0, "elsewhere": 0}, 0
    for c in concepts:
        a_s, a_c = (x[at : at + len(c.sequences)] for x in together)
        at += len(c.sequences)
        scores = np.concatenate([a_s[:, c.feature], natural[:, c.feature]])
        clarity = 2 * sklearn.metrics.roc_auc_score(np.arange(len(scores)) < len(a_s), scores) - 1
        fade = [c.fade.get("clarity", clarity), *(c.fade[k] for k in ("responsiveness", "purity") if k in c.fade)]
        reliable = min(fade) > 0 and len(fade) / sum(1 / x for x in fade) > 0.75
        z = np.divide(a_s.mean(0) - mean, deviation, out=np.zeros(len(mean)), where=deviation > 0)
        if not reliable:
            counts["unreliable"] += 1
        elif z.argmax() != c.feature:
            counts["elsewhere"] += 1
        else:
            kept.append(c.feature)
            queries.append(a_c.mean(0))
    found = {}
    for (site, method), t in alignment.translations.items():
        if site == SITE:
            matrix = np.asarray(t.matrix, np.float64)
            norm = np.linalg.norm(matrix, axis=1, keepdims=True)
            unit = np.divide(matrix, norm, out=np.zeros_like(matrix), where=norm > 0)
            scores = []
            for i, q in enumerate(queries):
                q = q - centre * np.asarray(t.mean_atlas, np.float64)
                s = (unit @ (q / np.linalg.norm(q)))[kept]
                z = (s - s.mean()) / s.std()
                scores.append((1 / (1 + np.sum(s > s[i])), np.exp(z[i]) / np.exp(z).sum()))
            found[method] = np.mean(scores, axis=0), np.std(scores, axis=0)
    return kept, counts, found


@pytest.mark.parametrize("centre", [False, True])
def test_given_sequences_are_filtered_and_ranked_as_one_by_one(alignment, concepts, centre):
    kept, counts, expected = oracle(alignment, concepts, centre=centre)
    found = concept_retrieval(alignment.stream("eval"), alignment.translations, concepts, centre=centre)
    filtered = found.filters[SITE]
    assert (filtered.given, filtered.without, filtered.kept) == (len(concepts), 1, len(kept))
    assert (filtered.unreliable, filtered.elsewhere) == (counts["unreliable"], counts["elsewhere"])
    assert min(counts.values()) > 0
    assert found.candidates == {SITE: len(kept)}
    assert len(kept) > 5
    assert [row.method for row in found.rows] == list(expected)
    for row in found.rows:
        means, deviations = expected[row.method]
        assert (row.mrr.mean, row.mpp.mean) == pytest.approx(tuple(means), abs=2e-4)
        assert row.std == pytest.approx(tuple(deviations), abs=2e-4)
    said = f"{counts['unreliable']} have no reliable concept (FADE of 0.75 or less), {counts['elsewhere']} are not"
    assert said in filtered.sentence(SITE)


def test_no_feature_passes(alignment, concepts):
    others = [c._replace(feature=c.feature + 100) for c in concepts if c.sequences]
    with pytest.raises(AtlasError, match=r"of 39 features of mlp_act.1 .* and 0 are left; give sequences that"):
        concept_retrieval(alignment.stream("eval"), alignment.translations, others[:39])


@pytest.fixture
def command(alignment, bundled_run, monkeypatch):
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)
    return lambda *options: CliRunner().invoke(app, ["evaluate", "retrieval", str(bundled_run), "--json", *options])


def line(concept):
    return json.dumps({"site": str(concept.site), "feature": concept.feature, "sequences": concept.sequences})


def test_the_command_reads_a_file_and_says_what_the_filters_left(alignment, concepts, command, tmp_path):
    file = tmp_path / "concepts.jsonl"
    file.write_text("\n".join(line(c) for c in concepts if c.sequences and not c.fade))
    done = command("--concepts", str(file), "--paper")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    same = concept_retrieval(alignment.stream("eval"), alignment.translations, read_concepts(file, WIDTHS))
    assert [row["mrr"]["mean"] for row in found["rows"]] == [row.mrr.mean for row in same.rows]
    assert [row["paper"] for row in found["rows"]] == [None, None]
    assert found["filters"] == {"mlp_act.1": same.filters[SITE]._asdict()}
    assert found["centred"] is False
    assert same.filters[SITE].sentence(SITE) in " ".join(done.stderr.split())


def test_a_chat_model_writes_what_descriptions_lack(alignment, concepts, command, tmp_path):
    """Transluce's ids; one answer cannot be read; no question is asked twice."""
    texts = {f"description {c.feature}": c.sequences for c in concepts[1:7]}
    said = lambda prompt: prompt.split("described as: ")[1].split("\n")[0]
    answer = lambda prompt: json.dumps({"sequences": texts[said(prompt)]}) if said(prompt) in texts else "No."
    rows = [{"neuron_id": f"llama_1_{c.feature}_-1", "description": f"description {c.feature}"} for c in concepts[1:7]]
    rows += [rows[0] | {"polarity": -1, "neuron_id": "llama_1_7_-1"}, rows[0] | {"neuron_id": "llama_2_7_-1"}]
    rows += [{"layer": 1, "neuron": 300, "description": "unknown"}]
    file = tmp_path / "described.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    alone = dataclasses.replace(alignment, subject=dataclasses.replace(alignment.subject, sites=(SITE,)))
    with pytest.MonkeyPatch.context() as patch, chat_server(answer) as server:
        patch.setattr(Alignment, "load", lambda directory: alone)
        assert "7 of the 7 concepts" in str(command("--concepts", str(file)).exception)
        asked = ("--concepts", str(file), "--chat-model", "tiny", "--base-url", server.url, "--sentences", "3")
        done, again = command(*asked), command(*asked)
    assert done.exit_code == 0, done.output
    assert len(server.requests) == 7
    assert all("Write 3 short texts" in r["messages"][0]["content"] for r in server.requests)
    assert server.requests[0]["response_format"]["json_schema"]["name"] == "Sequences"
    assert "answers that cannot be read 1" in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["filters"]["mlp_act.1"]["without"] == 1
    assert json.loads(done.stdout)["sentences"] == 3
    assert done.stdout == again.stdout


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"site": "mlp_act.1", "feature": 384, "sequences": ["a"]}'], "line 1 .* is of feature 384, .* 0 to 383"),
        (['{"site": "mlp_act.1", "feature": -1, "sequences": ["a"]}'], "line 1 .* is of feature -1"),
        (
            ['{"site": "mlp_act.9", "feature": 1, "sequences": ["a"]}'],
            "is of mlp_act.9, and this run has mlp_",
        ),
        (['{"site": "mlp.9", "feature": 1, "sequences": ["a"]}'], "line 1 .* is no concept: "),
        (['{"layer": 7, "feature": 1, "sequences": ["a"]}'], "has no concept of a feature of mlp_act.1, resid_post.2"),
        (['{"feature": 1, "sequences": ["a"]}'], "line 1 .* does not say which site it is of"),
        (["", '{"layer": 1, "feature": 1, "sequences": []}'], "line 2 .* has an empty set of sequences"),
        (['{"layer": 1, "feature": 1, "sequences": ["a", " "]}'], "line 1 .* has a blank sequence"),
        (['{"layer": 1, "feature": 1}'], "line 1 .* has neither sequences nor a description"),
        (['{"layer": 1, "feature": "x", "sequences": ["a"]}'], "line 1 .* is no concept: feature: Input should be"),
        (['{"layer": 1, "sequences": ["a"]}'], "line 1 .* is no concept: feature: Field required"),
        (['{"layer": 1, "feature": 1, "sequences": "a"}'], "line 1 .* is no concept: sequences: Input should be"),
        (
            ['{"layer": 1, "feature": 1, "sequences": ["a"]}'] * 2,
            "line 2 .* is of feature 1 of mlp_act.1, as line 1",
        ),
        (['{"layer": 1, "feature": 1, "sequences": ["a"], "purity": 3}'], "line 1 .* purity: Input should be less"),
        (['{"layer": 1, "feature": 1, "sequences": ["a"]}', '{"layer"'], "line 2 .* is damaged, it is no JSON"),
        (["[1, 2]"], "line 1 .* is no concept: it: Input should be a valid dictionary"),
        ([""], "has no concept of a feature"),
    ],
)
def test_a_bad_concept_file_is_one_sentence(tmp_path, lines, said):
    file = tmp_path / "concepts.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(AtlasError, match=said) as error:
        read_concepts(file, WIDTHS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "concepts.jsonl").write_bytes(content)
    with pytest.raises(AtlasError, match=r"concepts\.jsonl cannot be read as a concept file, JSON lines in UTF-8"):
        read_concepts(tmp_path / "concepts.jsonl", WIDTHS)
