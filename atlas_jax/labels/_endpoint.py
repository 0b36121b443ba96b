"""Models behind an OpenAI-compatible API: chat, whose answers are kept on disk, and embeddings."""

import dataclasses
import functools
import hashlib
import json
import os
import threading
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    import openai
    import pydantic

BATCH = 256  # texts of a request
_PASSING = (408, 409, 429)  # statuses after which the client tries again, besides those from 500 up


class Retry(NamedTuple):
    """Patience of a client; the pauses between two tries are the ``openai`` client's own.

    Attributes:
      tries: number of tries of each request.
      timeout: seconds of one try.

    Example:
      >>> from atlas_jax.labels import Retry
      >>> Retry(tries=2).timeout
      120.0
    """

    tries: int = 8
    timeout: float = 120.0


def post_json(url: str, body: Any, *, api_key: str | None = None, retry: Retry | None = None) -> Any:
    """Post a JSON body and return the JSON that the server answers.

    Args:
      url: address of the service.
      body: plain values.
      api_key: sent as a bearer token; None for none.
      retry: patience with overloaded, failing or unreachable servers.

    Raises:
      AtlasError: if the server refuses the request, or does not answer it in as many tries.

    Example:
      >>> from atlas_jax.labels import post_json
      >>> post_json("http://localhost:8000/v1/embeddings", {"model": "m", "input": ["a"]})  # doctest: +SKIP
    """
    import openai

    _check(url, api_key)
    retry = retry or Retry()
    headers = {"Authorization": openai.Omit() if api_key is None else f"Bearer {api_key}"}
    for _ in range(retry.tries):  # the client tries again by itself, but not after a reply that is no JSON
        try:
            answer = _client(retry).post(url, cast_to=object, body=body, options={"headers": headers})
            return json.loads(answer) if isinstance(answer, str) else answer  # text where the server names no type
        except openai.APIStatusError as error:
            reason = f"{error.status_code} {_message(error)}"
            if error.status_code < 500 and error.status_code not in _PASSING:
                raise AtlasError(f"{url} refused: {reason}") from None
            raise _no_answer(url, reason, _tries(error)) from None
        except openai.APIConnectionError as error:
            raise _no_answer(url, str(error.__cause__ or error), _tries(error)) from None
        except ValueError as error:
            reason = str(error)
    raise _no_answer(url, reason, retry.tries)


@functools.lru_cache
def _client(retry: Retry) -> "openai.OpenAI":
    """Return one client for all threads, because it keeps its connections open; keys go with the requests."""
    import openai

    return openai.OpenAI(api_key="none", max_retries=retry.tries - 1, timeout=retry.timeout)


def _message(error: "openai.APIStatusError") -> str:
    """Return the server's message about an error, on one line."""
    body = error.body.get("message") if isinstance(error.body, dict) else error.body
    return " ".join(str(body or "").split())[:200] or error.response.reason_phrase


def _tries(error: "openai.APIError") -> int:
    return int(error.request.headers.get("x-stainless-retry-count", 0)) + 1


def _no_answer(url: str, reason: str, tries: int) -> AtlasError:
    counted = "1 try" if tries == 1 else f"{tries} tries"
    return AtlasError(f"{url} gave no answer in {counted}: {' '.join(reason.split())}")


def _check(url: str, api_key: str | None) -> None:
    """Refuse an address or key that cannot be sent, before a library names the key in its error."""
    try:
        _ = urllib.parse.urlsplit(url).port
    except ValueError as error:
        raise AtlasError(f"the address {url} of the endpoint cannot be read: {error}") from None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise AtlasError("the API key has characters that no key has, such as a line break; check OPENAI_API_KEY")


def address_of(kind: str, base_url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Return base URL and key of an OpenAI-compatible API: those given, or else OPENAI_BASE_URL and OPENAI_API_KEY.

    Args:
      kind: kind of the endpoint, for the error.
      base_url: without the name of the service; a slash at its end is dropped.
      api_key: the bearer token.

    Raises:
      AtlasError: without a base URL, or with one or a key that cannot be sent.

    Example:
      >>> from atlas_jax.labels._endpoint import address_of
      >>> address_of("chat", "http://localhost:8000/v1/", "key")
      ('http://localhost:8000/v1', 'key')
    """
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or ""
    if not base_url.startswith(("http://", "https://")):
        raise AtlasError(f"the {kind} endpoint needs a base URL: give --base-url http... or set OPENAI_BASE_URL")
    api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
    _check(base_url, api_key)
    return base_url.rstrip("/"), api_key


class Answer(NamedTuple):
    """Answer of a chat model, and the tokens that the server counted; 0 where it does not report them.

    Example:
      >>> from atlas_jax.labels import Answer
      >>> Answer("A cat", prompt_tokens=12).completion_tokens
      0
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
            message, usage = reply["choices"][0]["message"], reply.get("usage") or {}
            text = message.get("refusal") if message["content"] is None else message["content"]
            return Answer(text.strip(), *(int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens")))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise AtlasError(f"{url} did not answer with a message: {error!r}") from None


class AnswerBook:
    """Answers on disk, a line each, so that no question is paid for twice.

    A question is identified by a hash of its request: another model or another prompt is another question. A last line
    that a crash cut off is dropped.

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
        """Return the answer to a question, None where it was not asked yet."""
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
        """Return the answer in the book, or else ask the endpoint and write its answer down.

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


@dataclasses.dataclass(frozen=True, eq=False)
class EndpointEmbedder:
    """A model behind an OpenAI-compatible embeddings endpoint.

    Attributes:
      model: its name there.
      base_url: address of the API, without ``/embeddings``.
      api_key: the bearer token, None for none.
      retry: patience with the server.

    Example:
      >>> from atlas_jax.labels import EndpointEmbedder
      >>> embedder = EndpointEmbedder.connect("m", base_url="http://localhost:8000/v1/")
      >>> embedder.name
      'endpoint:m at http://localhost:8000/v1'
      >>> embedder.encode(["a dog", "a cat"]).shape  # doctest: +SKIP
      (2, 768)
    """

    model: str
    base_url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    retry: Retry = Retry()

    @classmethod
    def connect(cls, model: str, *, base_url: str | None = None, api_key: str | None = None) -> "EndpointEmbedder":
        """Return an endpoint from options, or else from OPENAI_BASE_URL and OPENAI_API_KEY.

        Raises:
          AtlasError: without a base URL.
        """
        return cls(model, *address_of("embedding", base_url, api_key))

    @property
    def name(self) -> str:
        """Model and address."""
        return f"endpoint:{self.model} at {self.base_url}"

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """Return one float32 row a text, in requests of 256 texts.

        Raises:
          AtlasError: if the endpoint refuses, stays unreachable, or answers with something else than vectors.
        """
        starts = range(0, len(texts), BATCH)
        return np.concatenate([self._request(list(texts[i : i + BATCH])) for i in starts])

    def _request(self, texts: list[str]) -> Float[np.ndarray, "n w"]:
        body = {"model": self.model, "input": texts, "encoding_format": "float"}
        answer = post_json(f"{self.base_url}/embeddings", body, api_key=self.api_key, retry=self.retry)
        return self._vectors(answer, len(texts))

    def _vectors(self, answer: Any, count: int) -> Float[np.ndarray, "n w"]:
        try:
            data = sorted(answer["data"], key=lambda one: one["index"])
            rows = np.array([one["embedding"] for one in data], np.float32)
            complete = [one["index"] for one in data] == list(range(count)) and rows.ndim == 2
        except (KeyError, TypeError, ValueError) as error:
            raise AtlasError(f"{self.name} did not answer with embeddings: {error!r}") from None
        if not complete or not np.isfinite(rows).all():
            raise AtlasError(f"{self.name} did not answer with one finite vector for each of {count} texts")
        return rows
