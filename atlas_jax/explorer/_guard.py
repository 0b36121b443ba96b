"""What a request must be before it is read: meant for this server, from its own page, and small."""

import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

from atlas_jax.explorer._requests import BODY_BYTES

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that refuses foreign hosts, foreign origins and large bodies, and adds headers to answers.

    A page elsewhere whose name was made to lead to this machine asks under that name, which is none of ours.
    """

    def __init__(self, app: Any, host: str):
        self.app, self.host = app, host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message["headers"], *own]}
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._refusal(headers):
            return await _answer(guarded, *refused)
        body = await _body(receive)
        if body is None:
            return await _answer(guarded, 413, f"a request may have {BODY_BYTES:,} bytes, and this one has more")
        return await self.app(scope, _replay(body, receive), guarded)

    def _refusal(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not is_own(host, self.host):
            return 403, f"this server does not answer to the name '{host[:100]}'; open it as it was printed"
        if origin not in (None, f"http://{host}"):
            return 403, "requests of other pages are refused"
        if not headers.get(b"content-length", "0").isdigit() or int(headers.get(b"content-length", "0")) > BODY_BYTES:
            return 413, f"a request may have {BODY_BYTES:,} bytes, and this one has more"
        return None


def is_own(host: str, bound: str) -> bool:
    """Whether the Host of a request is a name of this server: loopback, what it is bound to, or then any address.

    Example:
      >>> from atlas_jax.explorer._guard import is_own
      >>> [is_own(host, "127.0.0.1") for host in ("localhost:1", "[::1]:1", "evil.example:1", "10.0.0.1:1", "")]
      [True, True, False, False, False]
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in ("localhost", bound.lower()):
            return True
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not is_loopback(bound)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone.

    Example:
      >>> from atlas_jax.explorer._guard import is_loopback
      >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
      (True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _body(receive: Any) -> bytes | None:
    """The body of a request, None where it is too large."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > BODY_BYTES:
            return None
    return b"".join(parts)


def _replay(body: bytes, receive: Any) -> Any:
    """Give the body once; what comes after is the end of the connection."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Any, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": sentence}).encode()})
