"""`reviewclf serve` as a process, following a real MLflow: swaps, refusals, overload, a stop, and what schemathesis finds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import pytest

from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import load_model, log_model, register
from reviewclf.registry.tracking import Tracker
from tests.small_models import CLASSES, REVIEWS, answers_of, save_small

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0


def until(condition: Callable[[], Any], *, seconds: float = 60.0, what: str = "it did not happen") -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Registry:
    """A real MLflow on SQLite with three versions: two that answer differently, and one whose files were damaged."""

    def __init__(self, folder: Path) -> None:
        self.tracker = Tracker(f"sqlite:///{folder}/mlflow/mlflow.db")
        self.first, self.second, self.broken = (
            self._register(save_small(folder / f"model{number}", shift=number % 2), number) for number in range(3)
        )
        place = self.tracker.client.get_model_version_download_uri(REGISTERED_MODEL, self.broken)
        card = Path(unquote(urlsplit(place).path)) / "artifacts" / "model2" / "model.json"
        card.write_text(json.dumps({**json.loads(card.read_text(encoding="utf-8")), "format": 99}), encoding="utf-8")
        self.champion(self.first)

    def _register(self, folder: Path, number: int) -> str:
        run = self.tracker.open_run(f"key{number}", kind="candidate", name=f"small-{number}", description="for tests")
        uri = log_model(self.tracker, run, folder, packages=["skops"], example=REVIEWS[0], metadata={})
        figures = {"gold/weighted_f1": 0.9, "gold/weighted_f1_low": 0.8, "gold/weighted_f1_high": 0.95, "gold/rows": 420}
        self.tracker.log(run, metrics=figures)
        tags = {"reviewclf.candidate": f"small-{number}", "reviewclf.gate": "passed"}
        return register(self.tracker, run_id=run, model_uri=uri, tags=tags, description=f"small model {number}")

    def champion(self, version: str) -> None:
        self.tracker.client.set_registered_model_alias(REGISTERED_MODEL, "champion", version)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("реестр"))


class Process:
    """A started server, in a process group of its own; `popen` holds options of :class:`subprocess.Popen`."""

    def __init__(
        self,
        home: Path,
        tracking_uri: str,
        *,
        has_model: bool = True,
        waits: bool = True,
        before: Sequence[str] = (),
        path: Path = ROOT,
        popen: Mapping[str, Any] = MappingProxyType({}),
        **serving: object,
    ) -> None:
        home.mkdir(exist_ok=True)
        self._log = home / "serve.log"
        variables = {
            "REVIEWCLF_HOME": str(home),
            "MLFLOW_TRACKING_URI": tracking_uri,
            "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
            "REVIEWCLF_SERVING__POLL_SECONDS": "0.2",
            **{f"REVIEWCLF_SERVING__{name.upper()}": str(value) for name, value in serving.items()},
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "reviewclf.cli", "serve", "--port", "0"],
                env={**os.environ, **variables},
                cwd=home,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **popen,
            )
        self.url = until(self._listening, seconds=START_SECONDS, what="the server did not start")
        self.client = httpx.Client(base_url=self.url, timeout=START_SECONDS)
        if waits:
            ready = 200 if has_model else 503
            until(lambda: self.client.get("/health/ready").status_code == ready, seconds=START_SECONDS, what="it is not ready")

    def _listening(self) -> str | None:
        assert self.process.poll() is None, self.log
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", self.log)
        return found[1] if found else None

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def predict(self, *texts: str) -> tuple[str, list[str]]:
        answer = self.client.post("/predict", json={"texts": texts})
        assert answer.status_code == 200, answer.text
        content = answer.json()
        return content["model_version"], [prediction["label"] for prediction in content["predictions"]]

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = Process(tmp_path_factory.mktemp("сервер"), registry.tracker.tracking_uri, workers=2)
    yield running
    running.close()


def follow(server: Process, registry: Registry, version: str) -> None:
    registry.champion(version)
    until(lambda: server.predict(*REVIEWS)[0] == version, what=f"version {version} never answered")


def test_answers_are_those_of_the_registered_pyfunc(server: Process, registry: Registry) -> None:
    texts = [*REVIEWS, "", "   ", "👍 не подошло", "Сковорода " * 300, "a\x00b"]
    model = load_model(registry.tracker, f"models:/{REGISTERED_MODEL}/{registry.first}", version=registry.first)
    expected = model.predict(texts)
    answer = server.client.post("/predict", json={"texts": texts, "probabilities": True}).json()
    assert answer["model_version"] == registry.first
    assert [row["label"] for row in answer["predictions"]] == expected["label"].tolist()
    np.testing.assert_allclose([row["confidence"] for row in answer["predictions"]], expected["confidence"], atol=1e-9)
    got, wanted = (
        [[row[name] for name in CLASSES] for row in rows]
        for rows in ((row["probabilities"] for row in answer["predictions"]), expected["probabilities"])
    )
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_model_page_shows_what_mlflow_holds(server: Process, registry: Registry) -> None:
    answer = server.client.get("/model").json()
    assert (answer["candidate"], answer["gate"]["verdict"], answer["description"]) == ("small-0", "passed", "small model 0")
    assert answer["figures"]["gold/weighted_f1"] == {"value": 0.9, "low": 0.8, "high": 0.95}
    assert answer["registry"]["reachable"] is True


def test_swaps_and_a_refused_version_are_no_matter_to_clients_that_ask_all_the_time(
    server: Process, registry: Registry
) -> None:
    stop = threading.Event()
    seen: list[tuple[str, list[str]]] = []
    errors: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/predict", json={"texts": REVIEWS})
                    content = answer.json()
                    seen.append((content["model_version"], [row["label"] for row in content["predictions"]]))
                except Exception as error:
                    errors.append(repr(error))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for version in (registry.second, registry.first, registry.second):
            follow(server, registry, version)
        registry.champion(registry.broken)
        refused = until(lambda: server.client.get("/model").json()["refused"], what="the broken version was not refused")
        assert server.predict(*REVIEWS) == (registry.second, answers_of(1))
        follow(server, registry, registry.first)
    finally:
        stop.set()
        for client in clients:
            client.join(30)
    assert errors == []
    shifts = {registry.first: 0, registry.second: 1}
    assert all(labels == answers_of(shifts[version]) for version, labels in seen), (
        "an answer of one version under another's name"
    )
    assert {version for version, _ in seen} == set(shifts)
    assert (refused["version"], "format 99" in refused["reason"]) == (registry.broken, True)
    figures = server.client.get("/metrics").text
    # Each process counts its own attempts.
    assert re.search(rf'reviewclf_model_refused_total\{{alias="champion",version="{registry.broken}"\}} [12]\.0', figures)
    assert server.client.get("/model").json()["refused"] is None
    assert f"version {registry.broken} is refused, version {registry.second} goes on" in server.log


def test_schemathesis_finds_no_fault(server: Process, tmp_path: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "schemathesis"), "run", f"{server.url}/openapi.json"]
    command += ["--checks", "all", "--max-examples", "60", "--seed", "1", "--phases", "examples,coverage,fuzzing"]
    command += ["--no-color", "--suppress-health-check", "all", "--generation-database", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    # The run has to have asked: an empty one passes as well.
    counted = re.findall(
        r'reviewclf_requests_total\{path="/predict",status="(\d+)"\} (\d+)', server.client.get("/metrics").text
    )
    assert sum(int(count) for status, count in counted if status == "422") >= 20
    assert not [status for status, _ in counted if status.startswith("5")]


def test_overload_is_refused_a_stop_loses_nothing_and_a_restart_needs_no_registry(registry: Registry, tmp_path: Path) -> None:
    registry.champion(registry.first)
    home = tmp_path / "home"
    limits = {"workers": 1, "max_batch": 1, "max_queue": 600, "max_texts": 500}
    server = Process(home, registry.tracker.tracking_uri, **limits)
    try:
        refused, answered = overload(server)
        assert refused
        assert answered
        assert all(answer.headers["Retry-After"].isdigit() for answer in refused)
        assert {answer.json()["error"]["code"] for answer in refused} == {"overloaded"}
        stop_while_answering(server)
        assert server.process.wait(30) == 0
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        assert not [line for line in lines if line["level"] == "error"]
        assert "платье" not in server.log
    finally:
        server.close()
    # Nothing listens there.
    restarted = Process(home, "http://127.0.0.1:9", **limits)
    try:
        assert restarted.predict(*REVIEWS) == (registry.first, answers_of(0))
        answer = restarted.client.get("/model").json()
        assert (answer["loaded_from"], answer["registry"]["reachable"]) == ("cache", False)
        assert answer["figures"]["gold/rows"]["value"] == 420
    finally:
        restarted.close()


def overload(server: Process) -> tuple[list[httpx.Response], list[httpx.Response]]:
    """Twelve large requests at once on a queue that has room for one and a bit."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{server.url}/predict", json={"texts": ["платье отлично"] * 500}, timeout=60))

    clients = [threading.Thread(target=ask) for _ in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert len(answers) == len(clients)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all(len(answer.json()["predictions"]) == 500 for answer in answers if answer.status_code == 200)
    return [answer for answer in answers if answer.status_code == 503], [a for a in answers if a.status_code == 200]


def stop_while_answering(server: Process) -> None:
    """SIGTERM while a large request and four busy clients are being answered."""
    asked = threading.Event()
    large: list[httpx.Response] = []
    ends: list[str] = []

    def ask_much() -> None:
        large.append(httpx.post(f"{server.url}/predict", json={"texts": ["платье отлично"] * 500}, timeout=60))

    def ask_often() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while True:
                try:
                    answer = client.post("/predict", json={"text": "платье"})
                except httpx.ConnectError:
                    ends.append("closed")
                    return
                except httpx.HTTPError as error:
                    ends.append(repr(error))
                    return
                if answer.status_code != 200:
                    ends.append(f"{answer.status_code} {answer.json()['error']['code']} {answer.headers.get('Connection')}")
                    return
                asked.set()

    clients = [threading.Thread(target=work) for work in (ask_much, *[ask_often] * 4)]
    for client in clients:
        client.start()
    assert asked.wait(30)
    until(lambda: "reviewclf_requests_in_flight 0.0" not in httpx.get(f"{server.url}/metrics").text)
    server.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join(60)
    assert [(answer.status_code, len(answer.json()["predictions"])) for answer in large] == [(200, 500)]
    assert set(ends) == {"503 draining close"}
