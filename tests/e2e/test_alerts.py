"""Alerts where Airflow really calls them: in the worker, the DAG processor and the triggerer; received by a real web hook."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reviewclf.local.airflow import AirflowApi, airflow_command, airflow_environment, child_environment, load_keys
from reviewclf.local.processes import Processes, free_port
from tests.receivers import HttpReceiver, MailReceiver, receiving

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180.0

DAGS = """
from __future__ import annotations

import time
from datetime import timedelta

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference, dag, task

from reviewclf.orchestration.alerts import report_failure, send_alert
from reviewclf.orchestration.flow import TASK_DEFAULTS, done_within, run_stage

COMMON = {
    "schedule": None,
    "catchup": False,
    "default_args": {**TASK_DEFAULTS, "retries": 1, "retry_delay": timedelta(seconds=1), "retry_exponential_backoff": 1},
    "on_failure_callback": report_failure,
}


@dag(**COMMON)
def always_fails():
    @task
    def broken():
        raise OSError("no space left: {{ ti }}")

    broken()


@dag(**{**COMMON, "default_args": {**COMMON["default_args"], "retries": 0}})
def many_fail():
    @task
    def shard(number):
        raise OSError("the server is away")

    shard.expand(number=list(range(8)))


@dag(**COMMON)
def refused():
    @task
    def gate():
        send_alert("gate", "No candidate passed the gate", "logreg: weighted F1 0.61 < 0.74")

    gate()


@dag(dagrun_timeout=timedelta(seconds=12), deadline=done_within(3 / 3600), **COMMON)
def too_slow():
    @task
    def wait():
        time.sleep(120)

    wait()


@dag(
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=3),
        callback=AsyncCallback("reviewclf_alerts.report_deadline", kwargs={"hours": 0.5}),
    ),
    **COMMON,
)
def queued_before_the_upgrade():
    @task
    def wait():
        time.sleep(10)

    wait()


always_fails()
many_fail()
queued_before_the_upgrade()
refused()
too_slow()
"""


@pytest.fixture(scope="module")
def hook() -> Iterator[HttpReceiver]:
    with receiving(HttpReceiver()) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def mail() -> Iterator[MailReceiver]:
    with receiving(MailReceiver()) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dags")
    shutil.copy(ROOT / "dags" / "reviews_alert_test.py", folder)
    (folder / "going_wrong.py").write_text(DAGS)
    return folder


@pytest.fixture(scope="module")
def airflow(
    dags: Path, hook: HttpReceiver, mail: MailReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowApi]:
    """Airflow as `reviewclf up` starts it, with DAGs that go wrong in each way and two channels for alerts."""
    folder = tmp_path_factory.mktemp("airflow")
    home = folder / "airflow"
    keys, _ = load_keys(home)
    port = free_port(18080)
    plain = {"to": "night@example.com", "from_email": "airflow@example.com", "disable_ssl": True, "disable_tls": True}
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("REVIEWCLF_", "MLFLOW_", "AIRFLOW_"))},
        **child_environment(home=folder, tracking_uri=f"sqlite:///{folder}/mlflow.db"),
        **airflow_environment(home=home, dags=dags, plugins=ROOT / "plugins", port=port, keys=keys),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
        "AIRFLOW_CONN_MAIL": json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": mail.port, "extra": plain}),
        "REVIEWCLF_ALERTS__CONNECTIONS": '["ops", "mail"]',
    }
    processes = Processes(home=folder, logs=folder / "logs")
    api = AirflowApi(f"http://127.0.0.1:{port}", password=keys["password"])
    try:
        migrate = processes.start("db-migrate", airflow_command("db", "migrate"), env=env)
        assert processes.finish(migrate, timeout=START_SECONDS) == 0
        for component in ("api-server", "dag-processor", "scheduler", "triggerer"):
            processes.start(component, airflow_command(component), env=env)
        ends = time.monotonic() + START_SECONDS
        while not (api.healthy() and api.dag("too_slow") and api.dag("reviews_alert_test")):
            processes.check()
            assert time.monotonic() < ends, api.import_errors() if api.healthy() else "Airflow does not start"
            time.sleep(0.5)
        # One connection in Airflow's database, one in the environment: each component has its own way to either.
        api._call("POST", "/connections", json={"connection_id": "ops", "conn_type": "http", "host": hook.address})
        for dag_id in ("always_fails", "many_fail", "queued_before_the_upgrade", "refused", "too_slow"):
            api.unpause(dag_id)
        yield api
    finally:
        api.close()
        processes.stop()


@pytest.fixture(scope="module")
def runs(airflow: AirflowApi) -> dict[str, str]:
    """One run of each DAG, started together."""
    dag_ids = ("too_slow", "queued_before_the_upgrade", "always_fails", "refused", "reviews_alert_test", "many_fail")
    return {dag_id: airflow.trigger(dag_id) for dag_id in dag_ids}


def ended(airflow: AirflowApi, dag_id: str, run_id: str) -> dict[str, Any]:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        run = airflow.run(dag_id, run_id)
        if run["state"] in ("success", "failed"):
            return run
        time.sleep(0.5)
    raise AssertionError(f"{dag_id} does not end")


def test_failed_task_is_told_once_after_its_last_attempt(airflow: AirflowApi, runs: dict[str, str], hook: HttpReceiver) -> None:
    alert = hook.wait_for("FAILED always_fails.broken", seconds=120)
    body = alert.body["body"]
    assert "Error: OSError: no space left: {{ ti }}" in body
    assert f"Run: {runs['always_fails']}" in body
    assert "Attempt: 2" in body
    assert f"Log: {airflow.address}/dags/always_fails/runs/" in body
    assert "What to do: " in body
    assert ended(airflow, "always_fails", runs["always_fails"])["state"] == "failed"


def test_alert_of_a_task_reaches_the_mail_server_too(
    airflow: AirflowApi, runs: dict[str, str], hook: HttpReceiver, mail: MailReceiver
) -> None:
    alert = hook.wait_for("No candidate passed the gate")
    assert alert.body["body"].splitlines()[:4] == [
        "DAG: refused",
        f"Run: {runs['refused']}",
        "Task: gate",
        "logreg: weighted F1 0.61 < 0.74",
    ]
    assert f"Log: {airflow.address}/dags/refused/runs/" in alert.body["body"]
    ends = time.monotonic() + 30
    while not any("passed the gate" in message["Subject"] for message in mail.messages) and time.monotonic() < ends:
        time.sleep(0.2)
    assert "[reviewclf] No candidate passed the gate" in [message["Subject"] for message in mail.messages]
    assert set(mail.recipients) == {"night@example.com"}


def test_server_that_fails_every_shard_is_told_a_few_times_only(
    airflow: AirflowApi, runs: dict[str, str], hook: HttpReceiver
) -> None:
    assert ended(airflow, "many_fail", runs["many_fail"])["state"] == "failed"
    subjects = [request.body["subject"] for request in hook.requests if "many_fail" in request.body["subject"]]
    assert 1 <= len(subjects) <= 5, subjects  # two that fail at the same moment count each other


def test_test_alert_goes_out_and_its_run_succeeds(airflow: AirflowApi, runs: dict[str, str], hook: HttpReceiver) -> None:
    alert = hook.wait_for("Test alert (failure)", seconds=120)
    assert alert.body["body"] == "This is a test. Nothing has happened."
    assert ended(airflow, "reviews_alert_test", runs["reviews_alert_test"])["state"] == "success"


def test_run_that_is_late_is_told_by_the_triggerer(airflow: AirflowApi, runs: dict[str, str], hook: HttpReceiver) -> None:
    body = hook.wait_for("LATE too_slow", seconds=120).body["body"]
    assert f"Run: {runs['too_slow']}" in body
    assert f"Run page: {airflow.address}/dags/too_slow/runs/" in body


def test_deadline_that_version_0_1_wrote_into_airflows_database_is_told(runs: dict[str, str], hook: HttpReceiver) -> None:
    body = hook.wait_for("LATE queued_before_the_upgrade", seconds=120).body["body"]
    assert f"Run: {runs['queued_before_the_upgrade']}" in body


def test_run_past_its_time_limit_is_told_by_the_dag_processor(
    airflow: AirflowApi, runs: dict[str, str], hook: HttpReceiver
) -> None:
    body = hook.wait_for("FAILED too_slow", seconds=120).body["body"]
    assert "timed_out" in body
    assert ended(airflow, "too_slow", runs["too_slow"])["state"] == "failed"


def test_dag_file_that_cannot_be_loaded_is_told(airflow: AirflowApi, dags: Path, hook: HttpReceiver) -> None:
    (dags / "broken_file.py").write_text("from airflow.sdk import dag\n\nraise RuntimeError('REVIEWCLF_SEED is no number')\n")
    alert = hook.wait_for(f"DAG file {dags / 'broken_file.py'} cannot be loaded", seconds=120)
    assert "RuntimeError: REVIEWCLF_SEED is no number" in alert.body["body"]


def test_nothing_was_told_twice(hook: HttpReceiver, runs: dict[str, str]) -> None:
    subjects = [request.body["subject"] for request in hook.requests]
    assert sorted(subjects) == sorted(set(subjects))
