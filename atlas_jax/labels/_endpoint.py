"""Models behind an OpenAI-compatible API: how a request is sent, and embeddings."""

import dataclasses
import functools
import json
import os
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    import openai

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
