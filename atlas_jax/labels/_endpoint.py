"""Embeddings from an OpenAI-compatible API: ``POST {base URL}/embeddings``."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError
from atlas_jax.labels._http import Retry, address_of, post_json

BATCH = 256  # texts a request


@dataclasses.dataclass(frozen=True, eq=False)
class EndpointEmbedder:
    """A model behind an OpenAI-compatible embeddings endpoint.

    Attributes:
      model: its name there.
      base_url: of the API, without ``/embeddings``.
      api_key: the bearer token, None for none.
      retry: patience with the server.
    """

    model: str
    base_url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    retry: Retry = Retry()

    @classmethod
    def connect(cls, model: str, *, base_url: str | None = None, api_key: str | None = None) -> "EndpointEmbedder":
        """An endpoint from options, or else from OPENAI_BASE_URL and OPENAI_API_KEY.

        Raises:
          AtlasError: without a base URL.
        """
        return cls(model, *address_of("embedding", base_url, api_key))

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
