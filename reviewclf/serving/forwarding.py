"""Requests that a process beside the server passes on to it."""

from __future__ import annotations

import httpx
from starlette.types import Scope, Send

from reviewclf.serving.problems import Problem, unavailable

# What an answer depends on.
_PASSED_ON = frozenset({b"content-type", b"content-encoding", b"authorization", b"x-api-key", b"x-request-id"})
# What each connection has of its own.
_OF_A_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})


class Forward:
    """Has requests answered by the server behind a Unix socket.

    Parameters
    ----------
    path : str
        Of the socket.
    """

    def __init__(self, path: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        self._transport = httpx.AsyncHTTPTransport(uds=path, limits=limits)

    async def __call__(self, scope: Scope, body: bytes, send: Send) -> None:
        """Pass one request on with its `body`, and its answer back.

        Raises
        ------
        Problem
            404: no address at all; 503: the server does not answer.
        """
        query = scope["query_string"]
        try:
            request = httpx.Request(
                scope["method"],
                httpx.URL(scheme="http", host="localhost", raw_path=scope["raw_path"] + (b"?" + query if query else b"")),
                headers=[(name, value) for name, value in scope["headers"] if name in _PASSED_ON],
                content=body or None,
                extensions={"timeout": {}},
            )
            response = await self._transport.handle_async_request(request)
            content = await response.aread()
        except (httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise Problem(404, "not_found", "Not Found") from error
        except httpx.TransportError as error:
            raise unavailable("unreachable", "the server is stopping or starting; come again later", retry_after=1) from error
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        kept = [item for item in headers if item[0] not in _OF_A_CONNECTION or item == (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
        await send({"type": "http.response.body", "body": content})

    async def close(self) -> None:
        """End its connections."""
        await self._transport.aclose()
