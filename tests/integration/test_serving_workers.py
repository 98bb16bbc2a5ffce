"""`reviewclf serve` with several processes: one service to its clients and to Prometheus, whichever process answers or ends."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.test_serving import START_SECONDS, Process, Registry, registry, until
from tests.small_models import REVIEWS, answers_of

__all__ = ["registry"]


@pytest.fixture(scope="module")
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    registry.champion(registry.first)
    running = Process(tmp_path_factory.mktemp("home"), registry.tracker.tracking_uri, workers=2)
    yield running
    running.close()


@pytest.fixture
def start(tmp_path: Path, registry: Registry) -> Iterator[Callable[..., Process]]:
    registry.champion(registry.first)
    started: list[Process] = []

    def make(**serving: object) -> Process:
        started.append(Process(tmp_path / "home", registry.tracker.tracking_uri, workers=2, **serving))
        return started[-1]

    yield make
    for server in started:
        server.close()


def workers(server: Process) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def predict(client: httpx.Client) -> tuple[str, list[str]]:
    answer = client.post("/predict", json={"texts": REVIEWS})
    assert answer.status_code == 200, answer.text
    return answer.json()["model_version"], [row["label"] for row in answer.json()["predictions"]]


def figure(server: Process, name: str) -> float:
    found = re.findall(
        rf"^{re.escape(name)} (\S+)$", httpx.get(f"{server.url}/metrics", timeout=START_SECONDS).text, re.MULTILINE
    )
    assert len(found) <= 1
    return float(found[0]) if found else 0.0


def processes_with(server: Process, version: str) -> int:
    text = httpx.get(f"{server.url}/metrics", timeout=START_SECONDS).text
    found = re.search(rf'^reviewclf_model_info\{{.*version="{version}"\}} (\d+)\.0$', text, re.MULTILINE)
    return int(found[1]) if found else 0


def ask_on_new_connections(server: Process, count: int) -> None:
    for _ in range(count):
        with httpx.Client(base_url=server.url, timeout=START_SECONDS) as client:
            predict(client)


def test_figures_of_all_processes_add_up(server: Process) -> None:
    names = (
        'reviewclf_requests_total{path="/predict",status="200"}',
        "reviewclf_request_texts_sum",
        "reviewclf_batch_texts_sum",
        'reviewclf_request_seconds_bucket{le="+Inf",path="/predict"}',
    )
    before = [figure(server, name) for name in names]
    ask_on_new_connections(server, 20)
    # A request is counted a moment after its client has the answer.
    until(lambda: [figure(server, name) - old for name, old in zip(names, before, strict=True)] == [20, 60, 60, 20])
    assert figure(server, "reviewclf_workers") == 2
    until(lambda: figure(server, "reviewclf_requests_in_flight") == 1)  # this very question
    assert figure(server, "reviewclf_registry_up") == 1
    memory = sum(process.memory_info().rss for process in workers(server))
    assert figure(server, "process_resident_memory_bytes") > memory > 0
    assert figure(server, "process_cpu_seconds_total") > 1


def test_a_promotion_reaches_all_processes_and_each_answer_names_its_version(server: Process, registry: Registry) -> None:
    stop = threading.Event()
    seen: list[list[tuple[str, list[str]]]] = [[] for _ in range(6)]
    errors: list[str] = []

    def ask(answers: list[tuple[str, list[str]]]) -> None:
        with httpx.Client(base_url=server.url, timeout=START_SECONDS) as client:
            while not stop.is_set():
                try:
                    answers.append(predict(client))
                except Exception as error:
                    errors.append(repr(error))

    clients = [threading.Thread(target=ask, args=(answers,)) for answers in seen]
    for client in clients:
        client.start()
    try:
        for version in (registry.second, registry.first, registry.second):
            registry.champion(version)
            until(partial(everybody_has, seen, version))
            until(lambda version=version: processes_with(server, version) == 2)  # type: ignore[misc]
    finally:
        stop.set()
        for client in clients:
            client.join(30)
    assert errors == []
    assert {(version, tuple(labels)) for answers in seen for version, labels in answers} == {
        (registry.first, tuple(answers_of(0))),
        (registry.second, tuple(answers_of(1))),
    }
    for answers in seen:  # on one connection each change is seen once: nobody falls back to the version before
        versions = [version for version, _ in answers]
        assert sum(one != following for one, following in itertools.pairwise(versions)) == 3
    assert processes_with(server, registry.second) == 2
    registry.champion(registry.first)
    until(lambda: processes_with(server, registry.first) == 2)
    assert processes_with(server, registry.second) == 0


def everybody_has(seen: list[list[tuple[str, list[str]]]], version: str) -> bool:
    return all(answers and answers[-1][0] == version for answers in seen)


def predict_once(server: Process) -> tuple[str, list[str]]:
    with httpx.Client(base_url=server.url, timeout=START_SECONDS) as client:
        return predict(client)


def test_killed_processes_are_replaced_and_nothing_counted_is_lost(server: Process, registry: Registry) -> None:
    requests = 'reviewclf_requests_total{path="/predict",status="200"}'
    ask_on_new_connections(server, 10)
    counted, before = figure(server, requests), workers(server)
    for process in before:
        process.kill()
    until(lambda: not any(map(lives, before)))
    # Who asks meanwhile waits until a new process has the model; nobody is told that there is none.
    assert predict_once(server) == (registry.first, answers_of(0))
    until(lambda: figure(server, "reviewclf_workers") == 2)
    assert not {process.pid for process in workers(server)} & {process.pid for process in before}
    assert figure(server, requests) == counted + 1
    assert figure(server, "reviewclf_requests_in_flight") == 1
    assert server.log.count("died") == 2


def test_a_full_queue_is_refused_and_all_else_is_answered(start: Callable[..., Process]) -> None:
    server = start(max_queue=4, max_texts=2)
    answers: list[tuple[int, str | None]] = []

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post("/predict", json={"texts": ["платье " * 40] * 2})
        answers.append((answer.status_code, answer.headers.get("Retry-After")))

    async def flood() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=START_SECONDS, limits=limits) as client:
            while not {status for status, _ in answers} >= {200, 503}:
                await asyncio.gather(*(ask(client) for _ in range(64)))

    asyncio.run(asyncio.wait_for(flood(), 60))
    assert {status for status, _ in answers} == {200, 503}
    assert all((after or "").isdigit() for status, after in answers if status == 503)
