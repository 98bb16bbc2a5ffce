"""What a process beside the server does with a request: answers it, passes it on, or says why not."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reviewclf.serving import predicting
from reviewclf.serving.answerer import _Alone, _Copy, _Front
from reviewclf.serving.batching import Turns
from reviewclf.serving.edge import Edge
from reviewclf.serving.forwarding import Forward
from reviewclf.serving.metrics import Metrics
from reviewclf.settings import ServingSettings
from tests.small_models import REVIEWS, train_small

BODY = json.dumps({"texts": REVIEWS}).encode()


class Passed:
    """In place of the way to the server: notes what it is given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, body: bytes, send: Any) -> None:
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Front:
    """The process's application without the process."""

    def __init__(self, forward: Any = None, *, loaded: bool = True, **settings: Any) -> None:
        self.metrics = Metrics()
        self.alone = _Alone(Turns(max_queue=10, metrics=self.metrics), self.metrics, ServingSettings(**settings))
        if loaded:
            self.alone.champion = _Copy("1-a", "1", train_small())
        self.passed = Passed()

        async def nothing(*_: Any) -> None:
            raise AssertionError("has no application of its own")

        edge = Edge(
            nothing, metrics=self.metrics, paths=frozenset({"/predict"}), direct={("POST", "/predict"): self.alone.predict}
        )
        self.app = _Front(edge, self.alone, forward or self.passed)

    def ask(
        self,
        body: bytes = BODY,
        *,
        method: str = "POST",
        path: str = "/predict",
        length: bool = True,
        ends: bool = True,
        **headers: str,
    ) -> tuple[int, Any]:
        named = {"content-type": "application/json", **({"content-length": str(len(body))} if length else {}), **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()],
        }
        sent: list[Any] = []
        pieces = [{"type": "http.request", "body": body, "more_body": not ends}]

        async def receive() -> Any:
            return pieces.pop() if pieces else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(asyncio.wait_for(self.app(scope, receive, send), 20))
        assert self.app.in_flight == 0
        return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


@pytest.fixture(scope="module")
def front() -> Front:
    return Front()


def test_short_requests_are_answered_alone(front: Front) -> None:
    status, answer = front.ask()
    assert (status, answer["model_version"], len(answer["predictions"])) == (200, "1", len(REVIEWS))
    assert front.passed.bodies == []


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ({"body": b" " * 5000 + BODY}, b" " * 5000 + BODY),
        ({"length": False}, BODY),
        ({"path": "/model", "method": "GET", "body": b""}, b""),
        ({"method": "PUT"}, b""),  # whose body nobody reads
    ],
)
def test_all_else_is_passed_on(asked: dict[str, Any], passed: bytes) -> None:
    front = Front()
    assert front.ask(**asked) == (200, {})
    assert front.passed.bodies == [passed]
    # The server counts and logs it.
    assert not [row for row in front.metrics.snapshot() if row[2] == "reviewclf_requests_total"]


def test_without_a_model_everything_is_passed_on() -> None:
    front = Front(loaded=False)
    assert front.ask() == (200, {})
    assert front.passed.bodies == [BODY]


@pytest.mark.parametrize(
    ("asked", "settings", "status", "code"),
    [
        ({"length": False, "ends": False}, {}, 408, "body_timeout"),
        ({"body": b"x" * 5000}, {"max_body_bytes": 4500}, 413, "body_too_large"),
        ({"body": b"x" * 5000, "content_encoding": "gzip"}, {}, 415, "unsupported_encoding"),
        ({"body": b"x" * 5000}, {"api_keys": "a-key-of-some-length"}, 401, "unauthorized"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_here_and_counted(
    asked: dict[str, Any], settings: dict[str, Any], status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_BODY_SECONDS", 0.1)
    front = Front(**settings)
    found, answer = front.ask(**asked)
    assert (found, answer["error"]["code"]) == (status, code)
    assert front.passed.bodies == []
    assert f'reviewclf_requests_total{{path="/predict",status="{status}"}} 1.0' in front.metrics.render().decode()


def test_a_server_that_is_not_there_is_said_so() -> None:
    front = Front(Forward("/nowhere/at/all"))
    status, answer = front.ask(path="/model", method="GET", body=b"")
    assert (status, answer["error"]["code"]) == (503, "unreachable")


def test_what_stops_takes_nothing_new() -> None:
    front = Front()
    front.alone.draining = front.app.closing = True
    status, answer = front.ask()
    assert (status, answer["error"]["code"]) == (503, "draining")


def test_a_model_that_fails_is_a_fault_without_the_review_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    front = Front()

    def fail(texts: Any) -> Any:
        raise ValueError(f"cannot read {texts}")

    assert front.alone.champion is not None
    front.alone.champion.classifier.predict_proba = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        status, answer = front.ask()
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "платье" not in str([vars(record) for record in caplog.records])


def test_figures_of_several_processes_add_up() -> None:
    ours, theirs = Metrics(), Metrics(process=False)
    for metrics, times in ((ours, 1), (theirs, 2)):
        for _ in range(times):
            metrics.request("/predict", 200, 0.004)
            metrics.answered("1", ["обувь"], [0.7])
    theirs.request("/predict", 422, 0.001)
    ours.registry(reachable=True, contact=None)
    sent = json.loads(json.dumps(theirs.snapshot()))  # as the channel does
    text = ours.render([sent, sent])
    figures: Callable[[str], bool] = text.decode().splitlines().__contains__
    assert figures('reviewclf_requests_total{path="/predict",status="200"} 5.0')
    assert figures('reviewclf_requests_total{path="/predict",status="422"} 2.0')
    assert figures('reviewclf_request_seconds_bucket{le="0.0025",path="/predict"} 2.0')
    assert figures('reviewclf_request_seconds_bucket{le="0.005",path="/predict"} 7.0')
    assert figures('reviewclf_predictions_total{label="обувь",version="1"} 5.0')
    assert figures("reviewclf_registry_up 1.0")
    assert text.count(b"# TYPE reviewclf_requests_total counter") == 1
    assert np.isclose(sum(row[4] for row in ours.snapshot() if row[2] == "reviewclf_confidence_sum"), 0.7)
