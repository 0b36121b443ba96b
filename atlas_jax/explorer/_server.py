"""The explorer's server: three files and a few addresses, each a call of :class:`Explorer`."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from atlas_jax.errors import AtlasError
from atlas_jax.explorer._explorer import Explorer, LoadingError
from atlas_jax.explorer._guard import Guard
from atlas_jax.explorer._jobs import BusyError, Job
from atlas_jax.explorer._requests import Place, Query, Saving, Steering

if TYPE_CHECKING:
    from fastapi import FastAPI

FILES = {"/": ("index.html", "text/html"), "/explorer.js": ("explorer.js", "text/javascript"),
         "/explorer.css": ("explorer.css", "text/css")}  # fmt: skip
LONGEST_SEARCH = 500


def make_app(explorer: Explorer, host: str = "127.0.0.1") -> "FastAPI":
    """Make the web application of an explorer.

    Args:
      explorer: of a run, whether loaded or not.
      host: what the server is bound to; requests for other names are refused.

    Raises:
      AtlasError: without fastapi and uvicorn, the extra ``serve``.

    Example:
      >>> from atlas_jax.explorer import Explorer, make_app  # doctest: +SKIP
      >>> app = make_app(Explorer("runs/quickstart"))        # doctest: +SKIP
    """
    fastapi, _ = _packages()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        explorer.jobs.cancel_all()

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, host=host)
    _add_errors(app, fastapi)
    for address, file in FILES.items():
        app.get(address)(_file(fastapi, *file))
    _add_answers(app, fastapi, explorer)
    _add_generations(app, fastapi, explorer)
    return app


def serve(run: str | Path, *, host: str = "127.0.0.1", port: int = 8765, said: Callable[[str], None] = print) -> None:
    """Serve the explorer of a run until it is interrupted.

    Args:
      run: its directory.
      host: address to listen at; by default this machine alone can reach it.
      port: its port; 0 takes a free one.
      said: called with the address of the page.

    Raises:
      AtlasError: without the extra ``serve``, if the directory is no run, or the port cannot be had.

    Example:
      >>> from atlas_jax.explorer import serve  # doctest: +SKIP
      >>> serve("runs/quickstart", port=8765)   # doctest: +SKIP
    """
    _, uvicorn = _packages()
    explorer = Explorer(run)
    with listen(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        said(f"http://{name}:{listening.getsockname()[1]}/")
        explorer.start()
        config = uvicorn.Config(make_app(explorer, host), log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
      AtlasError: if the port is in use, or the host is no address of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AtlasError(
            f"port {port} of {host} cannot be had ({reason}); choose another with --port, or 0 for a free one"
        ) from error


def _packages() -> tuple[Any, Any]:
    try:
        import fastapi
        import uvicorn
    except ImportError as error:
        raise AtlasError('the explorer needs fastapi and uvicorn: pip install "atlas-jax[serve]"') from error
    return fastapi, uvicorn


def _file(fastapi: Any, name: str, kind: str) -> Callable[[], Any]:
    content = resources.files("atlas_jax.explorer").joinpath("static", name).read_bytes()
    return lambda: fastapi.Response(content, media_type=kind)


def _add_errors(app: Any, fastapi: Any) -> None:
    """Every fault is one sentence, as JSON."""
    answer = lambda status, sentence: fastapi.responses.JSONResponse({"error": sentence}, status)

    async def bad(request: Any, error: AtlasError) -> Any:
        return answer({LoadingError: 503, BusyError: 429}.get(type(error), 400), str(error))

    async def unread(request: Any, error: Any) -> Any:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return answer(422, f"{where}: {first['msg']}")

    async def unknown(request: Any, error: Any) -> Any:
        return answer(error.status_code, f"{error.detail}: {request.url.path}")

    async def fault(request: Any, error: Exception) -> Any:
        logging.getLogger(__name__).error("%s failed", request.url.path, exc_info=error)
        return answer(500, f"the server could not do that ({type(error).__name__}: {error})")

    app.add_exception_handler(AtlasError, bad)
    app.add_exception_handler(fastapi.exceptions.RequestValidationError, unread)
    app.add_exception_handler(404, unknown)
    app.add_exception_handler(405, unknown)
    app.add_exception_handler(Exception, fault)


def _add_answers(app: Any, fastapi: Any, explorer: Explorer) -> None:
    """What is answered at once."""

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return explorer.facts()

    @app.get("/api/search")
    def search(q: Annotated[str, fastapi.Query(max_length=LONGEST_SEARCH)]) -> list[dict[str, Any]]:
        return explorer.search(q)

    @app.post("/api/features")
    def features(asked: Query) -> dict[str, Any]:
        return explorer.features(asked)

    @app.post("/api/token")
    def token(asked: Place) -> dict[str, Any]:
        return explorer.place(asked)

    @app.post("/api/code")
    def code(asked: Steering) -> dict[str, str]:
        return explorer.code(asked)

    @app.post("/api/save")
    def save(asked: Saving) -> Any:
        headers = {"Content-Disposition": f'attachment; filename="vector.{asked.format}"'}
        return fastapi.Response(explorer.save(asked), media_type="application/octet-stream", headers=headers)


def _add_generations(app: Any, fastapi: Any, explorer: Explorer) -> None:
    """Generations, which are queued and streamed."""

    @app.post("/api/steer")
    async def steer(asked: Steering) -> Any:
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        work = await asyncio.to_thread(explorer.steering, asked)
        put = lambda name, content: loop.call_soon_threadsafe(events.put_nowait, (name, content))
        job, ahead = explorer.jobs.submit(work, put)
        streamed = _events(job, ahead, events)
        return fastapi.responses.StreamingResponse(streamed, media_type="text/event-stream")

    @app.post("/api/cancel/{job}")
    def cancel(job: int) -> dict[str, bool]:
        return {"cancelled": explorer.jobs.cancel(job)}


async def _events(job: Job, ahead: int, events: asyncio.Queue) -> AsyncIterator[str]:
    """Server-sent events of a job, which is cancelled where nobody listens any more."""
    try:
        yield _event("queued", {"job": job.id, "ahead": ahead})
        name = ""
        while name not in ("done", "cancelled", "error"):
            name, content = await events.get()
            yield _event(name, content)
    finally:
        job.cancel()


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
