"""What people have done to MLflow, or written into its address: told at once, with the way out; never an empty answer."""

from __future__ import annotations

import http.server
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reviewclf import cli, doctor
from reviewclf.errors import RegistryError, RegistryUnavailableError
from reviewclf.promotion.aliases import promote, refuse, rollback
from reviewclf.promotion.history import History
from reviewclf.promotion.leaderboard import leaderboard
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import aliases, load_model
from reviewclf.registry.tracking import Tracker
from reviewclf.store import Store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db")
    tracker.client.create_registered_model(REGISTERED_MODEL)
    for _ in range(4):
        tracker.client.create_model_version(REGISTERED_MODEL, source=f"{folder}/none", tags={"reviewclf.gate": "passed"})
    return folder / "mlflow.db"


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.case(73)
def test_deleted_experiment_is_told_with_the_way_back_and_comes_back(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(uri)
    run = tracker.open_run("key", kind="candidate", name="a", description="")
    tracker.client.delete_experiment(tracker.experiment_id)
    said = f"mlflow experiments restore --experiment-id {tracker.experiment_id}"
    with pytest.raises(RegistryError, match=said) as caught:
        Tracker(uri)
    assert not isinstance(caught.value, RegistryUnavailableError)
    # A server that was connected before, such as the one of the promotion page, hears of it too.
    for work in (lambda: leaderboard(tracker), lambda: tracker.open_run("key", kind="candidate", name="a", description="")):
        with pytest.raises(RegistryError, match=said):
            work()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in ("leaderboard", "history"):
        result = CliRunner().invoke(cli.app, [command])
        assert isinstance(result.exception, RegistryError)
        assert said in str(result.exception)
    found = [finding for finding in doctor.examine() if finding.subject == "registry"]
    assert [(finding.mark, said in finding.text) for finding in found] == [("missing", True)]
    tracker.client.restore_experiment(tracker.experiment_id)
    assert [item.info.run_id for item in Tracker(uri).find_runs({})] == [run]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("htp://127.0.0.1:5000", r"set MLFLOW_TRACKING_URI to http://HOST:PORT"),
        ("127.0.0.1:5000", r"set MLFLOW_TRACKING_URI to http://HOST:PORT"),
        ("mongodb://anna:s3cret@db/x", r"mongodb://anna:\*\*\*@db/x .*set MLFLOW_TRACKING_URI to"),
        ("http:///", r"set MLFLOW_TRACKING_URI to"),
    ],
)
def test_address_that_is_none_is_told_at_once(address: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said) as caught:
        Tracker(address)
    assert not isinstance(caught.value, RegistryUnavailableError)
    assert "s3cret" not in str(caught.value)


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers everything with what the server was given."""

    def do_GET(self) -> None:
        status, kind, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def http_server() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "passing", "said"),
    [
        (401, b"You are not authenticated", False, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', False, "needs the right to edit the experiment"),
        (404, b"<html>nginx</html>", False, "the address of an MLflow server"),
        (200, b"<html>log in</html>", False, "the address of an MLflow server"),
        (429, b"slower", True, "429"),
        (503, b"later", True, "503"),
    ],
)
def test_refusals_are_told_apart_from_servers_that_are_busy(
    http_server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, passing: bool, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    http_server.answer = (status, "text/html", body)  # type: ignore[attr-defined]
    with pytest.raises(RegistryError, match=said) as caught:
        Tracker(f"http://127.0.0.1:{http_server.server_port}")
    assert isinstance(caught.value, RegistryUnavailableError) is passing


def test_server_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailableError, match="Connection refused"):
        Tracker("http://127.0.0.1:9")


def test_database_of_another_mlflow_or_of_something_else_is_told_at_once(uri: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    database.close()
    with pytest.raises(RegistryError, match="written by another version of MLflow than") as caught:
        Tracker(uri)
    (tmp_path / "text.db").write_text("no database " * 100, encoding="utf-8")
    with pytest.raises(RegistryError, match="file is not a database; the file is damaged") as other:
        Tracker(f"sqlite:///{tmp_path}/text.db")
    assert not any(isinstance(error.value, RegistryUnavailableError) for error in (caught, other))


def test_versions_deleted_in_mlflow_do_not_hold_up_the_registry(uri: str, tmp_path: Path) -> None:
    history = History(Tracker(uri), Store(str(tmp_path / "store")))
    tracker = history.tracker
    for version in "123":
        promote(history, version, reason="", who="anna")
    tracker.client.delete_model_version(REGISTERED_MODEL, "1")
    assert rollback(history, reason="", who="boris").champion == "2"
    assert aliases(tracker) == {"champion": "2"}
    tracker.client.delete_model_version(REGISTERED_MODEL, "3")
    refuse(history, "3", reason="no", who="boris")
    # The champion itself goes: nobody is champion, and the history says so.
    tracker.client.delete_model_version(REGISTERED_MODEL, "2")
    assert promote(history, "4", reason="", who="anna").champion == "4"
    assert aliases(tracker) == {"champion": "4"}
    assert [(event.action, event.version) for event in history.events()[-2:]] == [("move", ""), ("promote", "4")]
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback(history, reason="", who="anna")


def test_version_or_files_that_are_gone_are_named(uri: str, tmp_path: Path) -> None:
    history = History(Tracker(uri), Store(str(tmp_path / "store")))
    tracker = history.tracker
    for version in ("1", "99"):
        with pytest.raises(RegistryError, match=f"models:/{REGISTERED_MODEL}/{version}") as caught:
            load_model(tracker, f"models:/{REGISTERED_MODEL}/{version}", version=version)
        assert not isinstance(caught.value, RegistryUnavailableError)
    with pytest.raises(RegistryError, match="there is no version '99'"):
        promote(history, "99", reason="", who="anna")
    tracker.client.delete_registered_model(REGISTERED_MODEL)
    with pytest.raises(RegistryError, match="there is no version '1'"):
        promote(history, "1", reason="", who="anna")
    assert aliases(tracker) == {}
