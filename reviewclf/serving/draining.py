"""A server that stops without losing what it is answering."""

from __future__ import annotations

import asyncio
import logging
import time
from types import FrameType
from typing import Any, Protocol

import uvicorn

from reviewclf.serving.predicting import Predictor
from reviewclf.serving.protocol import WholeAnswersProtocol

logger = logging.getLogger(__name__)

# How long those who keep a connection open are told that the server stops, so that they close it.
_NOTICE_SECONDS = 0.5


class Door(Protocol):
    """What requests go through: see :class:`reviewclf.serving.edge.Edge`."""

    closing: bool

    @property
    def in_flight(self) -> int:
        """Requests being answered."""


def server_config(app: Any, *, drain_seconds: float) -> uvicorn.Config:
    """How uvicorn runs `app`, which is also a :class:`Door`."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=WholeAnswersProtocol,
        server_header=False,
        proxy_headers=False,  # nothing here depends on who asks
        ws="none",
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )


class DrainingServer(uvicorn.Server):
    """Stops in two steps: first new requests are refused and what was taken is answered, then connections are closed.

    Parameters
    ----------
    config : uvicorn.Config
        From :func:`server_config`.
    predictor : Predictor
        Told to refuse.
    drain_seconds : float
        The first step takes no longer.
    """

    def __init__(self, config: uvicorn.Config, predictor: Predictor, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._door: Door = config.app  # type: ignore[assignment]
        self._predictor = predictor
        self._drain_seconds = drain_seconds
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once."""
        if self._draining_since is not None:
            self.should_exit = self.force_exit = True
            return
        self.drain()

    def drain(self) -> None:
        """Begin to stop."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            self._predictor.draining = True
            self._door.closing = True

    @property
    def busy(self) -> bool:
        """Whether something is still being answered."""
        return self._door.in_flight > 0

    async def on_tick(self, counter: int) -> bool:
        """Whether to close; asked ten times a second."""
        since = self._draining_since
        if since is not None:
            waited = time.monotonic() - since
            if waited >= self._drain_seconds or (not self.busy and waited >= _NOTICE_SECONDS):
                if self.busy:
                    logger.warning("%d requests were still being answered after %.0f s", self._door.in_flight, waited)
                self.should_exit = True
        return await super().on_tick(counter)

    def make_protocol(self) -> asyncio.Protocol:
        """What speaks HTTP on one connection."""
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol
