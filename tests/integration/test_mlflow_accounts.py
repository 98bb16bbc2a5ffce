"""Accounts of the MLflow server as the platform of a team makes them: who may do what, on a real server."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import sys
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import httpx
import pytest

from infra.setup import mlflow_accounts
from tests.integration.test_team_services import SETUP, free_port, running

NAME = "review-classifier"


class Server(NamedTuple):
    """A running MLflow with accounts: its address, the services' passwords, and the environment of the script."""

    address: str
    passwords: dict[str, str]
    environment: dict[str, str]

    def ask(self, account: tuple[str, str] | None, method: str, path: str, **options: object) -> httpx.Response:
        address = f"{self.address}/api/2.0/mlflow/{path}"
        return httpx.request(method, address, auth=account, timeout=30, trust_env=False, **options)  # type: ignore[arg-type]

    def as_service(self, name: str) -> tuple[str, str]:
        return name, self.passwords[name]

    def accounts(self, *arguments: str) -> str:
        """What the script prints, run in this process: MLflow takes seconds to import."""
        import mlflow

        printed = io.StringIO()
        with mock.patch.dict(os.environ, self.environment), contextlib.redirect_stdout(printed):
            try:
                mlflow_accounts.main(list(arguments))
            finally:
                mlflow.set_tracking_uri(None)
        return printed.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    settings = (SETUP / "mlflow_accounts.ini").read_text()
    own = folder / "accounts.ini"
    own.write_text(settings.replace("postgresql:///mlflow_accounts", f"sqlite:///{folder / 'accounts.db'}"))
    assert own.read_text() != settings
    passwords = {name: secrets.token_urlsafe(18) for name in ("admin", "platform", "serving")}
    address = f"http://127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(own),
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(18),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--port", address.rpartition(":")[2], "--workers", "1"]
    command += ["--app-name", "basic-auth", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]

    def ready() -> None:
        httpx.get(f"{address}/health", trust_env=False).raise_for_status()

    script = {f"MLFLOW_{name.upper()}_PASSWORD": password for name, password in passwords.items()}
    with running(command, ready=ready, log=folder / "log", env=environment, cwd=folder):
        started = Server(address, passwords, script | {"MLFLOW_TRACKING_URI": address})
        # As at a second start of the platform: everything is there already.
        for _ in range(2):
            started.accounts()
        yield started


ALIAS = {"name": NAME, "alias": "champion", "version": "1"}
MODEL = "registered-models/get"


def test_nothing_is_shown_without_an_account(server: Server) -> None:
    assert server.ask(None, "GET", MODEL, params={"name": NAME}).status_code == 401
    assert server.ask(("serving", "wrong"), "GET", MODEL, params={"name": NAME}).status_code == 401


def test_platform_trains_and_promotes(server: Server) -> None:
    account = server.as_service("platform")
    experiment = server.ask(account, "GET", "experiments/get-by-name", params={"experiment_name": NAME}).json()["experiment"]
    run = server.ask(account, "POST", "runs/create", json={"experiment_id": experiment["experiment_id"]}).json()["run"]["info"]
    version = {"name": NAME, "run_id": run["run_id"], "source": run["artifact_uri"] + "/model"}
    assert server.ask(account, "POST", "model-versions/create", json=version).json()["model_version"]["version"] == "1"
    assert server.ask(account, "POST", "registered-models/alias", json=ALIAS).status_code == 200


def test_serving_reads_and_changes_nothing(server: Server) -> None:
    account = server.as_service("serving")
    assert server.ask(account, "GET", MODEL, params={"name": NAME}).status_code == 200
    assert server.ask(account, "POST", "registered-models/alias", json=ALIAS).status_code == 403
    assert server.ask(account, "POST", "model-versions/create", json={"name": NAME, "source": "x"}).status_code == 403
    assert server.ask(account, "DELETE", "registered-models/delete", json={"name": NAME}).status_code == 403


def test_person_promotes_only_when_told_so_and_goes(server: Server) -> None:
    def password(printed: str) -> str:
        return re.fullmatch(r"anna: (\S+)\n", printed)[1]  # type: ignore[index]

    reader = ("anna", password(server.accounts("person", "anna")))
    assert server.ask(reader, "GET", MODEL, params={"name": NAME}).status_code == 200
    assert server.ask(reader, "POST", "registered-models/alias", json=ALIAS).status_code == 403
    promoter = ("anna", password(server.accounts("person", "anna", "--promote")))
    assert server.ask(promoter, "POST", "registered-models/alias", json=ALIAS).status_code == 200
    server.accounts("remove", "anna")
    assert server.ask(promoter, "GET", MODEL, params={"name": NAME}).status_code == 401
