"""The server's process: puts the parts together, listens, and gives connections to those who answer."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from reviewclf.errors import ServingError
from reviewclf.serving.app import Service, create_app
from reviewclf.serving.batching import Batcher
from reviewclf.serving.cache import ModelCache
from reviewclf.serving.draining import DrainingServer, server_config
from reviewclf.serving.fleet import Fleet
from reviewclf.serving.follower import Follower, Registry
from reviewclf.serving.logs import configure_logging
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.shadow import Shadow
from reviewclf.settings import ServingSettings, Settings
from reviewclf.training.onnx_session import default_threads

logger = logging.getLogger(__name__)

_BACKLOG = 2048
# Connections that are accepted before anything else is done.
_ACCEPTED = 64
# What has no file for another connection left tries again after so long.
_PAUSE_SECONDS = 1.0
# A server follows by asking often; it must not hang on one question.
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def build_service(settings: Settings, registry: Registry, fleet: Fleet | None = None) -> Service:
    """Everything behind the addresses, not started yet.

    Parameters
    ----------
    registry : Registry
        :class:`reviewclf.registry.deployment.Deployments` of the tracking server.
    fleet : Fleet, optional
        The processes beside this one.
    """
    serving = settings.serving
    metrics = Metrics()
    follower = Follower(
        registry,
        ModelCache(settings.home.expanduser().resolve() / "serving"),
        metrics,
        poll_seconds=serving.poll_seconds,
        threads=threads_of_model(serving),
        batch=serving.max_batch,
        shadow=serving.shadow_share > 0,
        fleet=fleet,
    )
    batcher = make_batcher(serving, metrics)
    shadow = None
    if serving.shadow_share > 0:
        shadow = Shadow(
            share=serving.shadow_share,
            spare=lambda: batcher.spare,
            metrics=metrics,
            log_seconds=serving.shadow_log_seconds,
        )
    return Service(follower, batcher, shadow, metrics, serving, fleet)


def threads_of_model(serving: ServingSettings) -> int | None:
    """Threads of one call of a model, see :func:`reviewclf.training.model.load_model`.

    Batches side by side, one thread each: more texts a second than one after another with several threads, which wait for each
    other on texts as short as reviews.
    """
    return 1 if (serving.threads or default_threads()) > 1 else None


def make_batcher(serving: ServingSettings, metrics: Metrics) -> Batcher:
    """What runs the models."""
    return Batcher(
        workers=serving.threads or default_threads(),
        max_batch=serving.max_batch,
        max_wait=serving.max_wait_ms / 1000,
        max_queue=serving.max_queue,
        metrics=metrics,
    )


def serve(settings: Settings) -> None:
    """Answer requests until SIGTERM or Ctrl+C.

    Raises
    ------
    ServingError
        The address cannot be listened on.
    SettingsError
        A key cannot be used.
    """
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from reviewclf.registry.deployment import Deployments

    listener = listen(settings.serving.host, settings.serving.port)
    configure_logging()
    with open_server(settings, Deployments(settings.tracking_uri), listener) as (server, sockets):
        host, port = listener.getsockname()[:2]
        logger.info(
            "listening on http://%s:%d, following %s", f"[{host}]" if ":" in host else host, port, settings.tracking_uri
        )
        server.run(sockets=sockets)


@contextmanager
def open_server(
    settings: Settings, registry: Registry, listener: socket.socket
) -> Iterator[tuple[DrainingServer, list[socket.socket]]]:
    """The server and the sockets to run it with: alone, or with processes beside it where there are several cores."""
    serving = settings.serving
    count = serving.threads or default_threads()
    # The shadow takes the cores that the champion leaves free, which only a process that does all knows.
    if count == 1 or serving.shadow_share:
        service = build_service(settings, registry)
        config = server_config(create_app(service).state.edge, drain_seconds=serving.drain_seconds)
        yield DrainingServer(config, service, drain_seconds=serving.drain_seconds), [listener]
        return
    with (
        tempfile.TemporaryDirectory(prefix="reviewclf-") as scratch,  # nobody else may look into it
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as back,
    ):
        back.bind(str(Path(scratch) / "server"))
        back.listen(_BACKLOG)
        fleet = Fleet(count, serving, back.getsockname())
        service = build_service(settings, registry, fleet)
        config = server_config(create_app(service).state.edge, drain_seconds=serving.drain_seconds)
        yield FleetServer(config, service, fleet, listener, drain_seconds=serving.drain_seconds), [back]


class FleetServer(DrainingServer):
    """Accepts connections and hands them to the processes beside it; answers what these leave to it.

    Parameters
    ----------
    config, drain_seconds
        See :class:`DrainingServer`.
    service : Service
        What answers here.
    fleet : Fleet
        The processes.
    listener : socket.socket
        Where clients connect to. The sockets that it is run with are for the processes.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, fleet: Fleet, listener: socket.socket, *, drain_seconds: float
    ) -> None:
        super().__init__(config, service, drain_seconds=drain_seconds)
        self._fleet = fleet
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept, self._loop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and close all connections."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        await super().shutdown(sockets)

    def drain(self) -> None:
        """Begin to stop, all of them."""
        super().drain()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._fleet.drain)

    @property
    def busy(self) -> bool:
        """Whether something is still being answered, here or there."""
        return super().busy or bool(self._fleet.pids)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(_ACCEPTED):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError as error:
                logger.error("connections cannot be accepted for now: %s", error)  # noqa: TRY400 - said in words
                loop.remove_reader(self._listener.fileno())
                loop.call_later(_PAUSE_SECONDS, self._accept_again, loop)
                return
            if self._fleet.take(connection):
                connection.close()
                continue
            connection.setblocking(False)
            task = loop.create_task(self._keep(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _accept_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._listener.fileno() >= 0:
            loop.add_reader(self._listener.fileno(), self._accept, loop)

    async def _keep(self, connection: socket.socket) -> None:
        with suppress(OSError):  # the client has gone already
            await asyncio.get_running_loop().connect_accepted_socket(self.make_protocol, connection)


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to from now on, also while the server behind it still starts.

    Raises
    ------
    ServingError
        The address is taken or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServingError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another one with --port or "
            "REVIEWCLF_SERVING__PORT"
        ) from error
    listener.set_inheritable(True)
    return listener
