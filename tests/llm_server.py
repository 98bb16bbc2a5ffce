"""The server's side of OpenAI's chat protocol, played from a script over real HTTP."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Status, then the body: JSON, or text as it is; then headers where others than usual are wanted.
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Script = Callable[[dict[str, Any]], Answer]


class ChatServer:
    """Answers chat completions by `script` and the list of models by `models`; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.busy = self.most_busy = 0
        self.script: Script = lambda request: (200, completion("3"))
        self.models: Answer = (200, {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x"}]})
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*server.models)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append(request)
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                answer = server.script(request)
                with lock:
                    server.busy -= 1
                self._answer(*answer)

            def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def about(self, word: str) -> list[dict[str, Any]]:
        """Requests in whose last message a word stands."""
        return [request for request in self.asked if word in request["messages"][-1]["content"]]


@contextmanager
def running() -> Iterator[ChatServer]:
    """A server, while a test needs it."""
    server = ChatServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


def shown(request: dict[str, Any]) -> str:
    """The user's message."""
    return str(request["messages"][-1]["content"])


def completion(content: Any, *, finish: str | None = "stop", tokens: Any = None, **message: Any) -> dict[str, Any]:
    """The body of an answer; `tokens`: pairs of a token and the probabilities of what may stand at its place."""
    logprobs = None
    if tokens is not None:
        logprobs = {
            "content": [
                {
                    "token": token,
                    "logprob": -0.1,
                    "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
                }
                for token, top in tokens
            ]
        }
    choice = {"index": 0, "finish_reason": finish, "logprobs": logprobs}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{**choice, "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102},
    }
