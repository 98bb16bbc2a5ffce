"""`reviewclf serve`: uvicorn's supervisor, and the processes that it keeps running, each with a copy of the champion."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from reviewclf.errors import ServingError
from reviewclf.serving.keys import ApiKeys
from reviewclf.serving.logs import LOGGING
from reviewclf.settings import Settings
from reviewclf.training.onnx_session import default_threads

if TYPE_CHECKING:
    from fastapi import FastAPI

    from reviewclf.serving.service import Service

logger = logging.getLogger(__name__)

_BACKLOG = 2048
# A process that has not answered the supervisor for so long hangs, and is replaced. On a busy machine starting takes some time.
_HANG_SECONDS = 30
# A process that cannot start is tried again after so long, while others answer.
_NEXT_ATTEMPT_SECONDS = 5.0
# How long clients that keep a connection open are told that the server stops, so that they close it.
_NOTICE_SECONDS = 0.5
_ENVIRONMENT = {
    # A server follows by asking often; it must not hang on one question.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Each process has a core; threads for a handful of texts would only get in each other's way.
    "TOKENIZERS_PARALLELISM": "false",
}
_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=:)", re.IGNORECASE)


def serve(settings: Settings) -> None:
    """Answer requests until SIGTERM or Ctrl+C.

    Raises
    ------
    ServingError
        The address cannot be listened on, or the processes cannot start.
    SettingsError
        A key cannot be used.
    """
    serving = settings.serving
    ApiKeys(serving.api_keys)  # refused here, before any process is started
    workers = serving.workers or default_threads()
    settings = settings.model_copy(update={"serving": serving.model_copy(update={"workers": workers})})
    listener = listen(serving.host, serving.port)
    with listener, tempfile.TemporaryDirectory(prefix="reviewclf-metrics-") as figures:
        os.environ.update({**_ENVIRONMENT, **os.environ, "PROMETHEUS_MULTIPROC_DIR": figures})
        config = uvicorn.Config(
            partial(worker_app, settings),
            factory=True,
            workers=workers,
            log_config=LOGGING,
            access_log=False,
            http=Protocol,
            ws="none",
            lifespan="on",
            server_header=False,
            proxy_headers=False,  # nothing here depends on who asks
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(serving.drain_seconds)),
            timeout_worker_healthcheck=_HANG_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("listening on http://%s:%d, following %s", shown, port, settings.tracking_uri)
        hangup = signal.getsignal(signal.SIGHUP)
        supervisor = Supervisor(config, sockets=[listener])
        if hangup == signal.SIG_IGN:  # as `nohup` asks for; the processes inherit it
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise ServingError("a process that answers could not start; its log, above, says why")


class Supervisor(Multiprocess):
    """uvicorn's, but for how it notices that a process was killed, what it does when one cannot start, and how it stops."""

    _next_attempt = 0.0

    def keep_subprocess_alive(self) -> None:
        """Replace the processes that have ended or hang; where one cannot start, the others go on."""
        if self.should_exit.is_set():
            return
        if len(self.processes) < self.processes_num and time.monotonic() >= self._next_attempt:
            self.processes.append(Process(self.config, self.sockets))
            self.processes[-1].start()
        for process in self.processes:
            process.child_conn.close()  # the child's end: only where no other copy is open the end of the child is seen
        super().keep_subprocess_alive()
        others = [process for process in self.processes if process.exitcode != STARTUP_FAILURE]
        if len(others) < len(self.processes) and any(process.is_ready() for process in others):
            logger.error("the server goes on; a process in place of the failed one starts in %.0f s", _NEXT_ATTEMPT_SECONDS)
            self.processes, self._next_attempt = others, time.monotonic() + _NEXT_ATTEMPT_SECONDS
            self.should_exit.clear()  # uvicorn would stop at this failure

    def terminate_all(self) -> None:
        """Ask the processes to stop; once they no longer accept connections, clients are refused rather than kept waiting."""
        super().terminate_all()
        for listener in self.sockets:
            listener.close()

    def handle_hup(self) -> None:
        """Stop when the terminal is closed; uvicorn would replace its processes and go on."""
        self.should_exit.set()


def worker_app(settings: Settings) -> FastAPI:
    """The application of one process; called in it, inside the event loop."""
    # Until there is something to drain a signal ends the process; uvicorn would go on starting.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        from reviewclf.registry.deployment import Deployments
        from reviewclf.serving.app import create_app
        from reviewclf.serving.service import Service

        service = Service(settings, Deployments(settings.tracking_uri))
        app = create_app(service)
    except Exception:
        logger.exception("a process that answers cannot start")
        sys.exit(STARTUP_FAILURE)  # the supervisor would start it again and again at any other code
    stop_in_two_steps(service, handlers)
    stop_with_parent()
    return app


def stop_in_two_steps(service: Service, handlers: Mapping[signal.Signals, Any]) -> None:
    """On a signal refuse what is new, and let uvicorn close the connections a moment later.

    uvicorn closes connections on which nothing is being answered, perhaps while a request is on its way. Clients that are told
    so in an answer close them themselves. `handlers` are uvicorn's own.
    """
    loop = asyncio.get_running_loop()

    def handle(uvicorns: Any, number: int, frame: FrameType | None) -> None:
        # Ctrl-C reaches this process twice, from the terminal and from the supervisor. At a second signal, and at a SIGINT that
        # comes late, uvicorn would break off what is being answered.
        if not service.stopping:
            service.drain()
            loop.call_soon_threadsafe(loop.call_later, _NOTICE_SECONDS, uvicorns, signal.SIGTERM, frame)

    for number, uvicorns in handlers.items():
        signal.signal(number, partial(handle, uvicorns))


def stop_with_parent() -> None:
    """Stop when the supervisor has been killed: nobody else knows of this process, which would keep the port."""
    loop, parent = asyncio.get_running_loop(), multiprocessing.parent_process()

    def stop(sentinel: int) -> None:
        loop.remove_reader(sentinel)
        signal.raise_signal(signal.SIGTERM)

    if parent is not None:
        loop.add_reader(parent.sentinel, stop, parent.sentinel)


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, but for two things that clients do."""

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


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to from now on, also while the processes behind it still start.

    Raises
    ------
    ServingError
        The address is taken or none of this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
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
    return listener
