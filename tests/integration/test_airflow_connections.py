"""Sources that Airflow's connections name, and what a task does with an error: tried again, or failed at once."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy
from airflow.sdk.exceptions import AirflowFailException

from reviewclf.data.sources.connections import connection_url
from reviewclf.errors import RegistryUnavailableError, SettingsError
from reviewclf.manifest import Manifest
from reviewclf.registry.runs import tracker_of
from reviewclf.settings import Settings
from reviewclf.stages.ingest import ingest

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t/@: word"


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    for folder in ("dags", "plugins"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("REVIEWCLF_HOME", str(tmp_path / "home"))
    return importlib.import_module("reviewclf.orchestration.flow")


Connect = Callable[..., None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def make(**fields: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_REVIEWS_DB", json.dumps(fields))
        monkeypatch.setenv("REVIEWCLF_SOURCE", "airflow://reviews_db")
        monkeypatch.setenv("REVIEWCLF_INGEST__TABLE", "reviews")

    return make


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "данные" / "reviews.db"
    path.parent.mkdir()
    engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(path)))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE reviews (review_id INTEGER, text TEXT)")
        connection.exec_driver_sql("INSERT INTO reviews VALUES (1, 'Платье село отлично'), (2, 'Сковорода пригорает')")
    engine.dispose()
    return path


@pytest.mark.case(64)
@pytest.mark.parametrize("place", ["host", "schema", "both", "relative", "uri"])
def test_sqlite_connection_is_read_wherever_its_path_is_written(
    flow: ModuleType, connect: Connect, database: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fields = {
        "host": {"host": str(database)},
        "schema": {"schema": str(database)},
        "both": {"host": str(database.parent), "schema": database.name},
        "relative": {"host": f"{database.parent.name}/{database.name}"},
        "uri": {},
    }[place]
    extra = {"timeout": 5, "__extra__": '{"a": 1}', "nested": {"a": [1]}, "note": "for people"}
    connect(conn_type="sqlite", extra=extra, **fields)
    if place == "uri":
        monkeypatch.setenv(
            "AIRFLOW_CONN_REVIEWS_DB", sqlalchemy.URL.create("sqlite", database=str(database)).render_as_string()
        )
    manifest = flow.run_stage(ingest)
    assert manifest["counts"]["rows_in"] == 2


@pytest.mark.case(64)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"conn_type": "http", "host": "h", "password": SECRET}, "type 'http' is no source; it may be sqlite, postgres"),
        ({"conn_type": "sqlite"}, "names no file"),
        ({"conn_type": "postgres", "password": SECRET}, "names no host"),
        (
            {"conn_type": "mysql", "host": "h", "password": SECRET, "extra": {"sqlalchemy_scheme": "http"}},
            "does not fit its type",
        ),
    ],
)
def test_connection_that_is_no_source_fails_at_once_and_shows_no_password(
    flow: ModuleType, connect: Connect, fields: dict[str, Any], said: str
) -> None:
    connect(**fields)
    with pytest.raises(AirflowFailException, match=f"SettingsError: REVIEWCLF_SOURCE=airflow://reviews_db: .*{said}") as caught:
        flow.run_stage(ingest)
    assert SECRET not in str(caught.value)


def test_connection_that_is_not_there_fails_at_once(flow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_SOURCE", "airflow://nobody")
    with pytest.raises(AirflowFailException, match=r"airflow://nobody: there is no .*airflow connections add nobody"):
        flow.run_stage(ingest)


def test_stages_that_read_no_source_need_no_connection(flow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_SOURCE", "airflow://nobody")
    assert flow.run_stage(lambda settings: Manifest(stage="s", digest="d"))["stage"] == "s"


def test_drivers_get_the_options_that_they_know_and_no_others() -> None:
    server: dict[str, Any] = {
        "host": "db.example.com",
        "port": 5432,
        "login": "reader",
        "password": SECRET,
        "schema": "reviews",
    }
    known = {"sslmode": "require", "connect_timeout": 10, "keepalives": True}
    others = {"__extra__": "{}", "cursor": "dict", "x": {"a": 1}}
    made = connection_url("c", kind="Postgres", **server, extra=known | others)
    url = sqlalchemy.make_url(made)
    assert (url.drivername, url.host, url.port, url.username, url.password) == (
        "postgresql", "db.example.com", 5432, "reader", SECRET
    )  # fmt: skip
    assert (url.database, dict(url.query)) == ("reviews", {"sslmode": "require", "connect_timeout": "10", "keepalives": "1"})
    made = connection_url(
        "c", kind="mysql", host="h", schema="d", extra={"charset": "utf8mb4", "sqlalchemy_scheme": "mysql+pymysql"}
    )
    assert made == "mysql+pymysql://h/d?charset=utf8mb4"
    assert connection_url("c", kind="mssql", host="h", schema="d", extra={"Encrypt": "yes"}) == "mssql://h/d?Encrypt=yes"
    with pytest.raises(SettingsError, match="c: a connection of type 'none' is no source"):
        connection_url("c", kind=None)


@pytest.mark.case(73)
def test_task_fails_at_once_where_the_registry_refuses(flow: ModuleType, tmp_path: Path) -> None:
    def stage(settings: Settings) -> Manifest:
        tracker = tracker_of(settings)
        tracker.client.delete_experiment(tracker.experiment_id)
        tracker_of(settings)
        raise AssertionError("the experiment was deleted")

    with pytest.raises(AirflowFailException, match="mlflow experiments restore --experiment-id"):
        flow.run_stage(stage)


def test_task_is_tried_again_while_the_registry_is_away(flow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError):
        flow.run_stage(lambda settings: tracker_of(settings))
