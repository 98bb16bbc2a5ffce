"""A scripted language model behind a real HTTP server. It answers by a rule, or badly, and keeps a ledger."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reviewclf.labeling.prompts import CONTENT_FREE
from reviewclf.text import text_hash
from tests.nights.words import FILTERED, category_of

MODEL = "scripted"
TOKENS_IN, TOKENS_OUT = 100, 5
_LISTED = re.compile(r"^([0-9A-Z])\. ([^:\n]+):", re.MULTILINE)


@dataclass(frozen=True)
class Sold:
    """An answer that was paid for; `is_vote` where nothing has to be asked again."""

    night: int
    system: str
    text: str
    is_vote: bool

    @property
    def text_hash(self) -> str:
        """Of the review."""
        return text_hash(self.text)


@dataclass
class Script:
    """How the model is tonight.

    Attributes
    ----------
    answers_left : int or None
        After so many answers the server is away (503); None: never.
    cuts : bool
        Every third review's answer is cut off before it says anything.
    """

    answers_left: int | None = None
    cuts: bool = False


@dataclass
class ScriptedModel:
    """The server's state: what it was asked, and how it is tonight."""

    address: str = ""
    night: int = 0
    script: Script = field(default_factory=Script)
    ledger: list[Sold] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def votes(self) -> dict[str, int]:
        """Paid answers that are votes, by text hash."""
        counted: dict[str, int] = {}
        for sold in self.ledger:
            if sold.is_vote:
                counted[sold.text_hash] = counted.get(sold.text_hash, 0) + 1
        return counted

    def sold_twice(self) -> list[Sold]:
        """Votes that were asked for although they had been paid for."""
        found: set[tuple[str, str]] = set()
        twice = []
        for sold in self.ledger:
            if sold.is_vote:
                if (sold.system, sold.text) in found:
                    twice.append(sold)
                found.add((sold.system, sold.text))
        return twice

    def answer(self, question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body."""
        system, text = (message["content"] for message in question["messages"])
        with self._lock:
            if self.script.answers_left == 0:
                return 503, {"error": {"message": "the model is being loaded", "type": "overloaded_error"}}
            is_review = text not in CONTENT_FREE
            if self.script.answers_left is not None and is_review:
                self.script.answers_left -= 1
            kind = self._kind(text) if is_review else "answered"
            if is_review:
                self.ledger.append(Sold(self.night, system, text, is_vote=kind != "cut"))
        content = ""
        if kind == "answered":
            codes = {name: code for code, name in _LISTED.findall(system)}
            code = codes.get(category_of(text) or "", next(iter(codes.values())))
            content = json.dumps({"label": code}) if "response_format" in question else code
        reason = {"answered": "stop", "filtered": "content_filter", "cut": "length"}[kind]
        return 200, {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": TOKENS_IN,
                "completion_tokens": TOKENS_OUT,
                "total_tokens": TOKENS_IN + TOKENS_OUT,
            },
        }

    def _kind(self, text: str) -> str:
        if FILTERED in text:
            return "filtered"
        return "cut" if self.script.cuts and int(text_hash(text)[:8], 16) % 3 == 0 else "answered"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: ScriptedModel

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}]})

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(*self.model.answer(question))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silence: the ledger says what was asked."""


@contextmanager
def serving() -> Iterator[ScriptedModel]:
    """A scripted model that listens."""
    model = ScriptedModel()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"model": model}))
    server.daemon_threads = True
    model.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
