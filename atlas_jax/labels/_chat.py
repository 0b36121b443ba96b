"""Questions to a language model behind an OpenAI-compatible API: ``POST {base URL}/chat/completions``."""

import dataclasses
import hashlib
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.labels._http import Retry, address_of, post_json


class Answer(NamedTuple):
    """What a chat model said, and what the server says it counted; 0 where it does not."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class ChatEndpoint:
    """A chat model.

    Attributes:
      model: its name there.
      base_url: of the API, without ``/chat/completions``.
      api_key: the bearer token, None for none.
      temperature: of sampling; the server's default where None.
      retry: patience with the server.
    """

    model: str
    base_url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    temperature: float | None = None
    retry: Retry = Retry()

    @classmethod
    def connect(cls, model: str, *, base_url: str | None = None, **options: Any) -> "ChatEndpoint":
        """A model at ``base_url``, or else at OPENAI_BASE_URL, with the key in OPENAI_API_KEY if there is one.

        Raises:
          AtlasError: without a base URL.
        """
        return cls(model, *address_of("chat", base_url, None), **options)

    def body(self, prompt: str) -> dict[str, Any]:
        """The request that asks a prompt."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        return body if self.temperature is None else body | {"temperature": self.temperature}

    def ask(self, prompt: str) -> Answer:
        """The model's answer.

        Raises:
          AtlasError: if the endpoint refuses, stays unreachable, or answers with something else than a message.
        """
        url = f"{self.base_url}/chat/completions"
        found = post_json(url, self.body(prompt), api_key=self.api_key, retry=self.retry)
        try:
            text, usage = found["choices"][0]["message"]["content"], found.get("usage") or {}
            counts = [int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens")]
            return Answer(text.strip(), *counts)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise AtlasError(f"{url} did not answer with a message: {error!r}") from None


class AnswerBook:
    """Answers on disk, a line each, so that no question is paid for twice.

    A question is known by a hash of its request: another model or another prompt is another question. A last line
    that a crash cut off is dropped.

    Attributes:
      path: a JSONL file; it need not exist.
      spent: prompt and completion tokens of the answers that were not in the book before.

    Example:
      >>> book, endpoint = AnswerBook(tmp / "answers.jsonl"), ChatEndpoint("m", "http://localhost")
      >>> book.add(endpoint, "What is this?", Answer("A cat"))
      >>> AnswerBook(tmp / "answers.jsonl").get(endpoint, "What is this?").text
      'A cat'
    """

    def __init__(self, path: str | Path):
        self.path, self.spent, self._lock = Path(path), [0, 0], threading.Lock()
        self._known: dict[str, Answer] = {}
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
            for number, line in enumerate(whole, 1):
                self._read(line, number)
            if whole != lines:
                self.path.write_bytes(b"".join(whole))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, endpoint: ChatEndpoint, prompt: str) -> Answer | None:
        """The answer to a question, None where it was not asked yet."""
        return self._known.get(_key(endpoint, prompt))

    def add(self, endpoint: ChatEndpoint, prompt: str, answer: Answer) -> None:
        """Write down an answer."""
        key = _key(endpoint, prompt)
        line = json.dumps({"key": key, **answer._asdict()}, ensure_ascii=False) + "\n"
        with self._lock:
            self._known[key] = answer
            self.spent = [self.spent[0] + answer.prompt_tokens, self.spent[1] + answer.completion_tokens]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def ask(self, endpoint: ChatEndpoint, prompt: str) -> Answer:
        """The answer in the book, or else the endpoint's, which is written down.

        Raises:
          AtlasError: as :meth:`ChatEndpoint.ask`.
        """
        answer = self.get(endpoint, prompt)
        if answer is None:
            answer = endpoint.ask(prompt)
            self.add(endpoint, prompt, answer)
        return answer

    def _read(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            key = row.pop("key")
            self._known[key] = Answer(**row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AtlasError(f"line {number} of {self.path} is no saved answer ({error}); remove the file") from error


def _key(endpoint: ChatEndpoint, prompt: str) -> str:
    return hashlib.sha256(json.dumps(endpoint.body(prompt), sort_keys=True).encode()).hexdigest()
