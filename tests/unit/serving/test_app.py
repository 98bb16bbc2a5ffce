"""The HTTP interface: answers, limits, errors of one shape, keys, request ids, logs, figures."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reviewclf.errors import ServingError, SettingsError
from reviewclf.registry.deployment import Version
from reviewclf.serving.app import create_app
from reviewclf.serving.keys import ApiKeys
from reviewclf.serving.logs import JsonFormatter
from reviewclf.serving.model import ServedModel
from reviewclf.serving.problems import Problem
from reviewclf.serving.schema import parse_request
from reviewclf.serving.server import listen
from reviewclf.serving.service import Service
from reviewclf.settings import ServingSettings, load_settings
from reviewclf.training.model import TextClassifier
from tests.small_models import CLASSES, REVIEWS, answers_of, train_small

KEY = "a-key-of-some-length"


class NoRegistry:
    """A registry in which nothing was ever registered: models come from the tests."""

    def aliases(self) -> dict[str, str]:
        return {}


def as_served(classifier: TextClassifier, version: str = "1") -> ServedModel:
    info = Version(
        version=version,
        run_id=f"run{version}",
        registered_at=datetime(2026, 1, 1, tzinfo=UTC),
        tags={"reviewclf.candidate": "logreg", "reviewclf.gate": "passed", "reviewclf.promoted_by": "anna"},
        description="what it is",
    )
    figures = {"gold/weighted_f1": 0.9, "gold/weighted_f1_low": 0.8, "gold/weighted_f1_high": 0.95, "gold/rows": 420.0}
    return ServedModel(info, classifier, figures, datetime(2026, 1, 2, tzinfo=UTC), "registry", "linear")


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return train_small()


@pytest.fixture(scope="module")
def other() -> TextClassifier:
    return train_small(shift=1)


class Server:
    """The application in this process, its event loop in a thread, so that tests read from top to bottom."""

    def __init__(self, folder: Path, model: ServedModel | None, challenger: ServedModel | None = None, **serving: Any) -> None:
        settings = load_settings(_env_file=None, home=folder, serving={"workers": 1, "poll_seconds": 60, **serving})
        self.service = Service(settings, NoRegistry())  # type: ignore[arg-type]
        self.service.follower.champion = model
        self.service.follower.challenger = challenger
        # Only the tests decide which models there are.
        self.service.follower.look = lambda: None  # type: ignore[method-assign]
        self.app = create_app(self.service)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.run(self._lifespan.__aenter__())
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.run(self.client.get(path, **options))  # type: ignore[no-any-return]

    def post(self, content: Any, path: str = "/predict", **options: Any) -> httpx.Response:
        options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.run(self.client.post(path, content=body, **options))  # type: ignore[no-any-return]

    def close(self) -> None:
        self.run(self.client.aclose())
        self.run(self._lifespan.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*arguments: Any, **serving: Any) -> Server:
        servers.append(Server(tmp_path, *arguments, **serving))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def server(classifier: TextClassifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(
        tmp_path_factory.mktemp("home"), as_served(classifier), max_texts=20, max_characters=200, max_body_bytes=50_000
    )
    yield running
    running.close()


def error(response: httpx.Response) -> str:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id"}
    assert body["error"]["request_id"] == response.headers["X-Request-ID"]
    return str(body["error"]["code"])


def test_many_texts_are_answered_in_order(server: Server) -> None:
    answer = server.post({"texts": REVIEWS})
    assert answer.status_code == 200
    assert set(answer.json()) == {"model_version", "predictions"}
    assert answer.json()["model_version"] == "1"
    assert [prediction["label"] for prediction in answer.json()["predictions"]] == answers_of(0)
    assert all(set(prediction) == {"label", "confidence"} for prediction in answer.json()["predictions"])


def test_one_text_is_answered_like_a_list_of_one(server: Server) -> None:
    assert server.post({"text": REVIEWS[1]}).json() == server.post({"texts": [REVIEWS[1]]}).json()


def test_answers_are_those_of_the_classifier(server: Server, classifier: TextClassifier) -> None:
    texts = [*REVIEWS, "", "👍", "ничего похожего"]
    answer = server.post({"texts": texts, "probabilities": True}).json()["predictions"]
    expected = classifier.predict_proba(texts)
    got = np.array([[prediction["probabilities"][name] for name in CLASSES] for prediction in answer])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert [prediction["confidence"] for prediction in answer] == pytest.approx(expected.max(axis=1).tolist())


@pytest.mark.slow
def test_answer_of_an_8_bit_encoder_does_not_depend_on_who_else_asks(start: Callable[..., Server]) -> None:
    from reviewclf.training.encoder_classifier import EncoderClassifier
    from tests.unit.tiny_encoder import CLASSES as NAMES
    from tests.unit.tiny_encoder import SEEN, tiny_network, tiny_tokenizer, toy_reviews

    texts = toy_reviews()[0][:16]
    encoder = EncoderClassifier.from_network(
        tiny_network(),
        tiny_tokenizer(),
        classes=NAMES,
        seen=SEEN,
        prior=np.array([0.5, 0.3, 0.0, 0.2]),
        candidate={},
        texts=texts,
        max_length=64,
        precision="int8",
    )
    alone = np.vstack([encoder.predict_proba([text]) for text in texts])
    assert (as_served(encoder).alone, as_served(train_small()).alone) == (True, False)
    answer = start(as_served(encoder)).post({"texts": texts, "probabilities": True}).json()["predictions"]
    got = [[prediction["probabilities"][name] for name in NAMES] for prediction in answer]
    np.testing.assert_array_equal(got, alone)


def test_doubtful_reviews_are_answered_with_unsure_when_asked(start: Callable[..., Server], other: TextClassifier) -> None:
    other.abstain = dict.fromkeys(CLASSES, 0.999999)
    server = start(as_served(other))
    plain, abstaining = (server.post({"texts": ["привет"], "abstain": asked}).json() for asked in (False, True))
    assert plain["predictions"][0]["label"] in CLASSES
    assert abstaining["predictions"][0]["label"] == "не уверен"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00",
        "a\x00b",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\u202eзадом",
        "\ufffe\uffff",
        "\U0010ffff",
        "🙂" * 200,
        "e\u0301" * 100,
        "\r\n\t\x0b\x1f\x7f",
    ],
)
def test_odd_texts_are_answered(server: Server, text: str) -> None:
    answer = server.post({"texts": [text]})
    assert answer.status_code == 200
    assert 0 <= answer.json()["predictions"][0]["confidence"] <= 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_json"),
        (b"{", 422, "invalid_json"),
        (b"null", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b'"text"', 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"texts": []}', 422, "invalid_request"),
        (b'{"texts": "a"}', 422, "invalid_request"),
        (b'{"texts": null}', 422, "invalid_request"),
        (b'{"texts": [null]}', 422, "invalid_request"),
        (b'{"texts": [1, 2, 3, 4, 5]}', 422, "invalid_request"),
        (b'{"text": "a", "texts": ["b"]}', 422, "invalid_request"),
        (b'{"texts": ["a"], "abstain": "yes"}', 422, "invalid_request"),
        (b'{"texts": ["a"], "model": "2"}', 422, "invalid_request"),
        (b'{"texts": ["\\ud800"]}', 422, "invalid_json"),
        (b'{"texts": ["\\udc00\\ud800"]}', 422, "invalid_json"),
        ('{"texts": ["привет"]}'.encode("cp1251"), 422, "invalid_json"),
        ('{"texts": ["привет"]}'.encode("utf-16"), 422, "invalid_json"),
        (b'{"texts": ["\xed\xa0\x80"]}', 422, "invalid_json"),
        (b'{"texts": ["a\nb"]}', 422, "invalid_json"),
        (b"[" * 10_000, 422, "invalid_json"),
        (b'{"texts": [NaN]}', 422, "invalid_request"),
        (json.dumps({"texts": ["a"] * 21}).encode(), 422, "too_many_texts"),
        (json.dumps({"texts": ["a", "b" * 201]}).encode(), 422, "text_too_long"),
        (json.dumps({"text": "я" * 100_000}).encode(), 413, "body_too_large"),
        (b" " * 1_000_000, 413, "body_too_large"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_code(server: Server, body: bytes, status: int, code: str) -> None:
    answer = server.post(body)
    assert (answer.status_code, error(answer)) == (status, code)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"Content-Type": ""}, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=cp1251"}, "unsupported_charset"),
        ({"Content-Encoding": "gzip"}, "unsupported_encoding"),
    ],
)
def test_bodies_that_are_no_plain_json_get_415(server: Server, headers: dict[str, str], code: str) -> None:
    answer = server.post({"texts": ["a"]}, headers=headers)
    assert (answer.status_code, error(answer)) == (415, code)


def test_json_in_utf8_may_say_so(server: Server) -> None:
    assert server.post({"texts": ["a"]}, headers={"Content-Type": 'Application/JSON; charset="UTF-8"'}).status_code == 200


def test_message_of_a_refusal_does_not_repeat_the_review(server: Server) -> None:
    secret = "мой телефон 89991234567"
    for body in ({"texts": [{"review": secret}]}, {"texts": [secret * 20]}, {"text": [secret]}):
        answer = server.post(body)
        assert answer.status_code == 422
        assert "8999" not in answer.text


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))))
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_bytes_are_parsed_or_refused_as_the_clients_mistake(body: bytes) -> None:
    try:
        _, texts = parse_request(body, ServingSettings())
    except Problem as refused:
        status = refused.status
        texts = []
    else:
        status = 200
    assert (status == 200 and len(texts) > 0) or (status == 422 and not texts)


@given(st.lists(st.text(max_size=50), min_size=1, max_size=5), st.booleans(), st.booleans())
@hypothesis_settings(max_examples=50, deadline=None)
def test_any_texts_are_parsed_as_they_were_sent(texts: list[str], abstain: bool, probabilities: bool) -> None:
    body = json.dumps({"texts": texts, "abstain": abstain, "probabilities": probabilities}).encode()
    request, parsed = parse_request(body, ServingSettings())
    assert parsed == texts
    assert (request.abstain, request.probabilities) == (abstain, probabilities)


def test_unknown_addresses_and_methods_have_errors_of_the_same_shape(server: Server) -> None:
    missing, wrong = server.get("/nothing"), server.get("/predict")
    assert (missing.status_code, error(missing)) == (404, "not_found")
    assert (wrong.status_code, error(wrong), wrong.headers["Allow"]) == (405, "method_not_allowed", "POST")


def test_request_id_of_the_client_comes_back_unless_it_would_break_a_line(server: Server) -> None:
    assert server.get("/model", headers={"X-Request-ID": "order-7/a"}).headers["X-Request-ID"] == "order-7/a"
    for odd in ("a b", "x" * 129, '"quoted"', ""):
        given_back = server.get("/model", headers={"X-Request-ID": odd}).headers["X-Request-ID"]
        assert len(given_back) == 32
    assert server.get("/model").headers["X-Request-ID"] != server.get("/model").headers["X-Request-ID"]


def test_model_page_says_what_is_served_with_intervals(server: Server) -> None:
    answer = server.get("/model").json()
    assert (answer["model_version"], answer["alias"], answer["candidate"]) == ("1", "champion", "logreg")
    assert answer["gate"]["verdict"] == "passed"
    assert answer["promoted_by"] == "anna"
    assert answer["figures"]["gold/weighted_f1"] == {"value": 0.9, "low": 0.8, "high": 0.95}
    assert "gold/weighted_f1_low" not in answer["figures"]
    assert (answer["gold_rows"], answer["classes"]) == (420, CLASSES)


def test_without_a_model_the_server_lives_and_is_not_ready(start: Callable[..., Server]) -> None:
    server = start(None)
    assert server.get("/health/live").status_code == 200
    for answer in (server.get("/health/ready"), server.get("/model"), server.post({"texts": ["a"]})):
        assert (answer.status_code, error(answer)) == (503, "no_model")
        assert int(answer.headers["Retry-After"]) >= 1
    assert server.get("/metrics").status_code == 200


def test_new_model_answers_the_next_request(
    start: Callable[..., Server], classifier: TextClassifier, other: TextClassifier
) -> None:
    server = start(as_served(classifier))
    for version, model, shift in (("1", classifier, 0), ("2", other, 1)):
        server.service.follower.champion = as_served(model, version)
        answer = server.post({"texts": REVIEWS}).json()
        assert answer["model_version"] == version
        assert [prediction["label"] for prediction in answer["predictions"]] == answers_of(shift)


def test_stopping_server_refuses_what_is_new(start: Callable[..., Server], classifier: TextClassifier) -> None:
    server = start(as_served(classifier))
    server.service.stopping = True
    for answer in (server.get("/health/ready"), server.post({"texts": ["a"]})):
        assert (answer.status_code, error(answer), answer.headers["Connection"]) == (503, "draining", "close")


def test_fault_in_the_model_is_one_500_without_details(start: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    class Faulty:
        classes = CLASSES
        alone = False

        def predict_proba(self, texts: list[str]) -> None:
            raise ValueError(f"secret {texts}")

    server = start(as_served(Faulty()))  # type: ignore[arg-type]
    answer = server.post({"texts": ["a"]})
    assert (answer.status_code, error(answer)) == (500, "internal_error")
    assert "secret" not in answer.text
    fault = next(
        json.loads(JsonFormatter().format(record)) for record in caplog.records if record.message == "a request failed"
    )
    assert (fault["error"], fault["request_id"]) == ("ValueError", answer.headers["X-Request-ID"])
    assert "secret" not in json.dumps(fault)
    assert server.get("/health/live").status_code == 200


def test_keys_are_asked_for_where_they_are_set(start: Callable[..., Server], classifier: TextClassifier) -> None:
    digest = hashlib.sha256(b"another-key-of-some-length").hexdigest()
    server = start(as_served(classifier), api_keys=f"{KEY}, sha256:{digest}")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": digest}, {"Authorization": f"Basic {KEY}"}):
        for answer in (server.post({"texts": ["a"]}, headers=headers), server.get("/model", headers=headers)):
            assert (answer.status_code, error(answer), answer.headers["WWW-Authenticate"]) == (401, "unauthorized", "Bearer")
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"X-API-Key": "another-key-of-some-length"}):
        assert server.post({"texts": ["a"]}, headers=headers).status_code == 200
    assert server.get("/health/ready").status_code == server.get("/metrics").status_code == 200
    assert set(server.get("/openapi.json").json()["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}


@pytest.mark.parametrize("keys", ["kurz", "sha256:beef", "sha256:" + "g" * 64])
def test_unusable_key_is_refused_without_being_shown(keys: str) -> None:
    settings = ServingSettings(api_keys=keys)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="REVIEWCLF_SERVING__API_KEYS") as caught:
        ApiKeys(settings.api_keys)
    assert keys not in str(caught.value)
    assert keys not in repr(settings)


@pytest.mark.parametrize("logged", [False, True])
def test_log_lines_are_json_without_reviews_or_keys_unless_wanted(
    start: Callable[..., Server], classifier: TextClassifier, caplog: pytest.LogCaptureFixture, logged: bool
) -> None:
    server = start(as_served(classifier), log_texts=logged, api_keys=KEY)
    with caplog.at_level(logging.INFO, "reviewclf"):
        headers = {"X-API-Key": KEY, "X-Request-ID": "id-1"}
        server.post({"texts": ["платье отлично"]}, headers=headers)
        server.post(b"{", headers=headers)
        server.get("/nothing/платье")
        server.get("/health/live")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "reviewclf.serving.edge"]
    found = [json.loads(line) for line in lines]
    assert [(line["path"], line["status"]) for line in found] == [("/predict", 200), ("/predict", 422), ("other", 404)]
    assert (found[0]["request_id"], found[0]["texts"], found[0]["model_version"]) == ("id-1", 1, "1")
    assert found[1]["code"] == "invalid_json"
    assert ("платье" in "".join(lines)) is logged
    assert KEY not in "".join(lines)


def test_figures_count_requests_labels_and_errors(start: Callable[..., Server], classifier: TextClassifier) -> None:
    server = start(as_served(classifier))
    server.post({"texts": REVIEWS})
    server.post(b"{")
    server.get("/somewhere")
    text = server.get("/metrics").text
    for line in (
        'reviewclf_requests_total{path="/predict",status="200"} 1.0',
        'reviewclf_requests_total{path="/predict",status="422"} 1.0',
        'reviewclf_requests_total{path="other",status="404"} 1.0',
        'reviewclf_predictions_total{label="посуда",version="1"} 1.0',
        'reviewclf_confidence_count{version="1"} 3.0',
        'reviewclf_errors_total{code="invalid_json"} 1.0',
        "reviewclf_batch_texts_sum 3.0",
        "reviewclf_queue_texts 0.0",
    ):
        assert line in text, line


def test_shadow_counts_disagreements_and_changes_no_answer(
    start: Callable[..., Server], classifier: TextClassifier, other: TextClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(as_served(classifier), as_served(other, "2"), shadow_share=1.0, shadow_log_seconds=0.2)
    with caplog.at_level(logging.INFO, "reviewclf.serving.shadow"):
        for _ in range(4):
            answer = server.post({"texts": REVIEWS}).json()
            assert [prediction["label"] for prediction in answer["predictions"]] == answers_of(0)
        wait_for(lambda: server.service.shadow.compare("1", "2").compared == 12)
        wait_for(lambda: "12 of 12" in caplog.text)
    assert server.get("/model").json()["shadow"] == {
        "model_version": "2",
        "compared": 12,
        "disagreements": 12,
        "disagreement_rate": 1.0,
    }
    text = server.get("/metrics").text
    assert 'reviewclf_shadow_compared_total{challenger="2",champion="1"} 12.0' in text
    labels = 'challenger="2",challenger_label="посуда",champion="1",champion_label="одежда"'
    assert f"reviewclf_shadow_disagreements_total{{{labels}}} 4.0" in text


def test_shadow_that_fails_or_hangs_changes_no_answer(start: Callable[..., Server], classifier: TextClassifier) -> None:
    release = threading.Event()

    class Hanging:
        classes = CLASSES
        alone = False

        def predict_proba(self, texts: list[str]) -> None:
            release.wait(20)
            raise RuntimeError("broken")

    server = start(as_served(classifier), as_served(Hanging(), "2"), shadow_share=1.0)  # type: ignore[arg-type]
    for _ in range(20):
        assert server.post({"texts": REVIEWS}).status_code == 200
    release.set()
    wait_for(lambda: 'reviewclf_shadow_skipped_total{why="failed"} 60.0' in server.get("/metrics").text)


def test_shadow_takes_its_share_of_the_requests(start: Callable[..., Server], classifier: TextClassifier) -> None:
    server = start(as_served(classifier), as_served(classifier, "2"), shadow_share=0.25)
    draws = iter([0.1, 0.3, 0.24, 0.25, 0.9])
    server.service.shadow._chance = lambda: next(draws)
    for _ in range(5):
        server.post({"texts": REVIEWS[:1]})
    wait_for(lambda: server.service.shadow.compare("1", "2").compared == 2)


def test_address_in_use_is_one_clear_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"127.0.0.1:{port} cannot be listened on.*REVIEWCLF_SERVING__PORT"):
            listen("127.0.0.1", port)


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    import time

    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def test_seconds_are_measured_on_what_the_server_answers_with(tmp_path: Path, classifier: TextClassifier) -> None:
    from reviewclf.errors import RegistryError
    from reviewclf.evaluation import measure_latency
    from reviewclf.serving.predictor import served

    classifier.save(tmp_path / "model")
    for workers in (1, 2):
        settings = ServingSettings(workers=workers, max_characters=10, api_keys=KEY)
        with served(tmp_path / "model", settings) as answer:
            found = json.loads(answer(REVIEWS))
            assert [row["label"] for row in found["predictions"]] == answers_of(0)
            latency = measure_latency(answer, [*REVIEWS, "длинный отзыв " * 100], single=10, batch=20, warmup=1)
            assert 0 < latency.p50 <= latency.p95
    (tmp_path / "model" / "model.skops").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"model\.skops"), served(tmp_path / "model", settings):
        pass
