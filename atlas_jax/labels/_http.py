"""One JSON request to an HTTP API, tried again where that can help."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from atlas_jax.errors import AtlasError

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST = 60.0  # seconds between two tries


class Retry(NamedTuple):
    """How patient a client is.

    Attributes:
      tries: of each request.
      pause: seconds before the second try; it doubles each time, up to a minute, unless the server names another.
      timeout: seconds of one try.
    """

    tries: int = 6
    pause: float = 1.0
    timeout: float = 120.0


def post_json(url: str, body: Any, *, api_key: str | None = None, retry: Retry | None = None) -> Any:
    """The JSON that a server answers to a posted JSON body.

    Args:
      url: where to.
      body: plain values.
      api_key: sent as a bearer token; None for none.
      retry: patience with overloaded, failing or unreachable servers.

    Raises:
      AtlasError: if the server refuses the request, or does not answer it in as many tries.

    Example:
      >>> post_json("http://localhost:8000/v1/chat/completions", {"model": "m"})        # doctest: +SKIP
    """
    retry, reason = retry or Retry(), ""
    headers = {"Content-Type": "application/json"}
    headers |= {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    for attempt in range(retry.tries):
        wait = min(retry.pause * 2**attempt, _LONGEST)
        try:
            with urllib.request.urlopen(request, timeout=retry.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason, asked = _said(error), error.headers.get("Retry-After", "")
            if error.code not in _AGAIN:
                raise AtlasError(f"{url} refused: {reason}") from None
            wait = min(float(asked), _LONGEST) if asked.isdigit() else wait
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
        if attempt + 1 < retry.tries:
            time.sleep(wait)
    raise AtlasError(f"{url} gave no answer in {retry.tries} tries: {' '.join(reason.split())}")


def address_of(kind: str, base_url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Base URL and key of an OpenAI-compatible API: those given, or else OPENAI_BASE_URL and OPENAI_API_KEY.

    Args:
      kind: of the endpoint, for the error.
      base_url: without the name of the service; a slash at its end is dropped.
      api_key: the bearer token.

    Raises:
      AtlasError: without a base URL.

    Example:
      >>> address_of("chat", "http://localhost:8000/v1/", "key")
      ('http://localhost:8000/v1', 'key')
    """
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or ""
    if not base_url.startswith(("http://", "https://")):
        raise AtlasError(f"the {kind} endpoint needs a base URL: give --base-url http... or set OPENAI_BASE_URL")
    return base_url.rstrip("/"), api_key or os.environ.get("OPENAI_API_KEY") or None


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says about an error, on one line."""
    text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        pass
    return f"{error.code} {' '.join(text.split())[:200] or error.reason}"
