"""The server with processes beside it: one service to its clients, whichever process answers, hangs, ends or cannot load."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from reviewclf.serving import fleet as fleets
from reviewclf.serving.server import FleetServer, listen, open_server
from reviewclf.settings import load_settings
from tests.small_models import CLASSES, REVIEWS, Folders, answers_of, save_small

KEY = "a-key-of-some-length"
SHORT = b'{"text": "\xd0\xbf\xd0\xbb\xd0\xb0\xd1\x82\xd1\x8c\xd0\xb5"}'


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Running:
    """A server in this process, its event loop in a thread, and real processes beside it."""

    def __init__(self, folder: Path, registry: Folders, **serving: Any) -> None:
        self.registry = registry
        settings = load_settings(_env_file=None, home=folder, serving={"threads": 2, "poll_seconds": 0.05, **serving})
        listener = listen("127.0.0.1", 0)
        self.address = listener.getsockname()
        self._open = open_server(settings, registry, listener)
        server, sockets = self._open.__enter__()
        assert isinstance(server, FleetServer)
        self.server = server
        self.fleet = server._fleet
        self.thread = threading.Thread(target=server.run, args=(sockets,))
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.address[1]}", timeout=30)
        until(lambda: self.client.get("/health/ready").status_code == 200)
        assert self.everybody_answers()
        self.renew()

    def everybody_answers(self) -> bool:
        members = self.fleet._members
        return len(members) == 2 and all(member.uses and member.uses == self.fleet._used for member in members)

    def renew(self) -> None:
        """Take a new connection: the old one may be of the server itself, from before the others were ready."""
        self.client.close()
        self.client = httpx.Client(base_url=self.client.base_url, timeout=30)

    def predict(self, *texts: str, client: httpx.Client | None = None) -> tuple[str, list[str]]:
        answer = (client or self.client).post("/predict", json={"texts": texts})
        assert answer.status_code == 200, answer.text
        return answer.json()["model_version"], [row["label"] for row in answer.json()["predictions"]]

    def figure(self, name: str) -> float:
        found = re.findall(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert len(found) <= 1
        return float(found[0]) if found else 0.0

    def here(self) -> float:
        """Texts that went through the model of the server itself."""
        metrics = self.server._predictor.metrics
        return next(row[4] for row in metrics.snapshot() if row[2] == "reviewclf_batch_texts_sum")

    def close(self) -> None:
        self.client.close()
        if self.thread.is_alive():
            self.server.handle_exit(signal.SIGTERM, None)
            self.thread.join(30)
        assert not self.thread.is_alive()
        self._open.__exit__(None, None, None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [save_small(tmp_path_factory.mktemp(f"m{shift}"), shift=shift) for shift in range(2)]


def of(models: list[Path]) -> Folders:
    registry = Folders()
    registry.folders = {str(number): path for number, path in enumerate(models, 1)}
    registry.named = {"champion": "1"}
    return registry


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("home"), of(models), max_texts=300)
    yield server
    server.close()


@pytest.fixture
def server(running: Running) -> Running:
    """With version 1, whatever the test before has left."""
    running.renew()
    running.registry.named = {"champion": "1"}
    until(lambda: running.predict(*REVIEWS)[0] == "1" and len(running.fleet.pids) == 2 and running.everybody_answers())
    running.renew()
    return running


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("home"), of(models), max_texts=3, max_characters=800, max_body_bytes=100_000)
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, models: list[Path]) -> Iterator[Callable[..., Running]]:
    servers: list[Running] = []

    def make(**serving: Any) -> Running:
        servers.append(Running(tmp_path, of(models), **serving))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_who_answers_makes_no_difference(server: Running) -> None:
    names = (
        'reviewclf_requests_total{path="/predict",status="200"}',
        "reviewclf_batch_texts_sum",
        'reviewclf_request_seconds_bucket{le="+Inf",path="/predict"}',
        *(f'reviewclf_predictions_total{{label="{name}",version="1"}}' for name in CLASSES),
    )
    before, here = [server.figure(name) for name in names], server.here()
    texts = [*REVIEWS, "", "   ", "👍 не подошло", "a\x00b", "Платье", "кружка " * 30]
    many = len(texts) * 30
    whole = server.client.post("/predict", json={"texts": texts * 30, "probabilities": True, "abstain": True})
    assert server.here() == here + many
    single = [
        server.client.post("/predict", json={"texts": [text], "probabilities": True, "abstain": True}).json() for text in texts
    ]
    assert server.here() == here + many
    assert [answer["model_version"] for answer in single] == ["1"] * len(texts)
    assert [answer["predictions"][0] for answer in single] == whole.json()["predictions"][: len(texts)]
    # Both are shown as one server.
    requests, batched, seconds, *labels = (server.figure(name) - old for name, old in zip(names, before, strict=True))
    assert (requests, batched, seconds, sum(labels)) == (1 + len(texts), many + len(texts), 1 + len(texts), many + len(texts))
    assert server.figure("reviewclf_registry_up") == 1.0
    assert server.figure("reviewclf_requests_in_flight") == 1.0  # this very question


def test_new_connections_go_to_the_one_with_the_fewest(server: Running) -> None:
    clients = [httpx.Client(base_url=server.client.base_url) for _ in range(9)]
    try:
        assert {server.predict(*REVIEWS, client=client)[0] for client in clients} == {"1"}
        until(lambda: sum(member.connections for member in server.fleet._members) in {9, 10})
        few, many = sorted(member.connections for member in server.fleet._members)
        assert many - few <= 1
        for client in clients:
            client.close()
        until(lambda: sum(member.connections for member in server.fleet._members) <= 1)
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", {}, 422, "invalid_json"),
        (b'{"texts": []}', {}, 422, "invalid_request"),
        (b'{"texts": ["a", "b", "c", "d"]}', {}, 422, "too_many_texts"),
        (SHORT, {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"text": "' + b"a" * 900 + b'"}', {}, 422, "text_too_long"),
        (b'{"text": "' + b"a" * 6000 + b'"}', {}, 422, "text_too_long"),
        (b'{"text": "' + b"a" * 300_000 + b'"}', {}, 413, "body_too_large"),
    ],
)
def test_errors_are_the_same_from_each(
    limited: Running, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = limited.client.post(
        "/predict", content=content, headers={"Content-Type": "application/json", "X-Request-ID": "mine-1", **headers}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-ID"] == "mine-1"
    assert len(answer.headers.get_list("date")) == 1


def test_all_other_requests_are_passed_on(limited: Running) -> None:
    get = limited.client.get
    assert get("/model").json()["model_version"] == "1"
    assert get("/openapi.json").json()["info"]["title"] == "reviewclf"
    assert get("/nothing?a=%D0%BF&b").json()["error"]["code"] == "not_found"
    assert get("/predict").status_code == 405
    assert limited.client.head("/health/live").status_code == 200
    assert limited.client.request("GET", "/health/ready", content=b"x" * 10).status_code == 200
    assert limited.figure('reviewclf_requests_total{path="other",status="404"}') == 1


def test_bodies_in_pieces_and_with_an_announcement(limited: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", limited.address[1], timeout=30)
    connection.request(
        "POST", "/predict", iter([SHORT[:5], SHORT[5:]]), {"Content-Type": "application/json"}, encode_chunked=True
    )
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["model_version"]) == (200, "1")
    connection.close()
    with socket.create_connection(limited.address, timeout=30) as plain:
        head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        plain.sendall(f"{head}Content-Length: {len(SHORT)}\r\n\r\n".encode())
        assert plain.recv(1000).startswith(b"HTTP/1.1 100 ")
        plain.sendall(SHORT)
        assert plain.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("target", ["/a b", "/%zz", "//x", "*", "http://elsewhere/model", "/%D0%BF%D1%83%D1%82%D1%8C?%"])
def test_odd_addresses_get_an_answer_each(limited: Running, target: str) -> None:
    with socket.create_connection(limited.address, timeout=30) as plain:
        plain.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\nX-Odd: \x80\r\nConnection: close\r\n\r\n".encode("latin-1"))
        found = b"".join(iter(lambda: plain.recv(10_000), b""))
    assert found.split(maxsplit=2)[1] in {b"200", b"400", b"404"}, found


def test_keys_are_needed_everywhere_and_known_nowhere_else(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REVIEWCLF_NOTE", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "geheim")
    server = start(api_keys=KEY)
    for body in (SHORT, json.dumps({"texts": REVIEWS * 100}).encode()):
        for headers, status in (({}, 401), ({"X-API-Key": KEY[:-1]}, 401), ({"Authorization": f"Bearer {KEY}"}, 200)):
            answer = server.client.post("/predict", content=body, headers={"Content-Type": "application/json", **headers})
            assert answer.status_code == status
    assert server.client.get("/model").status_code == 401
    for pid in server.fleet.pids:
        process = psutil.Process(pid)
        assert not {"geheim", KEY} & set(process.environ().values())
        assert KEY not in " ".join(process.cmdline())


def test_a_promotion_reaches_all_of_them_while_clients_ask(server: Running) -> None:
    swaps = server.figure("reviewclf_model_swaps_total")
    stop = threading.Event()
    seen: list[list[tuple[str, list[str]]]] = [[] for _ in range(4)]
    errors: list[str] = []

    def ask(answers: list[tuple[str, list[str]]]) -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=30) as client:
            while not stop.is_set():
                try:
                    answers.append(server.predict(*REVIEWS, client=client))
                except Exception as error:
                    errors.append(repr(error))

    clients = [threading.Thread(target=ask, args=(answers,)) for answers in seen]
    for client in clients:
        client.start()
    for version in ("2", "1", "2"):
        server.registry.named = {"champion": version}
        until(partial(everybody_has, seen, version))
    stop.set()
    for client in clients:
        client.join(30)
    assert errors == []
    assert {(version, tuple(labels)) for answers in seen for version, labels in answers} == {
        ("1", tuple(answers_of(0))),
        ("2", tuple(answers_of(1))),
    }
    for answers in seen:  # each change is seen once: no client falls back to the version before
        versions = [version for version, _ in answers]
        assert sum(one != following for one, following in itertools.pairwise(versions)) == 3
    assert server.figure("reviewclf_model_swaps_total") == swaps + 3


def everybody_has(seen: list[list[tuple[str, list[str]]]], version: str) -> bool:
    return all(answers and answers[-1][0] == version for answers in seen)


def test_killed_ones_are_started_again_and_nothing_counted_is_lost(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "_FIRST_PAUSE", 0.05)
    texts, requests = "reviewclf_request_texts_sum", 'reviewclf_requests_total{path="/predict",status="200"}'
    counted = server.figure(texts), server.figure(requests)
    for _ in range(20):
        server.predict(*REVIEWS)
    assert server.figure(texts) == counted[0] + 60
    before = set(server.fleet.pids)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(member.uses for member in server.fleet._members))
    # Nobody is left but the server itself, which answers what comes meanwhile.
    server.renew()
    assert server.predict(*REVIEWS) == ("1", answers_of(0))
    until(lambda: len(server.fleet.pids) == 2 and server.everybody_answers())
    assert not before & set(server.fleet.pids)
    server.renew()
    here = server.here()
    assert server.predict(*REVIEWS) == ("1", answers_of(0))
    assert server.here() == here
    assert (server.figure(texts), server.figure(requests)) == (counted[0] + 66, counted[1] + 22)


def test_a_process_that_cannot_be_started_is_tried_again(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleets, "_FIRST_PAUSE", 0.05)
    started: list[int] = []

    class Full(subprocess.Popen):  # type: ignore[type-arg]
        """A machine without room for another process, twice."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            started.append(1)
            if len(started) <= 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            super().__init__(*arguments, **options)

    monkeypatch.setattr(fleets.subprocess, "Popen", Full)
    os.kill(server.fleet.pids[0], signal.SIGKILL)
    until(lambda: len(started) == 3 and len(server.fleet.pids) == 2 and server.everybody_answers())
    assert caplog.text.count("no answering process can be started") == 2


def test_one_that_hangs_is_ended(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "_HANG_SECONDS", 0.5)
    monkeypatch.setattr(fleets, "_FIRST_PAUSE", 0.05)
    hanging = server.fleet.pids[0]
    os.kill(hanging, signal.SIGSTOP)

    def ask() -> bool:
        """Each with a connection of its own, so that the one that hangs gets some too."""
        with httpx.Client(base_url=server.client.base_url, timeout=0.2) as client, contextlib.suppress(httpx.HTTPError):
            server.predict(*REVIEWS, client=client)
        return hanging not in server.fleet.pids

    until(ask)
    until(lambda: len(server.fleet.pids) == 2 and server.everybody_answers())
    assert [server.predict(*REVIEWS, client=httpx.Client(base_url=server.client.base_url)) for _ in range(4)] == [
        ("1", answers_of(0))
    ] * 4


def test_one_that_cannot_load_leaves_all_to_the_server(
    server: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = server.server._predictor.follower._cache  # type: ignore[attr-defined]
    told: list[Path] = []
    prepare = server.fleet.prepare

    def elsewhere(info: Any, folder: Path) -> None:
        """As if memory or disk failed there alone."""
        told.append(folder)
        prepare(info, tmp_path / "nothing")

    monkeypatch.setattr(server.fleet, "prepare", elsewhere)
    monkeypatch.setattr(fleets, "_RETRY_SECONDS", 1.0)
    server.registry.named = {"champion": "2"}
    until(lambda: server.predict(*REVIEWS)[0] == "2")
    assert told == [cache.path(server.registry.version("2"))]
    assert "goes without a model" in caplog.text
    here = server.here()
    assert server.predict(*REVIEWS) == ("2", answers_of(1))
    assert server.here() == here + len(REVIEWS)
    (tmp_path / "nothing").symlink_to(cache.path(server.registry.version("2")))
    until(server.everybody_answers)
    server.renew()
    assert server.predict(*REVIEWS) == ("2", answers_of(1))
    assert server.here() == here + len(REVIEWS)


def test_a_large_model_is_left_to_the_server(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "_LARGE_BYTES", 1000)
    server.registry.named = {"champion": "2"}
    until(lambda: server.predict(*REVIEWS)[0] == "2")
    until(lambda: not any(member.uses for member in server.fleet._members))
    for _ in range(2):  # on the connection to one of them, and on a new one
        here = server.here()
        assert server.predict(*REVIEWS) == ("2", answers_of(1))
        assert server.here() == here + len(REVIEWS)
        server.renew()
    monkeypatch.undo()
    server.registry.named = {"champion": "1"}
    until(lambda: server.everybody_answers() and server.fleet._used is not None)


def test_a_full_queue_is_refused(start: Callable[..., Running]) -> None:
    server = start(max_queue=4, max_texts=2)
    answers: list[tuple[int, str | None]] = []

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post("/predict", json={"texts": ["платье " * 40] * 2})
        answers.append((answer.status_code, answer.headers.get("Retry-After")))

    async def flood() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.client.base_url, timeout=60, limits=limits) as client:
            while not {status for status, _ in answers} >= {200, 503}:
                await asyncio.gather(*(ask(client) for _ in range(64)))

    asyncio.run(asyncio.wait_for(flood(), 60))
    assert {status for status, _ in answers} == {200, 503}
    assert all((after or "").isdigit() for status, after in answers if status == 503)


def test_a_stop_answers_what_was_taken_and_ends_all(start: Callable[..., Running]) -> None:
    server = start()
    pids = server.fleet.pids
    ends: list[str] = []
    asked = threading.Barrier(5)

    def ask_often() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=30) as client:
            server.predict(*REVIEWS, client=client)
            asked.wait(30)
            while True:
                answer = client.post("/predict", json={"texts": REVIEWS})
                if answer.status_code != 200:
                    ends.append(
                        f"{answer.status_code} {answer.json()['error']['code']} {answer.headers.get('Connection')} "
                        f"{answer.headers.get('Retry-After')}"
                    )
                    return

    clients = [threading.Thread(target=ask_often) for _ in range(4)]
    for client in clients:
        client.start()
    asked.wait(30)
    server.server.handle_exit(signal.SIGTERM, None)
    for client in clients:
        client.join(30)
    assert ends == ["503 draining close 2"] * 4
    server.thread.join(30)
    assert not server.thread.is_alive()
    assert not any(map(lives, pids))


def test_they_end_with_a_killed_server_and_leave_signals_to_it(tmp_path: Path, models: list[Path]) -> None:
    program = """
import sys, time
from pathlib import Path
from reviewclf.serving.server import listen, open_server
from reviewclf.settings import load_settings
from tests.small_models import Folders

registry = Folders()
registry.folders = {"1": Path(sys.argv[1])}
registry.named = {"champion": "1"}
listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
settings = load_settings(_env_file=None, home=Path(sys.argv[2]), serving={"threads": 2})
with open_server(settings, registry, listener) as (server, sockets):
    server.run(sockets=sockets)
"""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(models[0]), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with httpx.Client(base_url=url, timeout=30) as client:
            until(lambda: client.get("/health/ready").status_code == 200)
            children = [child.pid for child in psutil.Process(server.pid).children()]
            assert len(children) == 2
            for pid in children:
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            time.sleep(0.2)
            with httpx.Client(base_url=url, timeout=30) as other:
                assert other.post("/predict", json={"texts": REVIEWS}).status_code == 200
            assert all(map(lives, children))
        server.kill()
    until(lambda: not any(map(lives, children)))
