"""Labels for an SAE of one's own, by counting words or by asking a chat model, each with a detection score."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._evidence import Evidence
from atlas_jax.labels import (
    AnswerBook,
    ChatEndpoint,
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
)  # fmt: skip
from atlas_jax.metrics import auroc
from atlas_jax.progress import Progress, unreported

CHARACTERS_PER_TOKEN = 4
ANSWER_TOKENS = 20  # of a description or a list of numbers, for the estimate


class Estimate(NamedTuple):
    """What asking about some features will take; tokens are guessed from characters."""

    features: int
    requests: int
    prompt_tokens: int
    completion_tokens: int

    def facts(self, price: tuple[float, float] = (0.0, 0.0)) -> dict[str, float | int]:
        """As named values, with the cost at prices of a million prompt and a million answer tokens, if there are."""
        cost = (self.prompt_tokens * price[0] + self.completion_tokens * price[1]) / 1e6
        found = {"features to ask about": self.features, "requests": self.requests}
        found |= {"prompt tokens, about": self.prompt_tokens, "answer tokens, about": self.completion_tokens}
        return found | ({"cost, about": round(cost, 4)} if any(price) else {})


def label_by_words(evidence: Iterable[Evidence], texts: Sequence[str], width: int, *, count: int = 3) -> Labels:
    """Offline labels: the words at the peaks that set a feature apart (see :func:`characteristic_words`).

    A label's score is the AUROC with which the number of its words in a sentence tells whether the feature fires.

    Args:
      evidence: of some features.
      texts: all sentences of the fit half.
      width: features of the SAE.
      count: words a label.

    Raises:
      AtlasError: where no feature has a word that sets it apart.
    """
    evidence = list(evidence)
    bags = [[words_at(c.text, len(c.before + c.token) - 1) for c in e.contexts] for e in evidence]
    rows = []
    for e, found in zip(evidence, characteristic_words(WordTable.of(texts), bags, count=count), strict=True):
        words = {word for word, _ in found}
        if words:
            counts = [len(words & words_of(text)) for text in e.sentences]
            score = float(auroc(np.array(counts), e.fires)) if e.tests else None
            rows.append(Label(e.feature, ", ".join(w for w, _ in found), "log-odds", "statistical", score))
    if not rows:
        raise AtlasError(f"no word sets any of {len(evidence)} features apart; give more text or other features")
    return Labels.from_rows(rows, width)


def estimate_requests(evidence: Iterable[Evidence], endpoint: ChatEndpoint, book: AnswerBook) -> Estimate:
    """What :func:`label_by_chat` would ask, less what the book already answers.

    A description is taken to have sixty characters where there is none yet.
    """
    features = requests = characters = 0
    for e in evidence:
        prompts, answer = [explanation_prompt(e.contexts)], book.get(endpoint, explanation_prompt(e.contexts))
        if e.tests:
            prompts.append(detection_prompt("x" * 60 if answer is None else description_in(answer.text), e.sentences))
        open_ones = [p for p in prompts if book.get(endpoint, p) is None]
        features, requests = features + bool(open_ones), requests + len(open_ones)
        characters += sum(map(len, open_ones))
    return Estimate(features, requests, characters // CHARACTERS_PER_TOKEN, requests * ANSWER_TOKENS)


def label_by_chat(
    evidence: Sequence[Evidence],
    endpoint: ChatEndpoint,
    book: AnswerBook,
    width: int,
    *,
    workers: int = 8,
    progress: Progress | None = None,
) -> Labels:
    """Labels by a chat model: it describes the contexts of each feature, then says which test sentences fit.

    A label's score is the AUROC of these decisions. Answers are kept in the book as they come, and those that are
    in it are not asked again.

    Args:
      evidence: of some features.
      endpoint: the chat model.
      book: where answers are kept.
      width: features of the SAE.
      workers: questions asked at the same time.
      progress: called after every answer, to the descriptions and then to the tests, with features and tokens spent.

    Raises:
      AtlasError: if the endpoint refuses or stays silent; the answers before that are in the book.
    """
    ask = lambda prompts, stage: _asked(prompts, endpoint, book, workers, stage, progress)
    answers = ask([explanation_prompt(e.contexts) for e in evidence], "describe")
    named = [(e, said) for e, answer in zip(evidence, answers, strict=True) if (said := description_in(answer))]
    if not named:
        raise AtlasError(f"{endpoint.model} gave no description of any of {len(evidence)} features")
    tested = [detection_prompt(said, e.sentences) for e, said in named if e.tests]
    answers, rows = iter(ask(tested, "test")), []
    for e, said in named:
        votes = detected_in(next(answers), len(e.sentences)) if e.tests else None
        score = None if votes is None else float(auroc(np.array(votes, np.float64), e.fires))
        rows.append(Label(e.feature, said, endpoint.model, "chat", score))
    return Labels.from_rows(rows, width)


def _asked(
    prompts: Sequence[str],
    endpoint: ChatEndpoint,
    book: AnswerBook,
    workers: int,
    stage: str,
    progress: Progress | None,
) -> list[str]:
    """The answers to some questions, in their order; new ones are in the book as soon as they come."""
    report = progress or unreported
    report(stage, 0, len(prompts), sum(book.spent))
    answers = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for answer in pool.map(lambda prompt: book.ask(endpoint, prompt), prompts):
                answers.append(answer.text)
                report(stage, len(answers), len(prompts), sum(book.spent))
        finally:
            pool.shutdown(cancel_futures=True)
    return answers


def label_facts(labels: Labels) -> dict[str, float | int]:
    """How many features have a label, and how well labels detect on average."""
    chosen = [labels.chosen(i) for i in labels.described()]
    scores = np.array([label.score for label in chosen if label.score is not None])
    mean = float(scores.mean()) if len(scores) else float("nan")
    return {"labelled": len(chosen), "coverage": labels.coverage, "mean detection AUROC": mean}
