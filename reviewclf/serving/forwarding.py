"""Requests that a process beside the server passes on to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from starlette.types import Receive, Scope, Send

# What holds for one connection only, and what each server writes itself.
_OF_A_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"date"}
)


class _ClientGoneError(Exception):
    """The client ended the connection before its request had come."""


class Forward:
    """ASGI application that has every request answered by the server behind a Unix socket.

    Parameters
    ----------
    path : str
        Of the socket.
    """

    def __init__(self, path: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        self._transport = httpx.AsyncHTTPTransport(uds=path, limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        headers = [(name, value) for name, value in scope["headers"] if name not in _OF_A_CONNECTION]
        if not any(name == b"host" for name, _ in headers):
            headers.append((b"host", b"localhost"))
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        # Without a body there is nothing to read, and a chunked empty one would be something else.
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        request = httpx.Request(
            scope["method"],
            httpx.URL(scheme="http", host="localhost", raw_path=target),
            headers=headers,
            content=_body(receive) if has_body else None,
            extensions={"timeout": {}},
        )
        try:
            response = await self._transport.handle_async_request(request)
        except _ClientGoneError:
            return
        except httpx.TransportError:
            await send(
                {
                    "type": "http.response.start",
                    "status": 503,
                    "headers": [(b"content-length", b"0"), (b"retry-after", b"1"), (b"connection", b"close")],
                }
            )
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            kept = [
                (name.lower(), value)
                for name, value in response.headers.raw
                if name.lower() not in _OF_A_CONNECTION or (name.lower(), value.lower()) == (b"connection", b"close")
            ]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    async def close(self) -> None:
        """End its connections."""
        await self._transport.aclose()


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        if piece := message.get("body", b""):
            yield piece
        more = message.get("more_body", False)
