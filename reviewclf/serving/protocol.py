"""HTTP as uvicorn speaks it, each answer sent in one piece."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=:)", re.IGNORECASE)


class WholeAnswersProtocol(HttpToolsProtocol):
    """uvicorn writes the head of an answer and then its body, so that the client is woken twice; here they go together."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(GatheringTransport(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Bytes of a client; an offer of HTTP/2 (Java's, curl's) is left aside, as the parser would lose the body."""
        if b"pgrade:" in data:
            data = _UPGRADE.sub(b"ignored", data)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client sends no more, as it may after its request (RFC 9112, 9.6); whether its answers are still to be sent."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False  # the last of its requests; the connection closes after its answer
        return True


class GatheringTransport:
    """A transport that sends what is written within one turn of the event loop together.

    Parameters
    ----------
    transport : asyncio.Transport
        What sends; all but writing and closing is passed on to it.
    loop : asyncio.AbstractEventLoop
        Whose turns count.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send soon."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Send what is left, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))
