"""A process beside the server that answers short requests alone, with a copy of the champion and an event loop of its own.

The server hands it connections. What it does not answer itself, it passes back to the server: large requests, other
addresses, and everything while it has no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from reviewclf.errors import RegistryError
from reviewclf.serving.batching import Turns
from reviewclf.serving.channel import Channel, Message
from reviewclf.serving.draining import DrainingServer, server_config
from reviewclf.serving.edge import Edge, header_of, without_trailing_slash
from reviewclf.serving.forwarding import Forward
from reviewclf.serving.incoming import Incoming
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.predicting import Predictor, read_body
from reviewclf.serving.problems import Problem, unavailable
from reviewclf.serving.served import Copy as _Copy
from reviewclf.serving.served import load, try_out
from reviewclf.settings import ServingSettings
from reviewclf.training.model import TextClassifier

logger = logging.getLogger(__name__)

# Longer bodies are of many reviews, which the server shares out among the cores.
_SHORT_BYTES = 4096
_PREDICT = ("POST", "/predict")


class _Alone(Predictor):
    """Answers with the copy that the server says is to answer."""

    champion: _Copy | None = None

    @property
    def model(self) -> _Copy:
        if self.draining or self.champion is None:
            raise unavailable("draining", "the server is stopping; ask another one, or this one again later", retry_after=1)
        return self.champion


class _Front:
    """Decides who answers. It is asked what :class:`DrainingServer` asks an :class:`Edge`."""

    def __init__(self, edge: Edge, alone: _Alone, forward: Forward) -> None:
        self._edge = edge
        self._alone = alone
        self._forward = forward
        self._forwarded = 0

    @property
    def in_flight(self) -> int:
        return self._edge.in_flight + self._forwarded

    @property
    def closing(self) -> bool:
        return self._edge.closing

    @closing.setter
    def closing(self, closing: bool) -> None:
        self._edge.closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._edge(scope, receive, send)
            return
        scope, receive = without_trailing_slash(scope), Incoming(scope, receive)
        send = receive.answering(send)
        if self._is_mine(scope):
            await self._edge(scope, receive, send)
            return
        self._forwarded += 1
        try:
            # Read here, where a client that sends too slowly or too much still hears of it.
            body = await self._body(scope, receive) if (scope["method"], scope["path"]) == _PREDICT else b""
            await self._forward(scope, body, send)
        except Problem as problem:
            await self._edge.answer(partial(_refuse, problem), scope, receive, send)
        finally:
            self._forwarded -= 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        self._alone.check_key(scope)
        return await read_body(scope, receive, self._alone.settings.max_body_bytes)

    def _is_mine(self, scope: Scope) -> bool:
        if (scope["method"], scope["path"]) != _PREDICT or (self._alone.champion is None and not self._alone.draining):
            return False
        length = header_of(scope, b"content-length")
        return length is not None and length.isdigit() and int(length) <= _SHORT_BYTES


async def _refuse(problem: Problem, scope: Scope, receive: Receive) -> bytes:
    raise problem


class _Answerer(DrainingServer):
    """The server of this process. It listens nowhere; connections come through the channel."""

    def __init__(
        self,
        config: uvicorn.Config,
        alone: _Alone,
        channel: Channel,
        messages: Sequence[tuple[Message, int | None]],
        *,
        drain_seconds: float,
    ) -> None:
        super().__init__(config, alone, drain_seconds=drain_seconds)
        self._alone = alone
        self._channel = channel
        self._messages = messages
        self._taken = 0
        self._told = (0, 0)
        self._copies: dict[str, _Copy] = {}
        self._work: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals go to the whole group or unit; the server says when to stop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to read the channel."""
        await super().startup(sockets)
        for message, file in self._messages:  # that came while it started
            self._obey(message, file)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._receive)

    async def on_tick(self, counter: int) -> bool:
        """Tell how many connections are open."""
        state = (len(self.server_state.connections), self._taken)
        if state != self._told:
            self._told = state
            self._tell({"is": "open", "open": state[0], "taken": state[1]})
        return await super().on_tick(counter)

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the reader sees the end of the channel
            self._channel.send(message)

    def _receive(self) -> None:
        try:
            for message, file in self._channel.receive():
                self._obey(message, file)
        except (EOFError, OSError):  # the server has gone, and nobody else knows of this process
            os._exit(1)

    def _obey(self, message: Message, file: int | None) -> None:
        match message["do"]:
            case "take":
                self._taken += 1
                self._start(self._take(socket.socket(fileno=file)))
            case "load":
                self._start(self._load(message["identity"], message["version"], Path(message["folder"])))
            case "use":
                self._copies = {identity: self._copies[identity] for identity in message["keep"]}
                self._alone.champion = self._copies.get(message["identity"])
            case "figures":
                self._tell({"is": "figures", "number": message["number"], "figures": self._alone.metrics.snapshot()})
            case "drain":
                self.drain()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the client has gone already
            await asyncio.get_running_loop().connect_accepted_socket(self.make_protocol, connection)

    async def _load(self, identity: str, version: str, folder: Path) -> None:
        try:
            classifier = await asyncio.to_thread(_load_and_try, folder)
        except Exception as error:  # whatever a damaged one raises
            reason = str(error) if isinstance(error, RegistryError) else f"it cannot be loaded: {error!r:.300}"
            self._tell({"is": "failed", "identity": identity, "reason": reason})
            return
        self._copies[identity] = _Copy(identity, version, classifier)
        self._tell({"is": "loaded", "identity": identity})


def _load_and_try(folder: Path) -> TextClassifier:
    classifier, _ = load(folder, threads=1)
    try_out(classifier, batch=1)
    return classifier


def main(descriptor: int) -> None:
    """Answer what comes through the channel, until it ends or the server says so."""
    from reviewclf.serving.logs import configure_logging

    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    configure_logging()
    logging.getLogger().setLevel(logging.WARNING)  # the server has said it
    channel = Channel(socket.socket(fileno=descriptor))
    messages: list[tuple[Message, int | None]] = []
    while not messages:
        messages = list(channel.receive())
    (start, _), *messages = messages
    settings = ServingSettings.model_validate(start["settings"])
    metrics = Metrics(process=False)
    alone = _Alone(Turns(max_queue=settings.max_queue, metrics=metrics), metrics, settings)
    forward = Forward(start["back"])

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await forward.close()
        await send({"type": "lifespan.shutdown.complete"})

    edge = Edge(
        lifespan, metrics=metrics, paths=frozenset({"/predict"}), direct={_PREDICT: alone.predict}, log_texts=settings.log_texts
    )
    logging.getLogger(Edge.__module__).setLevel(logging.INFO)
    front = _Front(edge, alone, forward)
    config = server_config(front, drain_seconds=settings.drain_seconds)
    _Answerer(config, alone, channel, messages, drain_seconds=settings.drain_seconds).run(sockets=[])


if __name__ == "__main__":
    main(int(sys.argv[1]))
