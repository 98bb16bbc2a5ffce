"""The server's process: puts the parts together, listens, and stops without losing what it is answering."""

from __future__ import annotations

import logging
import os
import socket
import time
from types import FrameType

import uvicorn

from reviewclf.errors import ServingError
from reviewclf.serving.app import Service, create_app
from reviewclf.serving.batching import Batcher
from reviewclf.serving.cache import ModelCache
from reviewclf.serving.follower import Follower, Registry
from reviewclf.serving.logs import configure_logging
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.protocol import WholeAnswersProtocol
from reviewclf.serving.shadow import Shadow
from reviewclf.settings import Settings
from reviewclf.training.onnx_session import default_threads

logger = logging.getLogger(__name__)

# How long those who keep a connection open are told that the server stops, so that they close it.
_NOTICE_SECONDS = 0.5
# A server follows by asking often; it must not hang on one question.
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def build_service(settings: Settings, registry: Registry) -> Service:
    """Everything behind the addresses, not started yet.

    Parameters
    ----------
    registry : Registry
        :class:`reviewclf.registry.deployment.Deployments` of the tracking server.
    """
    serving = settings.serving
    workers = serving.threads or default_threads()
    metrics = Metrics()
    follower = Follower(
        registry,
        ModelCache(settings.home.expanduser().resolve() / "serving"),
        metrics,
        poll_seconds=serving.poll_seconds,
        # Batches side by side, one thread each: more texts a second than one after another with several threads, which
        # wait for each other on texts as short as reviews.
        threads=1 if workers > 1 else None,
        processes=workers if workers > 1 else 0,
        batch=serving.max_batch,
        shadow=serving.shadow_share > 0,
    )
    batcher = Batcher(
        workers=workers,
        max_batch=serving.max_batch,
        max_wait=serving.max_wait_ms / 1000,
        max_queue=serving.max_queue,
        metrics=metrics,
    )
    shadow = None
    if serving.shadow_share > 0:
        shadow = Shadow(
            share=serving.shadow_share,
            spare=lambda: batcher.spare,
            metrics=metrics,
            log_seconds=serving.shadow_log_seconds,
        )
    return Service(follower, batcher, shadow, metrics, serving)


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

    app = create_app(build_service(settings, Deployments(settings.tracking_uri)))
    listener = listen(settings.serving.host, settings.serving.port)
    configure_logging()
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d, following %s", f"[{host}]" if ":" in host else host, port, settings.tracking_uri)
    config = uvicorn.Config(
        app.state.edge,
        log_config=None,
        access_log=False,
        http=WholeAnswersProtocol,
        server_header=False,
        proxy_headers=False,  # nothing here depends on who asks
        ws="none",
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.serving.drain_seconds)),
    )
    DrainingServer(config, app.state.service, drain_seconds=settings.serving.drain_seconds).run(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """Stops in two steps: refuses what is new while it finishes what it has, then closes.

    Parameters
    ----------
    config : uvicorn.Config
        With the application wrapped into :class:`reviewclf.serving.edge.Edge`.
    service : Service
        Told to refuse.
    drain_seconds : float
        The first step takes no longer.
    """

    def __init__(self, config: uvicorn.Config, service: Service, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._edge = config.app
        self._service = service
        self._drain_seconds = drain_seconds
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once."""
        if self._draining_since is not None:
            self.should_exit = self.force_exit = True
            return
        self._draining_since = time.monotonic()
        self._service.draining = True
        self._edge.closing = True  # type: ignore[union-attr]

    async def on_tick(self, counter: int) -> bool:
        """Whether to close; asked ten times a second."""
        since = self._draining_since
        if since is not None:
            waited = time.monotonic() - since
            in_flight = self._edge.in_flight  # type: ignore[union-attr]
            if waited >= self._drain_seconds or (in_flight == 0 and waited >= _NOTICE_SECONDS):
                if in_flight:
                    logger.warning("%d requests were still being answered after %.0f s", in_flight, waited)
                self.should_exit = True
        return await super().on_tick(counter)


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
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ServingError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another one with --port or "
            "REVIEWCLF_SERVING__PORT"
        ) from error
    listener.set_inheritable(True)
    return listener
