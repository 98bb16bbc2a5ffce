"""The body of a request as it arrives. An answer that comes before its end must not cost the client the answer."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope, Send

# What is left of a short body is waited for, so that the connection can be used again.
_SHORT_BYTES = 65_536
_SHORT_SECONDS = 1.0
# A longer one is answered at once, then read and thrown away for so long: where a server closes on unread bytes, the
# system tells the client of a reset, often before it has read the answer.
_LINGER_SECONDS = 30.0
# The body was waited for long enough.
_TOO_LATE = 408


class Incoming:
    """ASGI's ``receive`` of one request, which knows whether the body has ended.

    Parameters
    ----------
    scope : Scope
        Of the request.
    receive : Receive
        As the server gave it.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        self._receive = receive
        self.ended = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        # The client sends its body only when it is told to, which reading it does.
        self._is_held_back = headers.get(b"expect", b"").lower() == b"100-continue"

    async def __call__(self) -> Message:
        """The next piece of the body."""
        self._is_held_back = False
        message = await self._receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
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
                if not self.ended:
                    lingers = waits
                    message = {**message, "headers": with_close(message["headers"])}
            elif lingers and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._discard(None, _LINGER_SECONDS)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return send_and_linger

    async def _discard(self, most: int | None, seconds: float) -> None:
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while not self.ended and (most is None or size < most):
                    size += len((await self()).get("body", b""))
        except TimeoutError:
            pass


def with_close(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer after which the connection ends."""
    return [*(item for item in headers if item[0].lower() != b"connection"), (b"connection", b"close")]
