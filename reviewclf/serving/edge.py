"""The outermost layer: request ids, figures, log lines, errors in one shape, bodies that are not read to their end.

Plain ASGI, since every request passes here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reviewclf.serving.metrics import Metrics
from reviewclf.serving.problems import ErrorBody, ErrorResponse, Problem

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PATHS = frozenset({"/predict", "/model", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"})
# Questions of load balancers and Prometheus, which come every few seconds, are logged when they fail only.
_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
# What is left of a short body is waited for, so that the connection can be used again.
_SHORT_BYTES = 65_536
_SHORT_SECONDS = 1.0
# A longer one is answered at once, then read and thrown away for so long: where a server closes on unread bytes, the
# system tells the client of a reset, often before it has read the answer.
_LINGER_SECONDS = 30.0
# The body was waited for long enough.
_TOO_LATE = 408


@dataclass
class Trace:
    """What is known about a request while it is answered; `fields` go into its log line.

    Of several headers of one name `headers` holds the first.
    """

    request_id: str
    headers: dict[bytes, bytes]
    fields: dict[str, Any] = field(default_factory=dict)
    code: str | None = None


def trace_of(scope: Scope) -> Trace:
    """The trace of a request that came through :class:`Edge`."""
    trace: Trace = scope["reviewclf.trace"]
    return trace


def header_of(scope: Scope, name: bytes) -> str | None:
    """Value of the first header of this name, which is written small."""
    value = trace_of(scope).headers.get(name)
    return None if value is None else str(value, "latin-1")


def problem_response(scope: Scope, problem: Problem) -> Response:
    """A problem as the answer to a request."""
    trace = trace_of(scope)
    trace.code = problem.code
    body = ErrorResponse(error=ErrorBody(code=problem.code, message=problem.message, request_id=trace.request_id))
    return Response(body.model_dump_json(), problem.status, problem.headers, "application/json")


class Edge:
    """ASGI middleware around all that answers.

    Parameters
    ----------
    app : ASGIApp
        What answers.
    metrics : Metrics
        Told each request.
    stopping : callable
        Whether the server is about to stop, so that connections end with their next answer.
    log_texts : bool
        Whether the words of an error, which may quote a review, go into the log.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, stopping: Callable[[], bool], log_texts: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._stopping = stopping
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))
        given = str(headers.get(b"x-request-id", b""), "latin-1")
        trace = Trace(given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex(), headers)
        method, started, status = scope["method"], time.perf_counter(), 0
        # As if the address had been written without a slash at its end, to which a redirect would lose the body.
        path = scope["path"].rstrip("/") or "/"
        scope = {**scope, "path": path, "method": "GET" if method == "HEAD" else method, "reviewclf.trace": trace}
        body = _Body(headers, receive)
        send_rest = body.answering(send)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = [*message["headers"], (b"x-request-id", trace.request_id.encode())]
                message = {**message, "headers": _with_close(marked) if self._stopping() else marked}
            elif method == "HEAD":  # the answer to GET with its headers alone
                message = {**message, "body": b""}
            await send_rest(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, body, send_marked)
        except Exception as error:  # whatever: the client gets an answer, and the log the details
            self._log_fault(error, trace)
            if not status:
                said = "the server failed; its log has the details under this request_id"
                await problem_response(scope, Problem(500, "internal_error", said))(scope, body, send_marked)
        finally:
            self._metrics.in_flight.dec()
            self._record(method, path, trace, status, time.perf_counter() - started)

    def _log_fault(self, error: Exception, trace: Trace) -> None:
        fields: dict[str, Any] = {
            "event": "fault",
            "request_id": trace.request_id,
            "error": type(error).__name__,
            "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)],
        }
        if self._log_texts:
            fields["words"] = str(error)
        logger.error("a request failed", extra={"fields": fields})

    def _record(self, method: str, path: str, trace: Trace, status: int, seconds: float) -> None:
        path = path if path in _PATHS else "other"
        self._metrics.request(path, status, seconds, trace.code)
        if path in _QUIET and status < 400:
            return
        fields = {
            "event": "request",
            "request_id": trace.request_id,
            "method": method,
            "path": path,
            "status": status,
            "seconds": round(seconds, 6),
            **({"code": trace.code} if trace.code else {}),
            **trace.fields,
        }
        logger.info("request", extra={"fields": fields})


class _Body:
    """ASGI's ``receive`` of one request, which knows whether the body has ended.

    An answer that comes before the end of the body must not cost the client the answer.
    """

    def __init__(self, headers: Mapping[bytes, bytes], receive: Receive) -> None:
        self._receive = receive
        self._ended = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        # The client sends its body only when it is told to, which reading it does.
        self._is_held_back = headers.get(b"expect", b"").lower() == b"100-continue"

    async def __call__(self) -> Message:
        """The next piece of the body."""
        self._is_held_back = False
        message = await self._receive()
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    def answering(self, send: Send) -> Send:
        """ASGI's ``send`` for the answer, in which the rest of the body is read and thrown away."""
        lingers = False

        async def send_and_linger(message: Message) -> None:
            nonlocal lingers
            if message["type"] == "http.response.start":
                waits = not self._is_held_back and message["status"] != _TOO_LATE
                if waits:
                    await self._discard(_SHORT_BYTES, _SHORT_SECONDS)
                if not self._ended:
                    lingers = waits
                    message = {**message, "headers": _with_close(message["headers"])}
            elif lingers and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._discard(None, _LINGER_SECONDS)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return send_and_linger

    async def _discard(self, most: int | None, seconds: float) -> None:
        if self._ended:
            return
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while not self._ended and (most is None or size < most):
                    size += len((await self()).get("body", b""))
        except TimeoutError:
            pass


def _with_close(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer after which the connection ends."""
    return [*(item for item in headers if item[0].lower() != b"connection"), (b"connection", b"close")]
