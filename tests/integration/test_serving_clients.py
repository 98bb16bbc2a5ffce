"""What clients of every kind send to a started server, and what they can still read of its answer."""

from __future__ import annotations

import codecs
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from reviewclf.registry.tracking import Tracker
from tests.integration.test_serving import Process, Registry, registry
from tests.small_models import REVIEWS, answers_of

__all__ = ["registry"]

BODY = json.dumps({"texts": REVIEWS}).encode()


@pytest.fixture(scope="module")
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = Process(tmp_path_factory.mktemp("home"), registry.tracker.tracking_uri, workers=2)
    yield running
    running.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server whose registry holds no model yet."""
    home = tmp_path_factory.mktemp("empty")
    tracker = Tracker(f"sqlite:///{home}/mlflow.db")
    running = Process(home, tracker.tracking_uri, has_model=False, workers=2)
    yield running
    running.close()


def connect(server: Process) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def request_of(body: bytes, *headers: bytes, path: bytes = b"/predict") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body])


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65_536):
        found += piece
    return found


def labels_in(answer: bytes) -> list[str]:
    content: Any = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    return [prediction["label"] for prediction in content["predictions"]]


@pytest.mark.case(74)
@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/model", "/metrics", "/openapi.json"])
def test_head_is_answered_like_get_without_a_body(server: Process, path: str) -> None:
    head, get = server.client.head(path), server.client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    # The connection can be used again.
    assert server.client.head(path).status_code == 200


@pytest.mark.parametrize("path", ["/predict/", "/predict//"])
def test_slash_at_the_end_of_the_address_loses_no_body(server: Process, path: str) -> None:
    answer = server.client.post(path, json={"texts": REVIEWS}, follow_redirects=False)
    assert answer.status_code == 200, answer.text
    assert [row["label"] for row in answer.json()["predictions"]] == answers_of(0)
    assert server.client.get("/health/live/", follow_redirects=False).status_code == 200
    assert server.client.get("/health/", follow_redirects=False).status_code == 200


@pytest.mark.case(76)
def test_client_that_has_closed_its_side_gets_the_answer(server: Process) -> None:
    with connect(server) as connection:
        connection.sendall(request_of(BODY))
        connection.shutdown(socket.SHUT_WR)
        assert labels_in(read_all(connection)) == answers_of(0)
    large = json.dumps({"texts": REVIEWS * 100}).encode()
    with connect(server) as connection:  # two requests at once, one of them large
        connection.sendall(request_of(BODY) + request_of(large))
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert labels_in(answer) == answers_of(0) * 100
    with connect(server) as connection:  # half a request is none
        connection.sendall(request_of(BODY)[:-5])
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in read_all(connection)


@pytest.mark.case(77)
def test_byte_order_mark_before_the_json_is_no_fault(server: Process) -> None:
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    answer = server.client.post("/predict", content=codecs.BOM_UTF8 + BODY, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BODY.decode().encode("utf-16"), "UTF-16; send the JSON in UTF-8"),
        (BODY.decode().encode("utf-16-le"), "UTF-16-LE; send the JSON in UTF-8"),
        (b"", "empty"),
        (b'{"texts": "\xd0\xbf"}', '"texts" is a list of strings; give one string as "text"'),
        (b'{"texts": ["a\x00b"]}', "no JSON in UTF-8"),
    ],
)
def test_body_that_cannot_be_read_is_told_what_to_send(server: Process, content: bytes, said: str) -> None:
    answer = server.client.post("/predict", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]


def test_offer_of_another_protocol_loses_no_body(server: Process) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"
    with connect(server) as connection:
        connection.sendall(request_of(BODY, *offer) + request_of(BODY, b"Connection: close"))
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert labels_in(answer) == answers_of(0)


def test_next_request_on_the_connection_is_answered_after_an_error(server: Process) -> None:
    with connect(server) as connection:
        connection.sendall(request_of(b"no json") + request_of(b"x" * 30_000, path=b"/nowhere"))
        connection.sendall(request_of(BODY, b"Connection: close"))
        answer = read_all(connection)
    statuses = [answer.index(status) for status in (b"HTTP/1.1 422", b"HTTP/1.1 404", b"HTTP/1.1 200")]
    assert statuses == sorted(statuses)
    assert labels_in(answer) == answers_of(0)


def test_options_and_other_methods_are_told_what_is_allowed(server: Process) -> None:
    for method, path, allowed in (("OPTIONS", "/predict", "POST"), ("PUT", "/predict/", "POST"), ("OPTIONS", "/model", "GET")):
        answer = server.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), (method, path)


@pytest.mark.case(78)
@pytest.mark.parametrize("size", [10, 100_000, 3_000_000, 60_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_answer_arrives_whatever_is_sent_before_there_is_a_model(empty: Process, size: int, chunked: bool) -> None:
    address = urlsplit(empty.url)
    client = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    pieces = [b"x" * min(size, 1_000_000)] * max(1, size // 1_000_000)
    body: Any = iter(pieces) if chunked else b"".join(pieces)
    # It sends everything before it looks at the answer, as most clients do.
    client.request("POST", "/predict", body, {"Content-Type": "application/json"}, encode_chunked=chunked)
    answer = client.getresponse()
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert json.loads(answer.read())["error"]["code"] == "no_model"
    client.close()


@pytest.mark.parametrize("size", [5_000_000, 60_000_000])
def test_client_that_sends_too_much_reads_that_it_did(server: Process, size: int) -> None:
    address = urlsplit(server.url)
    client = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    client.request("POST", "/predict", b"x" * size, {"Content-Type": "application/json"})
    answer = client.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "body_too_large")
    client.close()


def test_body_that_waits_for_leave_is_not_asked_for_in_vain(empty: Process) -> None:
    with connect(empty) as connection:
        connection.sendall(request_of(b"x" * 5_000, b"Expect: 100-Continue")[:-5_000])
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"100 Continue" not in answer


def test_body_that_waits_for_leave_gets_it(server: Process) -> None:
    with connect(server) as connection:
        connection.sendall(request_of(BODY, b"expect: 100-continue", b"connection: close")[: -len(BODY)])
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(BODY)
        assert labels_in(read_all(connection)) == answers_of(0)
