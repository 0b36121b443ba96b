"""Judges: a chat endpoint that misbehaves, a local model beside transformers, the proxy's thresholds, agreement."""

import functools
import json
import os
import re

import numpy as np
import pytest
import sklearn.metrics
import torch
import transformers
from helpers.chat_server import chat_server
from helpers.plain_text import sentences

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import AtlasJudge, ChatJudge, Judge, ModelJudge, agreement
from atlas_jax.experiments._rating import items_of, rating_prompt, ratings_form, ratings_in
from atlas_jax.experiments._steering import concept_activation
from atlas_jax.labels import AnswerBook, ChatEndpoint, Retry
from atlas_jax.models import LanguageModel

TEXTS = ["A dog barks.", "The bank lends.", 'He said "dog".\nThen he left.', "Numbers.", "dogs, dogs"]
QUICK = Retry(tries=3, timeout=5.0)
SHOWN = re.compile(r"^'?Sequence ID (\d+): (.*?)'?$", re.MULTILINE)


def shown(prompt):
    """Ids and texts of the question itself, after the examples."""
    return dict(SHOWN.findall(prompt.rsplit("\nInput: ", 1)[1]))


def rate(prompt):
    """2 where the text has the word dog, as an object by id."""
    return json.dumps({i: 2 * ("dog" in item) for i, item in shown(prompt).items()})


@pytest.fixture
def server():
    with chat_server(rate) as made:
        yield made


@pytest.fixture
def judge(server, tmp_path):
    return judge_at(server, tmp_path / "replies.jsonl")


def judge_at(server, path, *, url=None, retry=QUICK, temperature=None, **options):
    chat = ChatEndpoint("tiny-chat", url or server.url, "secret", temperature, retry)
    return ChatJudge(chat, AnswerBook(path), **options)


def test_a_chat_model_rates_by_the_papers_prompt(server, judge):
    assert isinstance(judge, Judge)
    assert judge.judge("dogs\nand cats", TEXTS) == [2, 0, 2, 0, 2]
    assert (judge.missing, judge.unread, judge.spent) == (0, 0, (300, 21))
    body = server.requests[0]
    prompt = body["messages"][0]["content"]
    assert prompt.startswith("You are given a TOPIC and a set of sequences. Score each sequence for whether the TOPIC")
    assert prompt.count("Example Input: ") == prompt.count("Example Output: ") == 3
    assert prompt.endswith('Sequence ID 4: "dogs, dogs"\'\nOutput:')
    assert "Input: 'Concept: dogs and cats\n" in prompt
    assert [json.loads(item) for item in shown(prompt).values()] == TEXTS
    assert {(b["model"], b["temperature"]) for b in server.requests} == {("tiny-chat", 1.0)}
    form = body["response_format"]["json_schema"]
    assert form["strict"]
    assert form["schema"]["required"] == list("01234")
    assert form["schema"]["additionalProperties"] is False
    assert {tuple(p["enum"]) for p in form["schema"]["properties"].values()} == {(0, 1, 2)}


def test_the_rating_is_the_median_of_three_samples(server, judge):
    samples = iter([[0, 0, 0, 2, 1], [2, 1, 0, 2, 2], [2, 2, 1, 0, 0]])
    server.answer = lambda prompt: json.dumps(dict(zip(shown(prompt), next(samples), strict=True)))
    judge.workers = 1
    assert judge.judge("dogs", TEXTS) == [2, 1, 0, 2, 1]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("samples", "rating"),
    [
        ([2, 2, None], 2),
        ([0, 2, None], 1),
        ([1, 2, None], None),
        ([2, None, None], None),
        ([None, None, None], None),
        ([0], 0),
        ([None], None),
        ([0, 0, 2, 2, 2], 2),
    ],
)
def test_a_rating_is_missing_rather_than_guessed(server, tmp_path, samples, rating):
    replies = iter(samples)

    def answer(prompt):
        one = next(replies)
        return "I'd rather not say: 2" if one is None else json.dumps({"0": one})

    server.answer = answer
    judge = judge_at(server, tmp_path / "a.jsonl", samples=len(samples), workers=1)
    assert judge.judge("dogs", ["A text."]) == [rating]
    assert (judge.missing, judge.unread) == (int(rating is None), samples.count(None))


UNSAID = {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
REFUSAL = {"message": {"role": "assistant", "content": None, "refusal": "I can't."}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [
        ("All five are 2, or 0", [None] * 5),
        ("", [None] * 5),
        ('{"0": 2, "1": 0, "2": 2', [None] * 5),
        ('["0", 2]', [None] * 5),
        ("2", [None] * 5),
        ('{"ratings": {"0": 2}}', [None] * 5),
        ('{"0": 3, "1": 0, "2": 0, "3": 0, "4": 0}', [None] * 5),
        ('{"0": "2", "1": 0, "2": 0, "3": 0, "4": 0}', [None] * 5),
        ('{"0": true, "1": 0, "2": 0, "3": 0, "4": 0}', [None] * 5),
        ('{"0": 1.5, "1": 0, "2": 0, "3": 0, "4": 0}', [None] * 5),
        ('{"1": 2, "2": 0, "3": 0, "4": 0, "5": 0}', [None] * 5),
        (UNSAID, [None] * 5),
        (REFUSAL, [None] * 5),
        ('{"0": 2, "2": 0, "4": 1}', [2, None, 0, None, 1]),
        ("{}", [None] * 5),
        ('```json\n{"0": 2, "1": 0, "2": 0, "3": 0, "4": 0}\n```', [2, 0, 0, 0, 0]),
        ('\'{"0": 2, "1": 0, "2": 0, "3": 0, "4": 1}\'', [2, 0, 0, 0, 1]),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else None,
)
def test_replies_are_read_by_their_form_and_otherwise_missing(server, judge, reply, ratings):
    server.answer = lambda prompt: reply
    assert judge.judge("dogs", TEXTS) == ratings
    assert judge.missing == ratings.count(None)
    assert judge.unread == 3 * (None in ratings)


def test_what_was_judged_is_not_asked_again(server, judge, tmp_path):
    path = tmp_path / "replies.jsonl"
    first = judge.judge("dogs", TEXTS)
    again = judge_at(server, path)
    assert again.judge("dogs", TEXTS) == first
    assert (len(server.requests), again.spent) == (3, (0, 0))
    again.judge("cats", TEXTS)
    assert len(server.requests) == 6
    judge_at(server, path, temperature=0.5).judge("dogs", TEXTS)
    assert len(server.requests) == 9
    judge_at(server, path, samples=4).judge("dogs", TEXTS)  # a fourth sample beside the three
    assert len(server.requests) == 10
    judge_at(server, path, url=server.url.replace("127.0.0.1", "localhost")).judge("dogs", TEXTS)
    assert len(server.requests) == 13


def test_a_missing_reply_is_remembered_as_missing(server, judge, tmp_path):
    server.answer = lambda prompt: "no"
    judge.judge("dogs", TEXTS)
    server.answer = rate
    again = judge_at(server, tmp_path / "replies.jsonl")
    assert again.judge("dogs", TEXTS) == [None] * 5
    assert (again.missing, again.unread, len(server.requests)) == (5, 3, 3)


def test_equal_texts_are_rated_once_and_many_go_in_batches(server, tmp_path):
    judge = judge_at(server, tmp_path / "a.jsonl", samples=1, batch=4)
    texts = [f"{i} {'dog' if i % 3 else 'bank'}" for i in range(10)] * 3
    assert judge.judge("dogs", texts) == [2 if i % 3 else 0 for i in range(10)] * 3
    assert sorted(len(shown(body["messages"][0]["content"])) for body in server.requests) == [2, 4, 4]
    assert judge.judge("dogs", []) == []


def test_an_estimate_is_what_is_sent(server, judge):
    asked = [("dogs", TEXTS), ("cats", TEXTS * 4), ("", TEXTS, "fluency"), ("", TEXTS, "instruction", ["Go on."] * 5)]
    guess = judge.estimate([*asked, ("dogs", TEXTS)])
    assert server.requests == []
    for one in asked:
        judge.judge(*one[:3], instruction=(*one, None, None)[3])
    assert guess.requests == len(server.requests) == 12
    sent = sum(len(body["messages"][0]["content"]) for body in server.requests) / 4
    assert guess.prompt_tokens == pytest.approx(sent, rel=0.01)
    assert guess.facts((1.0, 2.0))["cost, about"] == pytest.approx(
        (guess.prompt_tokens + 2 * guess.completion_tokens) / 1e6, abs=1e-4
    )
    assert judge.estimate(asked).requests == 0


@pytest.mark.parametrize("aspect", ["instruction", "fluency"])
def test_other_aspects_do_not_name_the_concept(server, judge, aspect):
    instruction = [f"Write {i}." for i in range(5)]
    judge.judge("dogs", TEXTS, aspect, instruction=instruction)
    judge.judge("cats", TEXTS, aspect, instruction=instruction)
    assert len(server.requests) == 3
    prompt = server.requests[0]["messages"][0]["content"]
    assert "Concept" not in prompt
    assert ('"Write 3." -> "Numbers."' in prompt) == (aspect == "instruction")


def test_passing_faults_are_tried_again(server, tmp_path):
    judge = judge_at(server, tmp_path / "replies.jsonl", retry=Retry(tries=6, timeout=5.0))
    server.failures = [429, 500, 0, 503, 200, 429]
    assert judge.judge("dogs", TEXTS) == [2, 0, 2, 0, 2]
    assert len(server.requests) == 3 + 5
    assert judge.missing == 0


def slow(server):
    server.delay = 0.5


def busy(server):
    server.failures = [503] * 99


def refusing(server):
    server.failures = [401] * 99


def silent(server):
    server.answer = lambda prompt: None


def renamed(server):
    server.model = "other-chat"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (slow, r"http://.*/chat/completions gave no answer in 2 tries: .*timed out"),
        (busy, "gave no answer in 2 tries: 503 not now"),
        (refusing, "refused: 401 not now"),
        (silent, "did not answer with a message"),
        (
            renamed,
            "answers as other-chat when asked for tiny-chat, and before as tiny-chat; ask for one",
        ),
    ],
)
def test_a_judge_that_fails_in_mid_run_is_one_sentence_and_keeps_what_was_judged(server, tmp_path, fault, says):
    path = tmp_path / "replies.jsonl"
    judge = judge_at(server, path, retry=Retry(tries=2, timeout=0.2), workers=1)
    first = judge.judge("dogs", TEXTS)
    fault(server)
    with pytest.raises(AtlasError, match=says) as raised:
        judge.judge("cats", TEXTS)
    assert "\n" not in str(raised.value)
    before, again = len(server.requests), judge_at(server, path)
    assert again.judge("dogs", TEXTS) == first
    assert len(server.requests) == before
    if fault is renamed:  # and a new process does not mix them either
        with pytest.raises(AtlasError, match=says):
            again.judge("cats", TEXTS)


def test_a_model_may_answer_under_its_full_name_but_keeps_it(server, judge, tmp_path):
    server.model = "tiny-chat-2024-07-18"
    assert judge.judge("dogs", TEXTS) == [2, 0, 2, 0, 2]
    server.model = "tiny-chat-2025-01-01"
    with pytest.raises(AtlasError, match="answers as tiny-chat-2025-01-01 .* before as tiny-chat-2024-07-18"):
        judge_at(server, tmp_path / "replies.jsonl").judge("cats", TEXTS)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"aspect": "style"}, "the judge chat:tiny-chat rates concept, instruction, fluency, not 'style'"),
        ({"aspect": "instruction"}, "give one instruction a text, 5 in all"),
        ({"aspect": "instruction", "instruction": ["Go on."]}, "give one instruction a text, 5 in all"),
    ],
)
def test_what_a_judge_cannot_rate_is_refused_before_it_is_asked(server, judge, call, says):
    with pytest.raises(AtlasError, match=says):
        judge.judge("dogs", TEXTS, **call)
    assert server.requests == []
    with pytest.raises(AtlasError, match="samples must be a whole number from 1 up, not 0"):
        judge_at(server, "x.jsonl", samples=0)


@functools.cache
def subject():
    return LanguageModel.from_pretrained(SUBJECT)


@functools.cache
def oracle():
    return transformers.AutoModelForCausalLM.from_pretrained(SUBJECT, dtype=torch.float64).eval()


def by_hand(rows):
    """Probability of each of three rows of ids after the tokens they share, by transformers in float64."""
    start = len(os.path.commonprefix(rows))
    nats = []
    for row in rows:
        with torch.no_grad():
            logp = torch.log_softmax(oracle()(torch.tensor([row])).logits[0], dim=-1)
        nats.append(sum(logp[at - 1, row[at]].item() for at in range(start, len(row))))
    return np.exp(nats) / np.sum(np.exp(nats))


@pytest.mark.parametrize("aspect", ["concept", "instruction", "fluency"])
def test_a_local_model_rates_by_the_likelihood_of_each_label(aspect):
    judge = ModelJudge(subject(), "bundled", examples=False)
    texts = [*TEXTS[:3], *sentences(1), TEXTS[0]]
    instruction = ["Write about it."] * len(texts) if aspect == "instruction" else None
    found = judge.probabilities("dogs", texts, aspect, instruction=instruction)
    prompts = [rating_prompt(aspect, "dogs", [item], examples=False) for item in items_of(texts, aspect, instruction)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(SUBJECT)
    expected = [by_hand([tokenizer(f'{prompt} {{"0": {label}')["input_ids"] for label in "012"]) for prompt in prompts]
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert np.ptp(found, axis=0).max() > 1e-3  # the text makes a difference
    assert judge.judge("dogs", texts, aspect, instruction=instruction) == np.argmax(expected, axis=1).tolist()
    assert judge.missing == 0
    assert isinstance(judge, Judge)


def test_labels_of_several_tokens_and_chat_templates(monkeypatch):
    labels = ("0", "1 1", "2 or more of them")
    monkeypatch.setattr("atlas_jax.experiments._model_judge.LABELS", labels)
    lm = LanguageModel.from_pretrained(SUBJECT)
    judge = ModelJudge(lm, "bundled", examples=False)
    item = items_of(["A dog."], "concept", None)
    prompt = rating_prompt("concept", "dogs", item, examples=False)
    rows = lm.tokenizer.encode([f'{prompt} {{"0": {label}' for label in labels])
    assert len(set(map(len, rows))) == 3
    np.testing.assert_allclose(judge.probabilities("dogs", ["A dog."])[0], by_hand(rows), rtol=2e-4)
    lm.tokenizer.hf.chat_template = "{% for m in messages %}{{ m.role }} says {{ m.content }} end{% endfor %} answer:"
    asked = lm.chat([{"role": "user", "content": prompt}])
    hf = transformers.AutoTokenizer.from_pretrained(SUBJECT)
    rows = [asked + hf(f'{{"0": {label}', add_special_tokens=False)["input_ids"] for label in labels]
    np.testing.assert_allclose(judge.probabilities("dogs", ["A dog."])[0], by_hand(rows), rtol=2e-4)


def test_batches_of_any_size_give_the_same(monkeypatch):
    judge = ModelJudge(subject(), "bundled", examples=False)
    texts = [TEXTS[0], *sentences(1), "dog " * 2000]  # the last is cut to the model's context
    together = judge.probabilities("dogs", texts)
    monkeypatch.setattr("atlas_jax.experiments._model_judge.CELLS", 1)
    np.testing.assert_allclose(judge.probabilities("dogs", texts), together, rtol=1e-4)
    assert judge.judge("dogs", []) == []


def test_a_prompt_longer_than_the_context_is_refused_and_a_text_is_cut():
    with pytest.raises(AtlasError, match="context of model:bundled 512; leave the examples out, or judge with a model"):
        ModelJudge(subject(), "bundled").judge("dogs", TEXTS)
    judge = ModelJudge(subject(), "bundled", examples=False)
    assert judge.probabilities("dogs", ['\\"' * 2000]).shape == (1, 3)


@functools.cache
def atlas():
    return ConceptAtlas.from_pretrained(ATLAS)


@functools.cache
def proxy(**options):
    queries = {word: atlas().query_text(word) for word in ("random", "string")}
    return AtlasJudge(atlas(), queries, sentences(30), **options)


def part_of_score(judge, part, concept, texts):
    if part == "activation":
        return np.array(concept_activation(atlas(), judge.queries[concept], texts))
    return judge.embedder.encode(texts) @ judge.embedder.encode([concept])[0]


@pytest.mark.parametrize("parts", [("activation",), ("embedding",), ("activation", "embedding")])
def test_the_proxy_rates_by_what_nearly_all_neutral_text_stays_below(parts):
    texts = [*sentences(28, seed=1), "A random number generator draws random samples.", ""]
    judge = proxy(parts=parts)
    for at, concept in enumerate(judge.queries):
        expected = threshold = 0.0
        for part in parts:
            neutral = part_of_score(judge, part, concept, judge.neutral)
            score = lambda x, n=neutral: (x - n.mean()) / (n.std() or 1.0)
            expected = expected + score(part_of_score(judge, part, concept, texts))
            threshold = threshold + score(neutral)
        np.testing.assert_allclose(judge.scores(texts)[:, at], expected, atol=2e-4)
        assert judge.thresholds[at] == pytest.approx(np.quantile(threshold, 0.95), abs=2e-4)
        above = judge.scores(texts)[:, at] > judge.thresholds[at]
        assert judge.judge(concept, texts) == (2 * above).tolist()
        assert judge.judge(concept, judge.neutral).count(2) <= 2  # 5% of 30


def test_the_proxy_knows_a_text_of_a_concept():
    assert isinstance(proxy(), Judge)
    assert proxy().judge("random", ["A random number generator draws random samples.", ""]) == [2, 0]
    assert proxy().judge("random", []) == []
    assert proxy().missing == 0
    assert [proxy(parts=p).name for p in (("activation",), ("activation", "embedding"))] == [
        "atlas-proxy-activation",
        "atlas-proxy",
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: proxy().judge("dogs", TEXTS), "has no query for 'dogs'; it has random, string"),
        (lambda: proxy().judge("random", TEXTS, "fluency"), "the judge atlas-proxy rates concept, not 'fluency'"),
        (lambda: proxy(parts=("words",)), "parts of the atlas judge's score are activation and embedding"),
        (lambda: proxy(quantile=1.5), "the quantile must be a number from 0 to 1, not 1.5"),
        (lambda: AtlasJudge(atlas(), {}, ["a"] * 3), "3 neutral texts cannot set a threshold; give 20 or more"),
        (lambda: AtlasJudge(atlas(), {}, ["a"] * 20), "the atlas judge needs a concept query; give one at least"),
        (lambda: AtlasJudge(atlas(), {"x": np.zeros(1536)}, ["a"] * 20), "the concept query is zero everywhere"),
        (lambda: AtlasJudge(atlas(), {"x": np.ones(7)}, ["a"] * 20), "the query of 'x' .* 1536"),
    ],
)
def test_a_proxy_without_what_it_needs_is_refused(make, says):
    with pytest.raises(AtlasError, match=says):
        make()


@pytest.mark.parametrize("weights", ["quadratic", None])
def test_agreement_is_cohens_kappa(rng, weights):
    for shares in ([0.5, 0.2, 0.3], [0.5, 0.0, 0.5], [0.9, 0.05, 0.05]):
        first = rng.choice(3, 200, p=shares)
        second = np.where(rng.random(200) < 0.6, first, rng.choice(3, 200, p=shares))
        expected = sklearn.metrics.cohen_kappa_score(first, second, weights=weights, labels=[0, 1, 2])
        some = rng.random(200) < 0.1
        holes = [[None if gap else int(x) for gap, x in zip(some, y, strict=True)] for y in (first, second)]
        assert agreement(first.tolist(), second.tolist(), weights=weights) == pytest.approx(expected)
        kept = sklearn.metrics.cohen_kappa_score(first[~some], second[~some], weights=weights, labels=[0, 1, 2])
        assert agreement(holes[0], second.tolist(), weights=weights) == pytest.approx(kept)
        assert agreement(first.tolist(), first.tolist(), weights=weights) == 1.0


def test_agreement_about_nothing_is_nan_and_misfits_are_refused():
    assert np.isnan(agreement([], []))
    assert np.isnan(agreement([None, 0], [2, None]))
    assert np.isnan(agreement([0, 0], [0, 0]))
    assert agreement([0, 0, 2], [2, 2, 0]) < 0
    with pytest.raises(AtlasError, match="2 ratings do not go with 1"):
        agreement([0, 0], [0])
    with pytest.raises(AtlasError, match="a rating is 0, 1, 2 or None, not 3"):
        agreement([0, 3], [0, 0])


def test_forms_and_readings_belong_together():
    assert ratings_in(ratings_form(3)(**{"0": 2, "1": 1, "2": 0}).model_dump_json(), 3) == [2, 1, 0]
    assert ratings_in(ratings_form(1)(**{"0": 2}).model_dump_json(), 3) == [2, None, None]
