"""Labels for your own SAE, by counting words or by asking a chat model, each with a detection score."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import pydantic
from jaxtyping import Bool

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.labels import (
    AnswerBook,
    ChatEndpoint,
    Context,
    Cost,
    Description,
    Detection,
    Label,
    Labels,
    WordTable,
    characteristic_words,
    description_in,
    detected_in,
    detection_prompt,
    explanation_prompt,
    words_at,
    words_of,
)
from atlas_jax.metrics import auroc
from atlas_jax.models import Tokenizer
from atlas_jax.pipeline import SentenceStream, pooled_activations, top_sentences
from atlas_jax.progress import Progress
from atlas_jax.statistics import TopK

STRONGEST, FIRING, SILENT = 50, 10, 10  # held-out sentences: candidates, and those tested of either kind
QUIET_POOL = 500  # held-out sentences from which silent ones are drawn
ANSWER_TOKENS = 20  # of a description or a list of numbers, for the estimate


class Evidence(NamedTuple):
    """The evidence of one feature.

    Attributes:
      feature: id of the feature.
      contexts: sentences of the fit half that activate it most, strongest first.
      sentences: held-out sentences, in random order.
      fires: true for the held-out sentences in which it is active.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.labels import Context
      >>> from atlas_jax.sae_lab import Evidence
      >>> contexts = [Context(3.0, "A red ", "hat", "."), Context(2.0, "The ", "hat", " fits.")]
      >>> Evidence(0, contexts, ["My hat.", "My dog."], np.array([True, False])).tests
      True
    """

    feature: int
    contexts: list[Context]
    sentences: list[str]
    fires: Bool[np.ndarray, " n"]

    @property
    def tests(self) -> bool:
        """True if the sentences can test a description: some activate the feature and some do not."""
        return bool(self.fires.any() and not self.fires.all())


def gather_evidence(
    atlas: ConceptAtlas,
    corpus: Corpus,
    *,
    features: Sequence[int] | None = None,
    contexts: int = 20,
    max_length: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Evidence]:
    """Gather the top activating sentences of every feature that has any, and sentences to test a description on.

    The test sentences are held out: up to ten spread over the fifty that activate the feature most, and ten
    drawn at random from those in which it is silent.

    Args:
      atlas: the model, its SAE and their site; its labels are not read.
      corpus: its fit half gives the sentences to show, the other those to test on.
      features: ids; all of them by default.
      contexts: sentences to show for each feature.
      max_length: tokens at which sentences are cut.
      seed: seed of the draws.
      progress: called after every batch of each pass.

    Raises:
      AtlasError: for a feature the SAE does not have, or where none fires at all.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.corpus import Document, build_corpus
      >>> from atlas_jax.sae_lab import gather_evidence
      >>> text = "Return the value. Raise an error. The array is sorted. Read the file. Give a number."
      >>> corpus = build_corpus([Document(text, "docs", "doctest")], percentiles=(0, 100))
      >>> evidence = gather_evidence(ConceptAtlas.from_pretrained(ATLAS), corpus)  # doctest: +SKIP
      >>> evidence[0].contexts[0].activation > 0  # doctest: +SKIP
      True
    """
    wanted = range(atlas.width) if features is None else features
    if outside := [f for f in wanted if not 0 <= f < atlas.width]:
        raise AtlasError(f"feature {outside[0]} does not exist; this SAE has 0 to {atlas.width - 1}")
    fit, held = (
        SentenceStream.from_texts([atlas], texts, max_length=max_length) for texts in (corpus.fit, corpus.eval)
    )
    shown, tested = (
        jax.device_get(top_sentences(stream, top_k=k, stage=stage, progress=progress)[atlas.site])
        for stream, k, stage in ((fit, contexts, "contexts"), (held, STRONGEST, "test sentences"))
    )
    pool = np.array(corpus.eval[:QUIET_POOL], object)
    quiet = (
        pooled_activations(SentenceStream.from_texts([atlas], pool.tolist(), max_length=max_length))[atlas.site] <= 0
    )
    evidence = []
    for feature in wanted:
        if examples := list(_contexts(shown, feature, corpus.fit, atlas.model.tokenizer)):
            rng = np.random.default_rng([seed, feature])
            test = _test(tested, feature, corpus.eval, pool[quiet[:, feature]], rng)
            evidence.append(Evidence(feature, examples, *test))
    if not evidence:
        raise AtlasError(f"none of {len(wanted)} features fires on {len(corpus.fit)} sentences; give more text")
    return evidence


def _contexts(top: TopK, feature: int, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Context]:
    """Yield the sentences in which a feature is most active, strongest first."""
    for value, index, position in zip(*(x[feature].tolist() for x in top), strict=True):
        if index >= 0 and value > 0:
            text = texts[index]
            start, end = tokenizer.span(text, position)
            yield Context(value, text[:start], text[start:end], text[end:])


def _test(
    top: TopK, feature: int, texts: Sequence[str], quiet: np.ndarray, rng: np.random.Generator
) -> tuple[list[str], Bool[np.ndarray, " n"]]:
    """Return sentences in which a feature fires and others, shuffled, and a mask of the former."""
    there = zip(top.values[feature].tolist(), top.index[feature].tolist(), strict=True)
    fires = [texts[i] for value, i in there if i >= 0 and value > 0]
    fires = [fires[i] for i in np.unique(np.linspace(0, len(fires) - 1, FIRING).astype(int))] if fires else []
    others = rng.permutation(quiet)[:SILENT].tolist()
    order = rng.permutation(len(fires) + len(others))
    both = [*fires, *others]
    return [both[i] for i in order], order < len(fires)


class Estimate(NamedTuple):
    """The cost of asking about some features; tokens are estimated from characters.

    Example:
      >>> from atlas_jax.sae_lab import Estimate
      >>> Estimate(100, 200, 60_000, 4_000).facts(price=(1.0, 5.0))["cost, about"]
      0.08
    """

    features: int
    requests: int
    prompt_tokens: int
    completion_tokens: int

    def facts(self, price: tuple[float, float] = (0.0, 0.0)) -> dict[str, float | int]:
        """Return named values, with the cost at given prices of a million prompt and a million answer tokens."""
        return {"features to ask about": self.features} | Cost(*self[1:]).facts(price)


def label_by_words(evidence: Iterable[Evidence], texts: Sequence[str], width: int, *, count: int = 3) -> Labels:
    """Make labels offline: the words at the peaks that set a feature apart (see :func:`characteristic_words`).

    A label's score is the AUROC of the number of its words in a sentence for "the feature fires".

    Args:
      evidence: evidence of some features.
      texts: all sentences of the fit half.
      width: features of the SAE.
      count: words a label.

    Raises:
      AtlasError: where no feature has a word that sets it apart.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.labels import Context
      >>> from atlas_jax.sae_lab import Evidence, label_by_words
      >>> contexts = [Context(3.0, "A red ", "hat", "."), Context(2.0, "The ", "hat", " fits.")]
      >>> evidence = Evidence(0, contexts, ["My hat.", "My dog."], np.array([True, False]))
      >>> texts = ["A red hat.", "The hat fits.", "A hat.", "Hat.", "My hat.", "A dog.", "The cat."]
      >>> labels = label_by_words([evidence], texts, width=1)
      >>> labels[0], labels.chosen(0).score
      ('hat', 1.0)
    """
    evidence = list(evidence)
    bags = [[words_at(c.text, len(c.before + c.token) - 1) for c in e.contexts] for e in evidence]
    rows = []
    for e, chosen in zip(evidence, characteristic_words(WordTable.from_texts(texts), bags, count=count), strict=True):
        words = {word for word, _ in chosen}
        if words:
            counts = [len(words & words_of(text)) for text in e.sentences]
            score = float(auroc(np.array(counts), e.fires)) if e.tests else None
            rows.append(Label(e.feature, ", ".join(w for w, _ in chosen), "log-odds", "statistical", score))
    if not rows:
        raise AtlasError(f"no word sets any of {len(evidence)} features apart; give more text or other features")
    return Labels.from_rows(rows, width)


def estimate_requests(evidence: Iterable[Evidence], endpoint: ChatEndpoint, book: AnswerBook) -> Estimate:
    """Estimate the requests of :func:`label_by_chat` that the book does not answer already.

    A description that does not exist yet counts as sixty characters.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.labels import AnswerBook, ChatEndpoint, Context
      >>> from atlas_jax.sae_lab import Evidence, estimate_requests
      >>> contexts = [Context(3.0, "A red ", "hat", "."), Context(2.0, "The ", "hat", " fits.")]
      >>> evidence = Evidence(0, contexts, ["My hat.", "My dog."], np.array([True, False]))
      >>> endpoint = ChatEndpoint("m", "http://localhost:8000/v1")
      >>> estimate_requests([evidence], endpoint, AnswerBook("no-such-file.jsonl")).requests
      2
    """
    asked: list[list[tuple[ChatEndpoint, str]]] = []
    describing, detecting = endpoint.answering(Description), endpoint.answering(Detection)
    for e in evidence:
        prompt = explanation_prompt(e.contexts)
        answer = book.get(describing, prompt)
        description = "x" * 60 if answer is None else description_in(answer.text)
        test = [(detecting, detection_prompt(description, e.sentences))] if e.tests and description else []
        asked.append([(describing, prompt), *test])
    costs = [book.cost(questions, ANSWER_TOKENS) for questions in asked]
    total = book.cost([question for questions in asked for question in questions], ANSWER_TOKENS)
    return Estimate(sum(cost.requests > 0 for cost in costs), *total)


def label_by_chat(
    evidence: Sequence[Evidence],
    endpoint: ChatEndpoint,
    book: AnswerBook,
    width: int,
    *,
    workers: int = 8,
    progress: Progress | None = None,
) -> Labels:
    """Make labels by a chat model: it describes the contexts of each feature, then chooses the test sentences that fit.

    A label's score is the AUROC of these decisions. Answers are kept in the book as they come, and those that are
    in it are not asked again. An answer that cannot be read is missing, and counted in ``book.unread``: a feature gets
    no label, or its label no score.

    Args:
      evidence: evidence of some features.
      endpoint: the chat model.
      book: the answers so far, and the place of new ones.
      width: features of the SAE.
      workers: questions asked at the same time.
      progress: called after every answer, to the descriptions and then to the tests, with features and tokens spent.

    Raises:
      AtlasError: if the endpoint refuses or stays silent; the answers before that are in the book.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.labels import AnswerBook, ChatEndpoint, Context
      >>> from atlas_jax.sae_lab import Evidence, label_by_chat
      >>> contexts = [Context(3.0, "A red ", "hat", "."), Context(2.0, "The ", "hat", " fits.")]
      >>> evidence = Evidence(0, contexts, ["My hat.", "My dog."], np.array([True, False]))
      >>> endpoint = ChatEndpoint.connect("my-model", base_url="http://localhost:8000/v1")
      >>> label_by_chat([evidence], endpoint, AnswerBook("answers.jsonl"), width=1)[0]  # doctest: +SKIP
      'hats'
    """

    def ask(form: type[pydantic.BaseModel], prompts: list[str], stage: str) -> list[str]:
        questions = [(endpoint.answering(form), prompt) for prompt in prompts]
        return book.ask_all(questions, workers=workers, stage=stage, progress=progress)

    answers = ask(Description, [explanation_prompt(e.contexts) for e in evidence], "describe")
    texts = map(description_in, answers)
    named = [(e, text) for e, text in zip(evidence, texts, strict=True) if text]
    book.unread += len(evidence) - len(named)
    if not named:
        raise AtlasError(f"{endpoint.model} gave no description of any of {len(evidence)} features")
    tested = [detection_prompt(text, e.sentences) for e, text in named if e.tests]
    answers, rows = iter(ask(Detection, tested, "test")), []
    for e, text in named:
        votes = detected_in(next(answers), len(e.sentences)) if e.tests else None
        book.unread += bool(e.tests and votes is None)
        score = None if votes is None else float(auroc(np.array(votes, np.float64), e.fires))
        rows.append(Label(e.feature, text, endpoint.model, "chat", score))
    return Labels.from_rows(rows, width)


def label_facts(labels: Labels) -> dict[str, float | int]:
    """Count the features that have a label, and average the labels' detection scores.

    Example:
      >>> from atlas_jax.labels import Label, Labels
      >>> from atlas_jax.sae_lab import label_facts
      >>> label_facts(Labels.from_rows([Label(0, "hats", score=0.9)], n_features=2))
      {'labelled': 1, 'coverage': 0.5, 'mean detection AUROC': 0.9}
    """
    chosen = [labels.chosen(i) for i in labels.described()]
    scores = np.array([label.score for label in chosen if label.score is not None])
    mean = float(scores.mean()) if len(scores) else float("nan")
    return {"labelled": len(chosen), "coverage": labels.coverage, "mean detection AUROC": mean}
