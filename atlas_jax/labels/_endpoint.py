"""Embeddings from an OpenAI-compatible API: ``POST {base URL}/embeddings``."""

import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError
from atlas_jax.labels._embedders import BATCH

_AGAIN = (408, 409, 429, 500, 502, 503, 504)


@dataclasses.dataclass(frozen=True, eq=False)
class EndpointEmbedder:
    """A model behind an OpenAI-compatible embeddings endpoint.

    Attributes:
      model: its name there.
      base_url: of the API, without ``/embeddings``.
      api_key: the bearer token, None for none.
      tries: of each request; the wait doubles from ``pause`` seconds, or is what the server asks for.
      pause: before the second try, in seconds.
      timeout: of one try, in seconds.
    """

    model: str
    base_url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    tries: int = 6
    pause: float = 1.0
    timeout: float = 120.0

    @classmethod
    def connect(cls, model: str, *, base_url: str | None = None, api_key: str | None = None) -> "EndpointEmbedder":
        """An endpoint from options, or else from OPENAI_BASE_URL and OPENAI_API_KEY.

        Raises:
          AtlasError: without a base URL.
        """
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not base_url or not base_url.startswith(("http://", "https://")):
            raise AtlasError("an embedding endpoint needs a base URL: give --base-url http... or set OPENAI_BASE_URL")
        return cls(model, base_url.rstrip("/"), api_key or os.environ.get("OPENAI_API_KEY") or None)

    @property
    def name(self) -> str:
        """Model and address."""
        return f"endpoint:{self.model} at {self.base_url}"

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
        """One float32 row a text, in requests of 256 texts.

        Raises:
          AtlasError: if the endpoint refuses, stays unreachable, or answers with something else than vectors.
        """
        starts = range(0, len(texts), BATCH)
        return np.concatenate([self._request(list(texts[i : i + BATCH])) for i in starts])

    def _request(self, texts: list[str]) -> Float[np.ndarray, "n w"]:
        body = json.dumps({"model": self.model, "input": texts, "encoding_format": "float"}).encode()
        headers = {"Content-Type": "application/json"}
        headers |= {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        request = urllib.request.Request(f"{self.base_url}/embeddings", body, headers)
        for attempt in range(self.tries):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return self._vectors(json.load(response), len(texts))
            except urllib.error.HTTPError as error:
                reason, wait = _said(error), error.headers.get("Retry-After", "")
                if error.code not in _AGAIN:
                    raise AtlasError(f"{self.name} refused: {reason}") from None
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                reason, wait = str(error) or type(error).__name__, ""
            if attempt + 1 < self.tries:
                time.sleep(float(wait) if wait.isdigit() else self.pause * 2**attempt)
        raise AtlasError(f"{self.name} gave no answer in {self.tries} tries: {reason}")

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


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says about an error, on one line."""
    text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        pass
    return f"{error.code} {' '.join(text.split())[:200] or error.reason}"
