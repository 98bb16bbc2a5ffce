"""How `reviewclf serve` starts and stops: no request is dropped, no process is left, and one failure does not end all."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from tests.integration.test_serving import ROOT, START_SECONDS, Process, Registry, registry, until
from tests.integration.test_serving_clients import BODY, connect, labels_in, read_all, request_of
from tests.integration.test_serving_workers import figure, lives, predict, predict_once, start, workers
from tests.small_models import REVIEWS, answers_of

__all__ = ["registry", "start"]

# Of processes that find `fastapi` missing while a file lies beside this one.
_BREAKABLE = """
import pathlib, sys
if pathlib.Path(__file__).with_name("broken").exists():
    sys.modules["fastapi"] = None
"""


def send(server: Process, *numbers: signal.Signals) -> None:
    """Ctrl+C as a terminal sends it, to all processes; another signal to the server alone."""
    for number in numbers:
        (os.killpg if number == signal.SIGINT else os.kill)(server.process.pid, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_asks_all_the_time_is_told_of_a_stop(start: Callable[..., Process], number: signal.Signals) -> None:
    server = start()
    processes = workers(server)
    assert len(processes) == 2
    ends: list[str] = []
    asked = threading.Barrier(5)

    def ask_often() -> None:
        with httpx.Client(base_url=server.url, timeout=START_SECONDS) as client:
            predict(client)
            asked.wait(30)
            while (answer := client.post("/predict", json={"texts": REVIEWS})).status_code == 200:
                pass
            code, headers = answer.json()["error"]["code"], answer.headers
            ends.append(f"{answer.status_code} {code} {headers.get('Connection')} {headers.get('Retry-After')}")

    clients = [threading.Thread(target=ask_often) for _ in range(4)]
    for client in clients:
        client.start()
    asked.wait(30)
    send(server, number)
    for client in clients:
        client.join(30)
    assert ends == ["503 draining close 2"] * 4
    assert server.process.wait(30) == 0
    assert not any(map(lives, processes))


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)],
    ids=["SIGTERM", "Ctrl+C", "Ctrl+C twice", "SIGTERM and Ctrl+C"],
)
def test_requests_in_flight_at_a_stop_are_answered(start: Callable[..., Process], numbers: Sequence[signal.Signals]) -> None:
    server = start()
    processes = workers(server)
    connections = [connect(server) for _ in range(8)]
    for connection in connections:
        connection.sendall(request_of(BODY)[:-10])
    until(lambda: figure(server, "reviewclf_requests_in_flight") == 1 + len(connections))
    for number in numbers:
        send(server, number)
        time.sleep(1.5)  # until connections on which nothing is being answered are closed
    for connection in connections:
        connection.sendall(BODY[-10:])
        assert labels_in(read_all(connection)) == answers_of(0)
    assert server.process.wait(30) == 0
    assert not any(map(lives, processes))


def test_a_closed_terminal_ends_the_server_and_all_processes(start: Callable[..., Process]) -> None:
    terminal, end = pty.openpty()

    def take_the_terminal() -> None:
        # The tests themselves may run under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(end, termios.TIOCSCTTY, 0)

    server = start(popen={"stdin": end, "preexec_fn": take_the_terminal})
    os.close(end)
    processes = workers(server)
    assert len(processes) == 2
    os.close(terminal)
    assert server.process.wait(30) == 0
    until(lambda: not any(map(lives, processes)))


def test_under_nohup_a_closed_terminal_changes_nothing(start: Callable[..., Process]) -> None:
    server = start(before=["nohup"])
    processes = workers(server)
    os.killpg(server.process.pid, signal.SIGHUP)
    time.sleep(1.5)
    assert workers(server) == processes
    assert predict_once(server)[1] == answers_of(0)


def test_processes_end_with_a_killed_server(start: Callable[..., Process]) -> None:
    server = start()
    processes = workers(server)
    server.process.kill()
    server.process.wait(10)
    until(lambda: not any(map(lives, processes)))


def test_a_stop_does_not_wait_for_an_mlflow_that_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent.settimeout(START_SECONDS)
        server = Process(tmp_path, uri, waits=False, workers=2)
        asked: list[socket.socket] = []
        try:
            asked += [silent.accept()[0] for _ in range(2)]  # both processes ask, and hear nothing
            processes = workers(server)
            stopped = time.monotonic()
            server.process.terminate()
            assert server.process.wait(90) == 0
            assert time.monotonic() - stopped < 30  # a question that hangs is waited for longer
            assert not any(map(lives, processes))
        finally:
            server.close()
            for connection in asked:
                connection.close()


def test_a_process_that_cannot_be_replaced_leaves_the_others_answering(start: Callable[..., Process], tmp_path: Path) -> None:
    path = tmp_path / "path"
    path.mkdir()
    (path / "sitecustomize.py").write_text(_BREAKABLE, encoding="utf-8")
    server = start(path=path)
    killed, other = workers(server)
    (path / "broken").touch()
    killed.kill()
    until(lambda: "the server goes on" in server.log)
    assert predict_once(server)[1] == answers_of(0)
    assert workers(server) == [other]
    (path / "broken").unlink()
    until(lambda: figure(server, "reviewclf_workers") == 2)
    assert server.process.poll() is None


def test_processes_that_cannot_start_end_the_server_with_a_reason(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "sitecustomize.py").write_text(_BREAKABLE, encoding="utf-8")
    (tmp_path / "broken").touch()
    variables = {"REVIEWCLF_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": registry.tracker.tracking_uri}
    done = subprocess.run(
        [sys.executable, "-m", "reviewclf.cli", "serve", "--port", "0"],
        env={**os.environ, **variables, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "REVIEWCLF_SERVING__WORKERS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode not in {0, None}, said
    assert "cannot start" in said
    assert "its log, above, says why" in said
    assert "Traceback" not in done.stderr, said
