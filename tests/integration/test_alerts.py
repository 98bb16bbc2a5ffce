"""Alerts over Airflow's real hooks and notifiers; only what is at the other end of the network stands in."""

from __future__ import annotations

import importlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.receivers import HttpReceiver, MailReceiver, receiving

TOKEN = "1234567:secret-of-the-bot"
BODY = "DAG: reviews_ingest\nError: column {{ text }} & <b>rows</b>"


@pytest.fixture(scope="module")
def alerts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The plugin, with an Airflow home of its own: importing it makes Airflow write its configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "False")
        patch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.example.com/")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield importlib.import_module("reviewclf.orchestration.alerts")


@pytest.fixture
def http() -> Iterator[HttpReceiver]:
    with receiving(HttpReceiver()) as receiver:
        yield receiver


@pytest.fixture
def mail() -> Iterator[MailReceiver]:
    with receiving(MailReceiver()) as receiver:
        yield receiver


Connect = Callable[..., None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Connect:
    """Make a connection and let alerts go over it, beside those made before."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def make(name: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
        names.append(name)
        monkeypatch.setenv("REVIEWCLF_ALERTS__CONNECTIONS", json.dumps(names))
        monkeypatch.setenv("REVIEWCLF_ALERTS__TIMEOUT_SECONDS", "3")

    return make


def test_webhook_gets_kind_subject_body_and_the_connections_headers(
    alerts: ModuleType, http: HttpReceiver, connect: Connect
) -> None:
    connect("ops", conn_type="http", host=f"{http.address}/hook/42", extra={"Authorization": "Bearer abc"})
    assert alerts.deliver("failure", "FAILED reviews_ingest", BODY) == {}
    (request,) = http.requests
    assert (request.path, request.headers["Authorization"]) == ("/hook/42", "Bearer abc")
    # What looks like a template is text and stays text.
    assert request.body == {
        "source": "reviewclf",
        "kind": "failure",
        "subject": "FAILED reviews_ingest",
        "body": BODY,
        "text": f"FAILED reviews_ingest\n{BODY}",
    }


def test_email_goes_to_all_addresses_and_shows_markup_as_text(alerts: ModuleType, mail: MailReceiver, connect: Connect) -> None:
    extra = {
        "from_email": "airflow@example.com",
        "to": "a@example.com, b@example.com",
        "disable_ssl": True,
        "disable_tls": True,
    }
    connect("mail", conn_type="smtp", host="127.0.0.1", port=mail.port, extra=extra)
    assert alerts.deliver("gate", "Gate refused\nall", BODY) == {}
    assert mail.recipients == ["a@example.com", "b@example.com"]
    (message,) = mail.messages
    assert (message["Subject"], message["From"]) == ("[reviewclf] Gate refused all", "airflow@example.com")
    text = next(part for part in message.walk() if part.get_content_type() == "text/html").get_content()
    assert "{{ text }} &amp; &lt;b&gt;rows&lt;/b&gt;" in text


def test_slack_webhook_and_bot_get_escaped_text(alerts: ModuleType, http: HttpReceiver, connect: Connect) -> None:
    http.answer = b'{"ok": true}'
    connect("slack_hook", conn_type="slackwebhook", password=f"{http.address}/services/T0/B0/XYZ")
    connect("slack_bot", conn_type="slack", password="xoxb-1", extra={"channel": "#ночь", "base_url": f"{http.address}/api/"})
    assert alerts.deliver("drift", "Drift: length", BODY) == {}
    bot, hook = sorted(http.requests, key=lambda request: request.path)
    text = "*Drift: length*\nDAG: reviews_ingest\nError: column {{ text }} &amp; &lt;b&gt;rows&lt;/b&gt;"
    assert (hook.path, hook.body["text"]) == ("/services/T0/B0/XYZ", text)
    assert (bot.path, bot.headers["Authorization"]) == ("/api/chat.postMessage", "Bearer xoxb-1")
    assert (bot.body["channel"], bot.body["text"]) == ("#ночь", text)


def test_telegram_bot_sends_plain_text_to_its_chat(alerts: ModuleType, http: HttpReceiver, connect: Connect) -> None:
    http.answer = b'{"ok": true, "result": {"message_id": 1, "date": 1, "chat": {"id": -100, "type": "group"}}}'
    connect("telegram_alerts", conn_type="telegram", password=TOKEN, host="-100", extra={"base_url": http.address})
    assert alerts.deliver("promotion", "Version 7 is champion now", BODY) == {}
    (request,) = http.requests
    assert request.path == f"/bot{TOKEN}/sendMessage"
    assert request.body["text"] == f"Version 7 is champion now\n\n{BODY}"
    assert (request.body["chat_id"], "parse_mode" in request.body) == ("-100", False)


def test_long_text_is_cut_to_what_messengers_take(alerts: ModuleType, http: HttpReceiver, connect: Connect) -> None:
    http.answer = b'{"ok": true, "result": {"message_id": 1, "date": 1, "chat": {"id": -100, "type": "group"}}}'
    connect("telegram_alerts", conn_type="telegram", password=TOKEN, host="-100", extra={"base_url": http.address})
    assert alerts.deliver("failure", "FAILED", "ы" * 20_000) == {}
    assert len(http.requests[0].body["text"]) < 4096


def test_one_dead_channel_keeps_no_other_from_its_alert_and_is_logged(
    alerts: ModuleType, http: HttpReceiver, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    connect("dead", conn_type="smtp", host="127.0.0.1", port=port, extra={"to": "a@example.com", "disable_ssl": True})
    connect("unknown_kind", conn_type="ftp", host="127.0.0.1")
    connect("nobody", conn_type="smtp", host="127.0.0.1", port=port)
    connect("ops", conn_type="http", host=http.address)
    with caplog.at_level(logging.ERROR):
        alerts.send_alert("failure", "FAILED x", "why")
    assert [request.body["subject"] for request in http.requests] == ["FAILED x"]
    assert "not delivered to the connection dead: " in caplog.text
    assert "alerts go over smtp, slackwebhook, slack, telegram, http" in caplog.text
    assert "names nobody to write to" in caplog.text


def test_server_that_never_answers_is_given_up_in_time(
    alerts: ModuleType, http: HttpReceiver, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    http.delay = 20.0
    for name in ("first", "second", "third"):
        connect(name, conn_type="http", host=http.address)
    monkeypatch.setenv("REVIEWCLF_ALERTS__TIMEOUT_SECONDS", "1")
    started = time.monotonic()
    assert set(alerts.deliver("failure", "FAILED x", "why")) == {"first", "second", "third"}
    assert time.monotonic() - started < 10


def test_refusing_server_is_named_without_the_secret(alerts: ModuleType, http: HttpReceiver, connect: Connect) -> None:
    http.status, http.answer = 401, b'{"ok": false, "error_code": 401, "description": "Unauthorized"}'
    connect("telegram_alerts", conn_type="telegram", password=TOKEN, host="-100", extra={"base_url": http.address})
    connect("slack_hook", conn_type="slackwebhook", password="http://127.0.0.1:9/services/T0/B0/XYZ")
    undelivered = alerts.deliver("failure", "FAILED x", "why")
    assert set(undelivered) == {"telegram_alerts", "slack_hook"}
    assert TOKEN not in str(undelivered)
    assert "T0/B0/XYZ" not in str(undelivered)


def test_kinds_that_nobody_wants_are_only_logged(
    alerts: ModuleType, http: HttpReceiver, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect("ops", conn_type="http", host=http.address)
    monkeypatch.setenv("REVIEWCLF_ALERTS__KINDS", '["failure"]')
    with caplog.at_level(logging.WARNING):
        alerts.send_alert("promotion", "Version 7 is champion now", "why")
    assert http.requests == []
    assert "Version 7 is champion now" in caplog.text


@pytest.mark.parametrize("variable", ["REVIEWCLF_ALERTS__KINDS", "REVIEWCLF_ALERTS__CONNECTIONS"])
def test_wrong_settings_and_missing_connections_never_raise(
    alerts: ModuleType, variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, '["nothing_of_the_kind"]')
    alerts.send_alert("failure", "FAILED x", "why")
    assert "FAILED x' was not delivered" in caplog.text
    assert "nothing_of_the_kind" in caplog.text


def test_run_that_failed_by_its_tasks_is_not_told_twice(alerts: ModuleType, http: HttpReceiver, connect: Connect) -> None:
    connect("ops", conn_type="http", host=http.address)
    run = {"dag_run": SimpleNamespace(dag_id="reviews_label", run_id="night 1")}
    alerts.report_failure({**run, "reason": "task_failure"})
    assert http.requests == []
    alerts.report_failure({**run, "reason": "timed_out"})
    (request,) = http.requests
    assert request.body["subject"] == "FAILED reviews_label"
    assert "the run took longer than it may" in request.body["body"]
    assert "http://airflow.example.com/dags/reviews_label/runs/night%201" in request.body["body"]


def test_alert_from_outside_of_tasks_says_what_to_do(alerts: ModuleType, http: HttpReceiver, connect: Connect) -> None:
    connect("ops", conn_type="http", host=http.address)
    alerts.alert_if_budget_spent([])
    assert http.requests == []
    alerts.alert_if_budget_spent(["REVIEWCLF_LLM__MAX_TOKENS=10 is reached", "REVIEWCLF_LLM__MAX_TOKENS=10 is reached"])
    alerts.send_alert("promotion", "Version 3 is champion now", "Reason: passed the gate")
    budget, promotion = (request.body for request in http.requests)
    assert (budget["kind"], promotion["kind"]) == ("budget", "promotion")
    assert budget["body"].count("REVIEWCLF_LLM__MAX_TOKENS=10 is reached") == 1
    assert promotion["body"].splitlines() == [
        "Reason: passed the gate",
        "What to do: nothing if you expected it; else trigger the DAG reviews_rollback with a reason.",
    ]


def test_refused_candidates_and_promotions_are_told_with_reasons(
    alerts: ModuleType, http: HttpReceiver, connect: Connect
) -> None:
    flow = importlib.import_module("reviewclf.orchestration.flow")
    connect("ops", conn_type="http", host=http.address)
    verdicts = {"logreg": {"verdict": "failed", "reason": "weighted F1 0.61 < 0.74", "version": "3"}}
    flow.alert_if_refused({"details": {"verdicts": verdicts, "challenger": {"version": "3"}}})
    flow.alert_of_promotion({"details": {"promoted": False, "champion": "2"}})
    assert http.requests == []
    flow.alert_if_refused({"details": {"verdicts": verdicts, "challenger": None}})
    flow.alert_of_promotion({"details": {"promoted": True, "champion": "3", "previous": "2", "reason": "passed"}})
    refused, promoted = (request.body for request in http.requests)
    assert (refused["kind"], promoted["kind"]) == ("gate", "promotion")
    assert "logreg (version 3): weighted F1 0.61 < 0.74" in refused["body"]
    assert promoted["subject"] == "Version 3 is champion now, was 2"
