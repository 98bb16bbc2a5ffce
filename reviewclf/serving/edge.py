"""The outermost layer: request ids, figures, log lines, errors in one shape. Plain ASGI, since every request passes here."""

from __future__ import annotations

import logging
import os
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reviewclf.serving.incoming import Incoming, with_close
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.problems import ErrorBody, ErrorResponse, Problem

logger = logging.getLogger(__name__)

# The JSON of an answer; it raises Problem in place of it.
Direct = Callable[[Scope, Receive], Awaitable[bytes]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# Questions of load balancers and Prometheus, which come every few seconds, are logged when they fail only.
_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})


@dataclass
class Trace:
    """What is known about a request while it is answered; `fields` go into its log line."""

    request_id: str
    fields: dict[str, Any] = field(default_factory=dict)
    code: str | None = None


def trace_of(scope: Scope) -> Trace:
    """The trace of a request that came through :class:`Edge`."""
    trace: Trace = scope["reviewclf.trace"]
    return trace


def header_of(scope: Scope, name: bytes) -> str | None:
    """Value of the first header of this name, which is written small."""
    for found, value in scope["headers"]:
        if found == name:
            return str(value, "latin-1")
    return None


def without_trailing_slash(scope: Scope) -> Scope:
    """The request as if its address had been written without a slash at its end: a redirect would lose its body."""
    path = scope["path"]
    return {**scope, "path": path.rstrip("/") or "/"} if path.endswith("/") and path != "/" else scope


def _without_body(send: Send) -> Send:
    """The answer to ``HEAD``: that to ``GET`` with its headers alone."""

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


def problem_response(scope: Scope, problem: Problem) -> Response:
    """A problem as the answer to a request."""
    trace = trace_of(scope)
    trace.code = problem.code
    body = ErrorResponse(error=ErrorBody(code=problem.code, message=problem.message, request_id=trace.request_id))
    return Response(body.model_dump_json(), problem.status, problem.headers, "application/json")


def fault_response(scope: Scope) -> Response:
    """The answer where the server itself has failed."""
    message = "the server failed; its log has the details under this request_id"
    return problem_response(scope, Problem(500, "internal_error", message))


class Edge:
    """ASGI middleware around the whole application.

    Parameters
    ----------
    app : ASGIApp
        What answers.
    metrics : Metrics
        Told each request.
    paths : frozenset of str
        The routes; anything else is counted as ``other``.
    direct : mapping of (str, str) to callable, optional
        By method and path: what answers without the application's routing and middleware, which take a third as long as a small
        encoder. It gives the JSON of its answer, or raises :class:`Problem`.
    log_texts : bool
        Whether the words of an error, which may quote a review, go into the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        paths: frozenset[str],
        direct: Mapping[tuple[str, str], Direct] | None = None,
        log_texts: bool = False,
    ) -> None:
        self._app = app
        self._direct = dict(direct or {})
        self._metrics = metrics
        self._paths = paths
        self._log_texts = log_texts
        self.in_flight = 0
        metrics.in_flight.set_function(lambda: self.in_flight)
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = without_trailing_slash(scope)
        if not isinstance(receive, Incoming):
            receive = Incoming(scope, receive)
            send = receive.answering(send)
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self.answer(self._direct.get((scope["method"], scope["path"])), scope, receive, send)

    async def answer(self, endpoint: Direct | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Have one request answered by `endpoint`, by the application where that is None."""
        trace = scope["reviewclf.trace"] = Trace(_request_id(scope))
        started = time.perf_counter()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", trace.request_id.encode())]
                message = {**message, "headers": with_close(headers) if self.closing else headers}
            await send(message)

        self.in_flight += 1
        try:
            if endpoint is None:
                await self._app(scope, receive, send_marked)
            else:
                await self._answer(endpoint, scope, receive, send_marked)
        except Exception as error:  # answered by the application already, which raises it again for the log
            self._tell_fault(error, trace)
        finally:
            self.in_flight -= 1
            self._tell(scope, trace, status, time.perf_counter() - started)

    async def _answer(self, endpoint: Direct, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await endpoint(scope, receive)
        except Problem as problem:
            await problem_response(scope, problem)(scope, receive, send)
            return
        except Exception as error:  # whatever: the client gets an answer, and the log the details
            self._tell_fault(error, trace_of(scope))
            await fault_response(scope)(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _tell_fault(self, error: Exception, trace: Trace) -> None:
        fields: dict[str, Any] = {
            "event": "fault",
            "request_id": trace.request_id,
            "error": type(error).__name__,
            "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)],
        }
        if self._log_texts:
            fields["words"] = str(error)
        logger.error("a request failed", extra={"fields": fields})

    def _tell(self, scope: Scope, trace: Trace, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.request(path, status, seconds)
        if trace.code is not None:
            self._metrics.error(trace.code)
        if path in _QUIET and status < 400:
            return
        fields = {
            "event": "request",
            "request_id": trace.request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 6),
            **({"code": trace.code} if trace.code else {}),
            **trace.fields,
        }
        if logger.isEnabledFor(logging.INFO):
            # As `logger.info` does, which first looks for the line that called it.
            record = logger.makeRecord(logger.name, logging.INFO, "", 0, "request", (), None, extra={"fields": fields})
            logger.handle(record)


def _request_id(scope: Scope) -> str:
    """The client's own, where it is one that fits into a log line and a header; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return os.urandom(16).hex()
