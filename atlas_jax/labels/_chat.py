"""A chat model behind an OpenAI-compatible API, and its answers kept on disk."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.labels._endpoint import Retry, address_of, post_json
from atlas_jax.progress import Progress, unreported

if TYPE_CHECKING:
    import pydantic

CHARACTERS_PER_TOKEN = 4  # for estimates
_UNSAID = ("content_filter", "length")  # why a server may send a message without content


class Answer(NamedTuple):
    """Answer of a chat model, the tokens that the server counted and its name there; 0 and "" if not reported.

    An answer that was filtered or cut off before its first word has the text "".

    Example:
      >>> from atlas_jax.labels import Answer
      >>> Answer("A cat", prompt_tokens=12).completion_tokens
      0
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""


class Cost(NamedTuple):
    """Cost of questions before they are asked; tokens are guessed from characters.

    Attributes:
      requests: number of questions that the book does not answer.
      prompt_tokens: tokens of these.
      completion_tokens: tokens of the answers to expect.

    Example:
      >>> from atlas_jax.labels import Cost
      >>> Cost(10, prompt_tokens=4000, completion_tokens=500).requests
      10
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def facts(self, price: tuple[float, float] = (0.0, 0.0)) -> dict[str, float | int]:
        """Return named values, with the cost at given prices of a million prompt and a million answer tokens.

        Example:
          >>> from atlas_jax.labels import Cost
          >>> Cost(2, 1000, 100).facts((3.0, 15.0))["cost, about"]
          0.0045
        """
        cost = (self.prompt_tokens * price[0] + self.completion_tokens * price[1]) / 1e6
        facts = {"requests": self.requests, "prompt tokens, about": self.prompt_tokens}
        facts |= {"answer tokens, about": self.completion_tokens}
        return facts | ({"cost, about": round(cost, 4)} if any(price) else {})


@dataclasses.dataclass(frozen=True)
class ChatEndpoint:
    """A chat model behind an OpenAI-compatible API.

    Attributes:
      model: its name there.
      base_url: address of the API, without ``/chat/completions``.
      api_key: the bearer token, None for none.
      temperature: temperature of sampling; the server's default where None.
      retry: patience with the server.
      schema: the form of its answers, None for free text.

    Example:
      >>> from atlas_jax.labels import ChatEndpoint, Description
      >>> endpoint = ChatEndpoint.connect("m", base_url="http://localhost:8000/v1", temperature=0.0)
      >>> endpoint.body("What is this?")["messages"]
      [{'role': 'user', 'content': 'What is this?'}]
      >>> endpoint.answering(Description).body("What is this?")["response_format"]["type"]
      'json_schema'
      >>> endpoint.ask("What is this?").text  # doctest: +SKIP
      'A cat'
    """

    model: str
    base_url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    temperature: float | None = None
    retry: Retry = Retry()
    schema: "type[pydantic.BaseModel] | None" = None

    @classmethod
    def connect(cls, model: str, *, base_url: str | None = None, **options: Any) -> "ChatEndpoint":
        """Return a model at ``base_url``, or at OPENAI_BASE_URL, with the key in OPENAI_API_KEY if there is one.

        Raises:
          AtlasError: without a base URL.
        """
        return cls(model, *address_of("chat", base_url, None), **options)

    def answering(self, schema: "type[pydantic.BaseModel]") -> "ChatEndpoint":
        """Return the same model, asked for answers of one form."""
        return dataclasses.replace(self, schema=schema)

    def body(self, prompt: str) -> dict[str, Any]:
        """Return the body of the request that asks a prompt."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.schema is not None:
            form = {"name": self.schema.__name__, "schema": self.schema.model_json_schema(), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def ask(self, prompt: str) -> Answer:
        """Ask a prompt; a server that cannot be given a form is asked without it.

        Raises:
          AtlasError: if the endpoint refuses, stays unreachable, or answers with something else than a message.
        """
        url, body = f"{self.base_url}/chat/completions", self.body(prompt)
        try:
            reply = post_json(url, body, api_key=self.api_key, retry=self.retry)
        except AtlasError as error:
            form = body.pop("response_format", None)
            if form is None or not any(name in str(error) for name in ("response_format", "json_schema")):
                raise
            reply = post_json(url, body, api_key=self.api_key, retry=self.retry)
        try:
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            message = choice["message"]
            text = message.get("refusal") if message["content"] is None else message["content"]
            if text is None and choice.get("finish_reason") in _UNSAID:
                text = ""
            counts = (int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens"))
            return Answer(text.strip(), *counts, str(reply.get("model") or ""))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise AtlasError(f"{url} did not answer with a message: {error!r}") from None


Question = tuple[ChatEndpoint, str] | tuple[ChatEndpoint, str, int]


class AnswerBook:
    """Answers on disk, a line each, so that no question is paid for twice.

    A question is identified by a hash of its address, its request and how often it was asked before: another model,
    prompt or temperature is another question. A last line that a crash cut off is dropped. The name under which a
    server first answers for a model must be that of all later answers, so that those of two models are never mixed.

    Attributes:
      path: a JSONL file; it need not exist.
      spent: prompt and completion tokens of the answers that were not in the book before.
      unread: answers, new or old, that were not of the form asked for; the function that reads them counts them.

    Example:
      >>> import tempfile
      >>> from atlas_jax.labels import Answer, AnswerBook, ChatEndpoint
      >>> endpoint = ChatEndpoint("m", "http://localhost")
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     AnswerBook(f"{directory}/answers.jsonl").add(endpoint, "What is this?", Answer("A cat"))
      ...     book = AnswerBook(f"{directory}/answers.jsonl")
      >>> book.ask(endpoint, "What is this?").text, book.get(endpoint, "And this?")
      ('A cat', None)
    """

    def __init__(self, path: str | Path):
        self.path, self.spent, self.unread, self._lock = Path(path), [0, 0], 0, threading.Lock()
        self._known: dict[str, Answer] = {}
        self._models: dict[str, str] = {}  # what was asked, and the name that answered
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
            for number, line in enumerate(whole, 1):
                self._read(line, number)
            if whole != lines:
                self.path.write_bytes(b"".join(whole))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, endpoint: ChatEndpoint, prompt: str, repeat: int = 0) -> Answer | None:
        """Return the answer to a question, None where it was not asked yet so often."""
        return self._known.get(_key(endpoint, prompt, repeat))

    def add(self, endpoint: ChatEndpoint, prompt: str, answer: Answer, repeat: int = 0) -> None:
        """Write down an answer.

        Raises:
          AtlasError: if it comes from another model than the answers before it.
        """
        key, asked = _key(endpoint, prompt, repeat), f"{endpoint.model} at {endpoint.base_url}"
        line = json.dumps({"key": key, "asked": asked, **answer._asdict()}, ensure_ascii=False) + "\n"
        with self._lock:
            before = self._models.setdefault(asked, answer.model) if answer.model else ""
            if before != answer.model:
                raise AtlasError(
                    f"{endpoint.base_url} answers as {answer.model} when asked for {endpoint.model}, and before as "
                    f"{before}; ask for one of them by its full name: the answers so far stay in {self.path}"
                )
            self._known[key] = answer
            self.spent = [self.spent[0] + answer.prompt_tokens, self.spent[1] + answer.completion_tokens]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def ask(self, endpoint: ChatEndpoint, prompt: str, repeat: int = 0) -> Answer:
        """Return the answer in the book, or else ask the endpoint and write its answer down.

        Args:
          endpoint: the chat model.
          prompt: the question.
          repeat: how often the same question is asked before, where several answers to it are sampled.

        Raises:
          AtlasError: as :meth:`ChatEndpoint.ask` and :meth:`add`.
        """
        answer = self.get(endpoint, prompt, repeat)
        if answer is None:
            answer = endpoint.ask(prompt)
            self.add(endpoint, prompt, answer, repeat)
        return answer

    def ask_all(
        self,
        questions: Sequence[Question],
        *,
        workers: int = 8,
        stage: str = "ask",
        progress: Progress | None = None,
    ) -> list[str]:
        """Ask several questions at the same time; new answers are in the book as soon as they come.

        Args:
          questions: arguments of :meth:`ask` each.
          workers: questions under way at a time.
          stage: name of the pass for ``progress``.
          progress: called after every answer, with the tokens spent.

        Returns:
          The text of each answer, in the order of the questions.

        Raises:
          AtlasError: as :meth:`ask`, for the first question that fails; those not yet under way are not asked.
        """
        report = progress or unreported
        report(stage, 0, len(questions), sum(self.spent))
        answers: list[str] = []
        with ThreadPoolExecutor(workers) as pool:
            try:
                for answer in pool.map(lambda question: self.ask(*question), questions):
                    answers.append(answer.text)
                    report(stage, len(answers), len(questions), sum(self.spent))
            finally:
                pool.shutdown(cancel_futures=True)
        return answers

    def cost(self, questions: Iterable[Question], answer_tokens: int) -> Cost:
        """Estimate the cost of the questions that the book does not answer, at so many tokens an answer."""
        prompts = [question[1] for question in questions if self.get(*question) is None]
        return Cost(len(prompts), sum(map(len, prompts)) // CHARACTERS_PER_TOKEN, len(prompts) * answer_tokens)

    def _read(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            key, asked = row.pop("key"), row.pop("asked", None)
            self._known[key] = answer = Answer(**row)
            if asked and answer.model:
                self._models.setdefault(asked, answer.model)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AtlasError(f"line {number} of {self.path} is no saved answer ({error}); remove the file") from error


def _key(endpoint: ChatEndpoint, prompt: str, repeat: int) -> str:
    question = [endpoint.base_url, endpoint.body(prompt), repeat]
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
