"""A real local HTTP server with an OpenAI-compatible chat endpoint that misbehaves as it is told."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class ChatServer:
    """What the server does, which may be changed at any time, and what it was sent.

    Attributes:
      answer: the content of the message that answers a prompt; a dictionary is the whole choice.
      failures: statuses of the next requests; 0 hangs up without an answer, 200 answers.
      delay: seconds before an answer.
      model: the name it answers under, or a function of the number of requests so far; None for the one asked for.
      formless: refuse requests that ask for a form.
      error: the message of every error.
      requests: the bodies so far.
      headers: of these requests.
    """

    def __init__(self, answer: Callable[[str], Any]):
        self.answer, self.error, self.formless, self.delay, self.model = answer, "not\nnow", False, 0.0, None
        self.failures: list[int] = []
        self.requests: list[dict] = []
        self.headers: list[Mapping[str, str]] = []  # whose names may be in any case
        self.url = ""

    def reply(self, body: dict) -> tuple[int, Any]:
        """Status and content that answer a request."""
        status = self.failures.pop(0) if self.failures else 200
        if "response_format" in body and self.formless:
            status = 400
        if status != 200:
            return status, {"error": {"message": self.error, "type": "x"}}
        name = self.model(len(self.requests)) if callable(self.model) else self.model
        said = self.answer(body["messages"][0]["content"])
        if not isinstance(said, dict):
            said = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "model": name or body["model"]}
        return 200, head | {"choices": [{"index": 0} | said], "usage": usage}


@contextlib.contextmanager
def chat_server(answer: Callable[[str], Any]) -> Iterator[ChatServer]:
    """Serve at ``url`` until the end of the block."""
    does = ChatServer(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            does.requests.append(body)
            does.headers.append(self.headers)
            time.sleep(does.delay)
            status, reply = does.reply(body)
            if status == 0:
                self.connection.close()
                return
            content = json.dumps(reply).encode()
            self.send_response(status if self.path == "/v1/chat/completions" else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    does.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield does
    finally:
        server.shutdown()
        server.server_close()
