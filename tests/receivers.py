"""The far ends of alerts: an HTTP server and a mail server on 127.0.0.1 that keep what they are sent."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email import message_from_string, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl


class Request(NamedTuple):
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class HttpReceiver:
    """Answers every request with the same status and body, and keeps it.

    Attributes
    ----------
    status, answer : int, bytes
        What the next requests are answered with.
    delay : float
        Seconds before it answers.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.status, self.answer, self.delay = 200, b"ok", 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                is_json = "json" in self.headers.get("Content-Type", "")
                body = json.loads(raw) if is_json else dict(parse_qsl(raw))
                outer.requests.append(Request(self.path, dict(self.headers), body))
                time.sleep(outer.delay)
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(outer.answer)))
                self.end_headers()
                with suppress(ConnectionError):  # whoever asked may have given up
                    self.wfile.write(outer.answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def wait_for(self, subject: str, *, seconds: float = 60.0) -> Request:
        """The first request whose JSON names the subject."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for request in list(self.requests):
                if request.body.get("subject") == subject:
                    return request
            time.sleep(0.2)
        raise AssertionError(
            f"no alert {subject!r} in {seconds:g} s; there came {[got.body.get('subject') for got in self.requests]}"
        )


class MailReceiver:
    """Speaks as much SMTP as a client needs to hand over a message."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.recipients: list[str] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def say(self, line: str) -> None:
                self.wfile.write(f"{line}\r\n".encode())

            def handle(self) -> None:
                self.say("220 receiver")
                while line := self.rfile.readline().decode().strip():
                    verb = line.split(" ")[0].upper()
                    if verb == "RCPT":
                        outer.recipients.append(line.partition(":")[2].strip("<> "))
                    if verb == "DATA":
                        self.say("354 go on")
                        lines = iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ".")
                        text = "\n".join(entry.removeprefix(".") for entry in lines)
                        outer.messages.append(message_from_string(text, policy=policy.default))  # type: ignore[arg-type]
                    self.say("221 bye" if verb == "QUIT" else "250 ok")
                    if verb == "QUIT":
                        return

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])


Receiver = TypeVar("Receiver", HttpReceiver, MailReceiver)


@contextmanager
def receiving(receiver: Receiver) -> Iterator[Receiver]:
    """Let a receiver listen until the end."""
    threading.Thread(target=receiver.server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
