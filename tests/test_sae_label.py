"""Labels for one's own SAE: what is shown and tested, a chat endpoint that fails at times, the offline labeller."""

import json
import re

import numpy as np
import pytest
import sklearn.metrics
from helpers.chat_server import chat_server
from helpers.plain_text import sentences
from typer.testing import CliRunner

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS
from atlas_jax.cli._app import app
from atlas_jax.corpus import Corpus, CorpusStatistics
from atlas_jax.corpus._corpus import content_hash
from atlas_jax.errors import AtlasError
from atlas_jax.labels import (
    Answer,
    AnswerBook,
    ChatEndpoint,
    Labels,
    Retry,
    description_in,
    detected_in,
    explanation_prompt,
    words_of,
)
from atlas_jax.pipeline import SentenceStream, pooled_activations
from atlas_jax.sae_lab import estimate_requests, gather_evidence, label_by_chat, label_by_words, label_facts

WORDS = {5: "length", 46: "string", 53: "argument", 103: "weight", 121: "method", 174: "checks", 368: "random"}
FEATURES = [*WORDS, 201]  # the last fires, but at no word of its own
QUICK = Retry(tries=4, timeout=5.0)


def answer_to(prompt):
    """Describe a feature by the token between the marks that is seen most; sentences with that word activate it."""
    if "described as: " in prompt:
        word = prompt.split("described as: ")[1].split("\n")[0].removeprefix("the word ")
        numbers = [n for n, text in re.findall(r"^(\d+)\. (.*)$", prompt, re.MULTILINE) if word in text.lower()]
        return json.dumps({"numbers": [int(n) for n in numbers]})
    marked = [m.strip().lower() for m in re.findall("«([^»]*)»", prompt.split("\n\n")[1])]
    return json.dumps({"description": f"'the word {max(set(marked), key=marked.count)}.'"})


@pytest.fixture
def server():
    with chat_server(answer_to) as made:
        yield made


@pytest.fixture(scope="module")
def atlas():
    return ConceptAtlas.from_pretrained(ATLAS)


@pytest.fixture(scope="module")
def corpus(atlas):
    """Sentences of 17 to 24 tokens, so that one batch shape serves them all."""
    texts = [t for t in sentences(1500) if 17 <= len(atlas.model.tokenizer.encode([t])[0]) <= 24][:1100]
    fit, held, domains = tuple(texts[:600]), tuple(texts[600:]), ("docs",) * len(texts)
    counts = CorpusStatistics(1, *[1100] * 4, 600, 500, (1.0, 200.0), (0.0, 100.0), 60.0, 30.0, "none", 0)
    return Corpus(fit, held, domains, counts, content_hash(fit, held, domains))


@pytest.fixture(scope="module")
def evidence(atlas, corpus):
    return gather_evidence(atlas, corpus, features=FEATURES, contexts=8)


def endpoint(server, **options):
    return ChatEndpoint("tiny-chat", server.url, "secret", retry=QUICK, **options)


def test_contexts_are_the_strongest_fit_sentences_and_tests_are_held_out(atlas, corpus, evidence):
    shown = pooled_activations(SentenceStream.from_texts([atlas], corpus.fit))[atlas.site]
    held = pooled_activations(SentenceStream.from_texts([atlas], corpus.eval))[atlas.site]
    place = {text: i for i, text in enumerate(corpus.eval)}
    assert [e.feature for e in evidence] == [f for f in FEATURES if shown[:, f].max() > 0]
    for e in evidence:
        strongest = np.sort(shown[:, e.feature])[::-1][: len(e.contexts)]
        np.testing.assert_allclose([c.activation for c in e.contexts], strongest, rtol=1e-4)
        for c in e.contexts:
            np.testing.assert_allclose(shown[corpus.fit.index(c.text), e.feature], c.activation, rtol=1e-4)
        assert e.fires.tolist() == [bool(held[place[text], e.feature] > 0) for text in e.sentences]
        assert 0 < np.sum(~e.fires) <= 10 >= np.sum(e.fires)
    assert any(np.sum(e.fires) > 0 and e.fires.tolist() != sorted(e.fires.tolist()) for e in evidence)


def test_a_chat_model_describes_and_is_tested(server, evidence, tmp_path):
    server.failures = [429, 503, 0, 500]
    book, said = AnswerBook(tmp_path / "answers.jsonl"), {}
    labels = label_by_chat(evidence, endpoint(server), book, 1536, workers=3)
    assert all(h["Authorization"] == "Bearer secret" for h in server.headers)
    assert {tuple(sorted(body)) for body in server.requests} == {("messages", "model", "response_format")}
    forms = [body["response_format"]["json_schema"] for body in server.requests]
    assert {(form["name"], form["strict"]) for form in forms} == {("Description", True), ("Detection", True)}
    assert {tuple(form["schema"]["required"]) for form in forms} == {("description",), ("numbers",)}
    for line in (tmp_path / "answers.jsonl").read_text().splitlines():
        said[json.loads(line)["text"]] = json.loads(line)
    for e in evidence:
        label = labels.chosen(e.feature)
        assert (label.explainer, label.source) == ("tiny-chat", "chat")
        word = label.description.removeprefix("the word ")
        assert any(word in c.token.lower() for c in e.contexts)
        votes = [word in text.lower() for text in e.sentences]
        assert label.score == pytest.approx(sklearn.metrics.roc_auc_score(e.fires, votes))
    assert book.spent == [100 * 2 * len(evidence), 7 * 2 * len(evidence)]
    assert len(server.requests) == 2 * len(evidence) + 4
    labels.save(tmp_path / "labels.jsonl")
    again = Labels.load(tmp_path / "labels.jsonl")
    assert again.n_features == 1536
    assert again.described() == labels.described()


def test_what_was_answered_is_not_asked_again(server, evidence, tmp_path):
    path, chat = tmp_path / "answers.jsonl", endpoint(server)
    server.failures = [200] * 5 + [401] * 100
    with pytest.raises(AtlasError, match="refused: 401 not now"):
        label_by_chat(evidence, chat, AnswerBook(path), 1536, workers=1)
    before, server.failures = len(server.requests), []
    with path.open("a") as file:
        file.write('{"key": "cut off by a cra')
    book = AnswerBook(path)
    assert len(book) == 5
    left = estimate_requests(evidence, chat, book)
    labels = label_by_chat(evidence, chat, book, 1536)
    assert len(server.requests) - before == left.requests == 2 * len(evidence) - 5
    done = estimate_requests(evidence, chat, AnswerBook(path))
    assert (done.requests, done.features, done.facts((1.0, 2.0))["cost, about"]) == (0, 0, 0)
    label_by_chat(evidence, chat, AnswerBook(path), 1536)
    assert len(server.requests) - before == left.requests
    label_by_chat(evidence[:1], endpoint(server, temperature=0.5), AnswerBook(path), 1536)
    assert len(server.requests) - before == left.requests + 2
    assert server.requests[-1]["temperature"] == 0.5
    assert len(labels.described()) == len(evidence)


def test_the_estimate_is_near_what_is_sent(server, evidence, tmp_path):
    chat, book = endpoint(server), AnswerBook(tmp_path / "answers.jsonl")
    guess = estimate_requests(evidence, chat, book)
    assert server.requests == []
    label_by_chat(evidence, chat, book, 1536)
    assert guess.requests == len(server.requests)
    sent = sum(len(body["messages"][0]["content"]) for body in server.requests) / 4
    assert guess.prompt_tokens == pytest.approx(sent, rel=0.05)
    assert guess.facts((3.0, 15.0))["cost, about"] == pytest.approx(
        (3 * guess.prompt_tokens + 15 * guess.completion_tokens) / 1e6, abs=1e-4
    )


@pytest.mark.parametrize(
    ("failures", "answer", "says"),
    [
        ([503] * 9, None, "gave no answer in 4 tries: 503 not now"),
        ([400], None, "refused: 400 not now"),
        ([], lambda prompt: None, "did not answer with a message"),
        ([], lambda prompt: " \n ", "tiny-chat gave no description of any of"),
    ],
)
def test_an_endpoint_that_does_not_do_its_part_is_one_sentence(server, evidence, tmp_path, failures, answer, says):
    server.failures, server.answer = failures, answer or server.answer
    with pytest.raises(AtlasError, match=says) as raised:
        label_by_chat(evidence[:2], endpoint(server), AnswerBook(tmp_path / "answers.jsonl"), 1536, workers=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("vague", ["I would rather not say.", "1, 2", '{"numbers": [99]}', ""])
def test_a_test_answer_that_cannot_be_read_gives_no_score(server, evidence, tmp_path, vague):
    server.answer = lambda prompt: vague if "described as" in prompt else '{"description": "a word"}'
    book = AnswerBook(tmp_path / "answers.jsonl")
    labels = label_by_chat(evidence[:2], endpoint(server), book, 1536)
    assert [labels.chosen(e.feature).score for e in evidence[:2]] == [None, None]
    assert np.isnan(label_facts(labels)["mean detection AUROC"])
    assert book.unread == 2


def test_a_description_that_cannot_be_read_is_missing_and_counted(server, evidence, tmp_path):
    good, vague = server.answer, explanation_prompt(evidence[0].contexts)
    server.answer = lambda prompt: "Sure! It is about words." if prompt == vague else good(prompt)
    book = AnswerBook(tmp_path / "answers.jsonl")
    labels = label_by_chat(evidence, endpoint(server), book, 1536)
    assert labels.described() == sorted(e.feature for e in evidence[1:])
    assert book.unread == 1
    assert len(server.requests) == 2 * len(evidence) - 1
    assert estimate_requests(evidence, endpoint(server), book).requests == 0


def test_a_server_that_takes_no_form_is_asked_without(server, evidence, tmp_path):
    server.formless, server.error = True, "response_format of type json_schema is not supported"
    book = AnswerBook(tmp_path / "answers.jsonl")
    labels = label_by_chat(evidence, endpoint(server), book, 1536)
    assert labels.described() == sorted(e.feature for e in evidence)
    assert book.unread == 0
    assert ["response_format" in body for body in server.requests].count(True) == len(server.requests) / 2


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ('{"numbers": [2, 3]}', [False, True, True]),
        ('```json\n{"numbers": [1]}\n```', [True, False, False]),
        ('{"numbers": []}', [False, False, False]),
        *((answer, None) for answer in ('{"numbers": [2, 17]}', '{"numbers": ["2"]}', '{"numbers": 2}', "[2]")),
        *((answer, None) for answer in ("Sentences 2 and 3.", "none", "", '{"numbers": [2], "sure": true}', '{"num')),
    ],
)
def test_test_answers_are_read_and_never_guessed(answer, named):
    assert detected_in(answer, 3) == named


@pytest.mark.parametrize(
    ("answer", "description"),
    [
        ('{"description": " **Words for\\ntime.** "}', "Words for time"),
        ('```\n{"description": "naïve"}\n```', "naïve"),
        *((answer, "") for answer in ('"Words for time."', '{"description": 3}', '{"label": "x"}', "", "null")),
    ],
)
def test_descriptions_are_read_and_never_guessed(answer, description):
    assert description_in(answer) == description


def test_an_endpoint_without_an_address_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(AtlasError, match="--base-url"):
        ChatEndpoint.connect("m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    found = ChatEndpoint.connect("m")
    assert (found.base_url, found.api_key) == ("http://localhost:1/v1", "k")
    assert "k'" not in repr(found)


def test_a_damaged_book_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "1", "text": "x"}\nnonsense\n')
    with pytest.raises(AtlasError, match="line 2 of"):
        AnswerBook(tmp_path / "a.jsonl")


def test_an_answer_survives_its_book(tmp_path):
    chat, answer = ChatEndpoint("m", "http://localhost"), Answer("naïve\nanswer", 3, 4)
    AnswerBook(tmp_path / "a.jsonl").add(chat, "q", answer)
    assert AnswerBook(tmp_path / "a.jsonl").get(chat, "q") == answer
    assert AnswerBook(tmp_path / "a.jsonl").get(chat, "other") is None


def test_word_labels_detect_better_than_those_of_other_features(evidence, corpus):
    labels = label_by_words(evidence, corpus.fit, 1536)
    by_id = {e.feature: e for e in evidence}
    own, other, described = [], [], labels.described()
    for i, feature in enumerate(described):
        e, label = by_id[feature], labels.chosen(feature)
        words = set(label.description.split(", "))
        counts = [len(words & words_of(text)) for text in e.sentences]
        if 0 < np.sum(e.fires) < len(e.fires):
            assert label.score == pytest.approx(sklearn.metrics.roc_auc_score(e.fires, counts))
            own.append(label.score)
            wrong = set(labels[described[i - 1]].split(", "))
            strange = [len(wrong & words_of(text)) for text in e.sentences]
            other.append(sklearn.metrics.roc_auc_score(e.fires, strange))
    assert {f: labels[f] for f in described} == WORDS
    assert len(own) == len(WORDS)
    assert np.mean(own) > 0.9
    assert np.mean(other) < 0.6
    assert (labels.chosen(described[0]).explainer, labels.chosen(described[0]).source) == ("log-odds", "statistical")


def test_features_without_a_word_of_their_own_are_refused(evidence, corpus):
    with pytest.raises(AtlasError, match="no word sets any of 1 features apart"):
        label_by_words([e for e in evidence if e.feature not in WORDS], corpus.fit, 1536)


def test_a_feature_outside_is_refused(atlas, corpus):
    with pytest.raises(AtlasError, match="feature 1536 does not exist; this SAE has 0 to 1535"):
        gather_evidence(atlas, corpus, features=[1536])


def test_the_command_labels_and_estimates(server, corpus, tmp_path):
    corpus.save(tmp_path / "corpus")
    words = ["--model", ATLAS / "model", "--sae", ATLAS / "sae", "--text", tmp_path / "corpus", "--json"]
    words += [w for f in FEATURES for w in ("--feature", f)]
    command = lambda *more: CliRunner().invoke(app, ["sae", "label", *map(str, [*words, *more])])

    done = command("--out", tmp_path / "words.jsonl")
    assert done.exit_code == 0, done.stderr
    found = Labels.load(tmp_path / "words.jsonl")
    assert json.loads(done.stdout)["labelled"] == len(found.described()) > 3
    asked = ("--chat-model", "tiny-chat", "--base-url", server.url, "--out", tmp_path / "chat.jsonl")
    dry = command(*asked, "--dry-run", "--price", "1", "2")
    assert dry.exit_code == 0, dry.stderr
    assert json.loads(dry.stdout)["requests"] > 0 == len(server.requests)
    assert json.loads(dry.stdout)["cost, about"] > 0
    assert not (tmp_path / "chat.jsonl").exists()
    done = command(*asked)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["labelled"] == json.loads(done.stdout)["that fire"]
    assert json.loads(done.stdout)["answers that cannot be read"] == 0
    assert json.loads(done.stdout)["tokens spent"] == 107 * json.loads(dry.stdout)["requests"]
    assert Labels.load(tmp_path / "chat.jsonl", 1536).described() == sorted(FEATURES)
    assert len(server.requests) == json.loads(dry.stdout)["requests"]
    for more, says in (
        (("--out", tmp_path / "x.json"), "name --out something.jsonl"),
        (("--out", tmp_path / "x.jsonl", "--site", "resid_post.1"), "was trained on resid_post.3, not on resid_post.1"),
        (("--out", tmp_path / "x.jsonl", "--dry-run"), "give --chat-model too"),
    ):
        wrong = command(*more)
        assert wrong.stdout == ""
        assert isinstance(wrong.exception, AtlasError)
        assert says in str(wrong.exception)
