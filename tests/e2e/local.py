"""`reviewclf up` and `reviewclf serve` as a user starts them, in a folder with a `.env`, and the ways to look at them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from reviewclf.local.airflow import SECRETS_FILE, AirflowApi
from reviewclf.local.progress import log_lines
from reviewclf.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
MODEL = "review-classifier"
# What nothing here takes on a machine that is busy with other things.
PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.3

T = TypeVar("T")


class LocalPlatform:
    """Airflow, MLflow and the server of online answers on this machine.

    Parameters
    ----------
    folder : Path
        Working directory of all of them; its ``.env`` is what their settings are read from, by each task anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env: dict[str, str] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._api: AirflowApi | None = None
        self.mlflow = ""
        self.server = ""

    # -- settings ----------------------------------------------------------------------------------------------------

    def configure(self, **settings: str | None) -> None:
        """Write settings into ``.env``; None takes one out."""
        self._env = {name: value for name, value in (self._env | settings).items() if value is not None}
        lines = [f"REVIEWCLF_{name}='{value}'\n" for name, value in self._env.items()]
        draft = self.folder / ".env.new"
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(self.folder / ".env")

    @property
    def settings(self) -> Settings:
        """The settings as a task reads them now."""
        return load_settings(_env_file=self.folder / ".env", home=self.folder / "var")

    # -- processes ---------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start Airflow and MLflow; returns as soon as MLflow's address is known, while the first flow goes on."""
        self._start("up")
        self.mlflow = self._said("up", r"^MLflow +(http://\S+)")
        airflow = self._said("up", r"^Airflow +(http://\S+)")
        keys = json.loads((self.folder / "var" / "airflow" / SECRETS_FILE).read_text())
        self._api = AirflowApi(airflow, password=keys["password"])

    def wait_for_first_flow(self) -> None:
        """Wait until `reviewclf up` has driven the reviews to its leaderboard."""
        self._said("up", r"^Press Ctrl-C to stop")

    def serve(self) -> None:
        """Start the server of online answers; returns when it listens."""
        self._start("serve", MLFLOW_TRACKING_URI=self.mlflow)
        self.server = self._said("serve", r"listening on (http://127\.0\.0\.1:\d+)")

    def stop(self) -> None:
        """End both, as Ctrl-C does."""
        if self._api is not None:
            self._api.close()
        for process in reversed(self._children):
            process.send_signal(signal.SIGTERM)
        for process in self._children:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, command: str, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REVIEWCLF_", "MLFLOW_", "AIRFLOW_"))}
        with self._log(command).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "reviewclf.cli", command],
                cwd=self.folder,
                env={**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._children.append(process)

    def _log(self, command: str) -> Path:
        return self.folder / f"{command}.log"

    def _said(self, command: str, pattern: str) -> str:
        def look() -> str | None:
            found = re.search(pattern, self._log(command).read_text(encoding="utf-8"), flags=re.MULTILINE)
            return found and found[found.lastindex or 0]

        return self.wait(f"`reviewclf {command}` to say {pattern!r}", look)

    def wait(self, what: str, look: Callable[[], T | None]) -> T:
        """Look until there is something to see; what has died, or takes too long, fails the test with its last words."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = look()
            if found:
                return found
            ended = [process.args for process in self._children if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"{path}:\n{path.read_text()[-4000:]}" for path in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"waited for {what}; ended by itself: {ended or 'nothing'}\n{logs}")
            time.sleep(_POLL_SECONDS)

    # -- Airflow -----------------------------------------------------------------------------------------------------

    @property
    def api(self) -> AirflowApi:
        """Airflow's REST API, as the user `admin`."""
        assert self._api is not None, "not started"
        return self._api

    def run(self, dag_id: str, **params: Any) -> dict[str, Any]:
        """Trigger a DAG and wait for its run's end; see :meth:`ended`."""
        return self.ended(dag_id, self.api.trigger(dag_id, conf=params or None))

    def followed(self, dag_id: str, cause: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for the run of a DAG that the assets of another run have caused, and for its end."""

        def look() -> str | None:
            for run in self.api.runs(dag_id, run_type="asset_triggered"):
                if (cause["dag_id"], cause["run_id"]) in self.api.upstream_runs(dag_id, run["dag_run_id"]):
                    return str(run["dag_run_id"])
            return None

        return self.ended(dag_id, self.wait(f"a run of {dag_id} after {cause['dag_id']}", look))

    def ended(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run: its id, state, the tasks' states and what they handed on, by task."""

        def look() -> str | None:
            state = self.api.run(dag_id, run_id)["state"]
            return state if state in ("success", "failed") else None

        state = self.wait(f"{dag_id} {run_id} to end", look)
        tasks = self.api.tasks(dag_id, run_id)
        return {
            "dag_id": dag_id,
            "run_id": run_id,
            "state": state,
            "tasks": {task["task_id"]: task["state"] for task in tasks},
            "results": {task["task_id"]: self.api.result(task) for task in tasks if task["map_index"] < 0},
            "failed": {task["task_id"]: log_lines(self._task_log(task)) for task in tasks if task["state"] == "failed"},
        }

    def again(self, run: Mapping[str, Any], task_id: str) -> dict[str, Any]:
        """Clear a task of a run and what comes after it, as people do in Airflow's UI, and wait for the new end."""
        body = {
            "dry_run": False,
            "dag_run_id": run["run_id"],
            "task_ids": [task_id],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.api._call("POST", f"/dags/{run['dag_id']}/clearTaskInstances", json=body)
        return self.ended(run["dag_id"], run["run_id"])

    def quiet(self) -> None:
        """Wait until no run is going on or waits."""
        dags = ("reviews_ingest", "reviews_label", "reviews_retrain", "reviews_score")
        self.wait(
            "all runs to end", lambda: not any(self.api.runs(dag_id, state=["queued", "running"]) for dag_id in dags) or None
        )

    def _task_log(self, task: Mapping[str, Any]) -> Path:
        folder = self.folder / "var" / "airflow" / "logs"
        folder = folder / f"dag_id={task['dag_id']}" / f"run_id={task['dag_run_id']}" / f"task_id={task['task_id']}"
        return folder / f"attempt={task['try_number']}.log"

    # -- MLflow and the server ---------------------------------------------------------------------------------------

    @property
    def registry(self) -> MlflowClient:
        """MLflow, asked over HTTP."""
        return MlflowClient(self.mlflow)

    def aliases(self) -> dict[str, str]:
        """Version by alias."""
        return {name: str(number) for name, number in self.registry.get_registered_model(MODEL).aliases.items()}

    def version(self, number: str) -> ModelVersion:
        """A version with its tags and description."""
        return self.registry.get_model_version(MODEL, number)

    def versions(self) -> list[str]:
        """Numbers of all versions, oldest first."""
        return sorted((str(found.version) for found in self.registry.search_model_versions(f"name='{MODEL}'")), key=int)

    def ask(self, path: str, **options: Any) -> httpx.Response:
        """Ask the server, GET or, with a body, POST."""
        method = "POST" if options else "GET"
        return httpx.request(method, f"{self.server}{path}", trust_env=False, timeout=PATIENCE_SECONDS, **options)

    def wait_until_served(self, version: str) -> None:
        """Wait until all processes of the server answer with a version."""

        def look() -> bool:
            figures = self.ask("/metrics").text
            answering = re.search(rf'^reviewclf_model_info{{.*version="{version}"}} (.+)$', figures, re.MULTILINE)
            workers = re.search(r"^reviewclf_workers (.+)$", figures, re.MULTILINE)
            return answering is not None and workers is not None and answering[1] == workers[1]

        self.wait(f"version {version} to be served", look)
