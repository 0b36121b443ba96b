"""A chat model as a judge, as in the paper (section 4.4, appendix A.7)."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atlas_jax.checks import as_count
from atlas_jax.experiments._rating import ASPECTS, check_aspect, items_of, rating_prompt, ratings_form, ratings_in
from atlas_jax.labels import AnswerBook, ChatEndpoint, Cost
from atlas_jax.progress import Progress

RATING_TOKENS = 6  # of an answer for each text, for the estimate
Questions = list[tuple[ChatEndpoint, str, int]]


@dataclasses.dataclass(eq=False)
class ChatJudge:
    """A model behind an OpenAI-compatible API that rates texts, several in a request.

    Each request is sent ``samples`` times, by default three times at temperature 1 as in the paper, and a text gets the
    median of its ratings. A rating is missing where no more than half of the samples give one, or where the median
    falls between two. Every reply goes into the book as it comes, so a judge that was stopped goes on where it was.

    Attributes:
      endpoint: the chat model; at temperature 1 unless it has a temperature of its own.
      book: its replies on disk.
      samples: replies to each request.
      batch: texts of a request.
      workers: number of requests under way at a time.
      progress: called after every reply, with requests and the tokens spent.
      missing: ratings that could not be had so far.
      unread: replies so far, new or old, that left out a text at least.

    Example:
      >>> from atlas_jax.experiments import ChatJudge
      >>> judge = ChatJudge.connect("gpt-4o-mini", "replies.jsonl", base_url="http://localhost:8000/v1")
      >>> judge.name, judge.estimate([("dogs", ["A puppy.", "A bank."])]).requests
      ('chat:gpt-4o-mini', 3)
      >>> judge.judge("dogs", ["A puppy.", "A bank."])                                  # doctest: +SKIP
      [2, 0]
    """

    endpoint: ChatEndpoint
    book: AnswerBook
    samples: int = 3
    batch: int = 16
    workers: int = 8
    progress: Progress | None = None
    missing: int = dataclasses.field(default=0, init=False)
    unread: int = dataclasses.field(default=0, init=False)
    aspects = ASPECTS

    def __post_init__(self):
        for name in ("samples", "batch", "workers"):
            as_count(getattr(self, name), name)
        if self.endpoint.temperature is None:
            self.endpoint = dataclasses.replace(self.endpoint, temperature=1.0)

    @classmethod
    def connect(cls, model: str, book: str | Path, *, base_url: str | None = None, **options: Any) -> "ChatJudge":
        """Return a judge at ``base_url``, or at OPENAI_BASE_URL, with the key in OPENAI_API_KEY if there is one.

        Args:
          model: its name there.
          book: file of its replies.
          base_url: of the API.
          options: other fields of the judge.

        Raises:
          AtlasError: without a base URL, or for a file that holds no replies.
        """
        return cls(ChatEndpoint.connect(model, base_url=base_url), AnswerBook(book), **options)

    @property
    def name(self) -> str:
        """Name in tables and files, such as "chat:gpt-4o-mini"."""
        return f"chat:{self.endpoint.model}"

    @property
    def spent(self) -> tuple[int, int]:
        """Prompt and completion tokens of the replies that were not in the book before."""
        return tuple(self.book.spent)

    def judge(
        self, concept: str, texts: Sequence[str], aspect: str = "concept", *, instruction: Sequence[str] | None = None
    ) -> list[int | None]:
        """Rate texts.

        Args:
          concept: in words; without effect on other aspects.
          texts: equal ones are rated once.
          aspect: of :data:`ASPECTS`.
          instruction: what each text was written for, where that is rated.

        Returns:
          0, 1 or 2 for each text, None where it is missing.

        Raises:
          AtlasError: for another aspect or instructions that do not fit the texts; where the endpoint refuses, stays
            silent, or answers as another model than before.
        """
        if not len(texts):
            return []
        items, batches = self._batches(texts, aspect, instruction)
        questions = self._questions(concept, batches, aspect)
        replies = iter(self.book.ask_all(questions, workers=self.workers, stage="judge", progress=self.progress))
        rated: dict[str, int | None] = {}
        for batch in batches:
            samples = [ratings_in(next(replies), len(batch)) for _ in range(self.samples)]
            self.unread += sum(None in sample for sample in samples)
            rated |= dict(zip(batch, map(_median, zip(*samples, strict=True)), strict=True))
        ratings = [rated[item] for item in items]
        self.missing += ratings.count(None)
        return ratings

    def estimate(self, asked: Iterable[Sequence[Any]]) -> Cost:
        """Estimate the cost of what is not in the book; nothing is asked.

        Args:
          asked: concept, texts and, where it is not the concept that is rated, aspect and instructions: the arguments
            of :meth:`judge`, one tuple a call.
        """
        questions = []
        for concept, texts, *rest in asked:
            aspect, instruction = (*rest, *("concept", None)[len(rest) :])
            if len(texts):
                questions += self._questions(concept, self._batches(texts, aspect, instruction)[1], aspect)
        return self.book.cost(dict.fromkeys(questions), RATING_TOKENS * self.batch)

    def _batches(
        self, texts: Sequence[str], aspect: str, instruction: Sequence[str] | None
    ) -> tuple[list[str], list[list[str]]]:
        """Texts as they are shown, and the different ones among them by request."""
        check_aspect(self.name, self.aspects, aspect)
        items = items_of(texts, aspect, instruction)
        different = list(dict.fromkeys(items))
        return items, [different[i : i + self.batch] for i in range(0, len(different), self.batch)]

    def _questions(self, concept: str, batches: list[list[str]], aspect: str) -> Questions:
        asked = ((self.endpoint.answering(ratings_form(len(b))), rating_prompt(aspect, concept, b)) for b in batches)
        return [(*question, repeat) for question in asked for repeat in range(self.samples)]


def _median(ratings: Sequence[int | None]) -> int | None:
    """Median of the samples that could be read, None for half of them or fewer, or between two ratings."""
    read = [rating for rating in ratings if rating is not None]
    if 2 * len(read) <= len(ratings):
        return None
    median = statistics.median(read)
    return int(median) if median == int(median) else None
