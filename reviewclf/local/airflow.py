"""The local Airflow: its environment, its processes and its REST API."""

from __future__ import annotations

import json
import os
import secrets
import sys
import sysconfig
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import httpx

import reviewclf
from reviewclf.local.processes import LocalError

USER = "admin"
_READ_ATTEMPTS = 5
SECRETS_FILE = "secrets.json"
PASSWORDS_FILE = "passwords.json"


def airflow_command(*arguments: str) -> list[str]:
    """``python -m airflow ...``: the installed ``airflow`` script fails where its path holds a space."""
    return [sys.executable, "-m", "airflow", *arguments]


def child_environment(*, home: Path, tracking_uri: str) -> dict[str, str]:
    """Make the environment of all children: that of this process, with absolute paths, and quiet.

    Parameters
    ----------
    home : Path
        Absolute ``REVIEWCLF_HOME``.
    tracking_uri : str
        Where MLflow is.
    """
    package_root = Path(reviewclf.__file__).resolve().parent.parent
    path = os.environ.get("PYTHONPATH", "")
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    if package_root not in installed:
        path = os.pathsep.join(filter(None, (str(package_root), path)))
    local = "127.0.0.1,localhost"
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "PYTHONPATH": path,
        # `python -m` would put the working directory first, and a folder there could hide a library.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "REVIEWCLF_HOME": str(home),
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "TQDM_DISABLE": "1",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), local))),
        "no_proxy": ",".join(filter(None, (os.environ.get("no_proxy"), local))),
    }


def airflow_environment(*, home: Path, dags: Path, plugins: Path, port: int, keys: Mapping[str, str]) -> dict[str, str]:
    """Airflow's settings for one machine: SQLite, a few local workers, everything on 127.0.0.1.

    Parameters
    ----------
    home : Path
        Absolute ``AIRFLOW_HOME``.
    dags, plugins : Path
        Folders of DAG files and plugins.
    port : int
        Port of the API server.
    keys : mapping
        From :func:`load_keys`.
    """
    address = f"http://127.0.0.1:{port}"
    cores = os.cpu_count() or 2
    parallelism = min(4, max(2, cores))
    sections: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": dags,
            "plugins_folder": plugins,
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": parallelism,
            "fernet_key": keys["fernet_key"],
            "auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": home / PASSWORDS_FILE,
            "execution_api_server_url": f"{address}/execution/",
            # The default asks the name server, which may be slow or absent.
            "hostname_callable": "socket.gethostname",
            "min_serialized_dag_update_interval": 5,
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}"},
        "api": {"host": "127.0.0.1", "port": port, "base_url": address, "workers": 1, "secret_key": keys["api_secret"]},
        "api_auth": {"jwt_secret": keys["jwt_secret"]},
        "logging": {"base_log_folder": home / "logs", "logging_level": "INFO", "colored_console_log": False},
        # The end of a skipped or failed task is noticed at its next heartbeat; the default adds five seconds to each.
        "workers": {"min_heartbeat_interval": 1},
        "scheduler": {"scheduler_idle_sleep_time": 0.25, "enable_health_check": False},
        "dag_processor": {
            "parsing_processes": 1,
            "refresh_interval": 30,
            "min_file_process_interval": 30,
        },
    }
    env = {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, values in sections.items()
        for name, value in values.items()
    }
    # Tasks that train side by side with as many threads each as there are cores take many times as long: the threads of one
    # wait, spinning, for those that the other keeps from running.
    threads = {"OMP_NUM_THREADS": str(max(1, cores // parallelism)), "OMP_WAIT_POLICY": "PASSIVE"}
    return {"AIRFLOW_HOME": str(home), **env, **{name: os.environ.get(name, value) for name, value in threads.items()}}


def load_keys(home: Path) -> tuple[dict[str, str], bool]:
    """Keys and the admin's password, made at the first start and kept in files only the user can read.

    Returns
    -------
    tuple of (dict, bool)
        ``fernet_key``, ``api_secret``, ``jwt_secret``, ``password``; and whether they are new.
    """
    from cryptography.fernet import Fernet

    path = home / SECRETS_FILE
    keys = {
        "fernet_key": Fernet.generate_key().decode(),
        "api_secret": secrets.token_urlsafe(32),
        "jwt_secret": secrets.token_urlsafe(48),
        "password": secrets.token_urlsafe(12),
    }
    try:
        known = json.loads(path.read_text())
        are_new = not keys.keys() <= known.keys()
    except (OSError, ValueError, AttributeError):
        are_new = True
    if are_new:
        _write_private(path, json.dumps(keys, indent=2) + "\n")
    else:
        keys = known
    _write_private(home / PASSWORDS_FILE, json.dumps({USER: keys["password"]}) + "\n")
    return keys, are_new


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


class AirflowApi:
    """The few calls of Airflow's REST API that driving the DAGs needs.

    Parameters
    ----------
    address : str
        ``http://127.0.0.1:PORT``.
    password : str
        Of the user ``admin``.
    """

    def __init__(self, address: str, *, password: str) -> None:
        self.address = address
        self._password = password
        self._token: str | None = None
        # Never through a proxy: the server is on this machine.
        # Each request on a connection of its own: the server closes one after an internal error, and a request that then
        # reuses it is reset. What fails to connect was not sent and is tried again.
        self._client = httpx.Client(
            base_url=address,
            timeout=30,
            trust_env=False,
            transport=httpx.HTTPTransport(retries=3, limits=httpx.Limits(max_keepalive_connections=0)),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def healthy(self) -> bool:
        """Whether API server, scheduler and DAG processor are up."""
        try:
            health = self._client.get("/api/v2/monitor/health", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        parts = ("metadatabase", "scheduler", "dag_processor")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return the DAG as Airflow knows it, or None while it does not."""
        return self._call("GET", f"/dags/{dag_id}", none_on=(404,))

    def import_errors(self) -> list[str]:
        """Return the errors of DAG files that cannot be loaded."""
        found = self._call("GET", "/importErrors") or {}
        return [f"{item['filename']}:\n{item['stack_trace']}" for item in found.get("import_errors", [])]

    def unpause(self, dag_id: str) -> None:
        """Let a DAG be scheduled."""
        self._call("PATCH", f"/dags/{dag_id}", params={"update_mask": "is_paused"}, json={"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run now, with `conf` as its parameters, and return its id."""
        run = self._call("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": dict(conf or {})})
        return str((run or {})["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run of a DAG."""
        return self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}") or {}

    def runs(self, dag_id: str, **filters: Any) -> list[dict[str, Any]]:
        """Return the runs of a DAG that match the filters, the latest first."""
        found = self._call("GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "-run_after", "limit": 50, **filters})
        return list((found or {})["dag_runs"])

    def fail_run(self, dag_id: str, run_id: str, *, note: str) -> None:
        """Mark a run and its unfinished tasks as failed."""
        self._call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed", "note": note})

    def upstream_runs(self, dag_id: str, run_id: str) -> set[tuple[str, str]]:
        """Return the (DAG, run) pairs whose assets made this run start; empty while Airflow cannot tell yet."""
        # Airflow 3.3 answers 500 as long as a run that the same event created is queued: it has no start date yet.
        found = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/upstreamAssetEvents", none_on=(500,)) or {}
        return {(event["source_dag_id"], event["source_run_id"]) for event in found.get("asset_events", [])}

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return all task instances of a run."""
        found: list[dict[str, Any]] = []
        while True:
            params = {"limit": 100, "offset": len(found), "order_by": "id"}
            page = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params=params) or {}
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def result(self, task: Mapping[str, Any]) -> Any:
        """Return what a task handed on through XCom, or None."""
        entry = self._call(
            "GET",
            f"/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}/xcomEntries/return_value",
            params={"map_index": task["map_index"], "stringify": False},
            none_on=(404,),
        )
        return None if entry is None else entry.get("value")

    def task_address(self, task: Mapping[str, Any]) -> str:
        """Return the address of a task instance in the UI."""
        mapped = f"/mapped/{task['map_index']}" if task["map_index"] >= 0 else ""
        return f"{self.address}/dags/{task['dag_id']}/runs/{task['dag_run_id']}/tasks/{task['task_id']}{mapped}"

    def _call(self, method: str, path: str, *, none_on: Collection[int] = (), **options: Any) -> dict[str, Any] | None:
        for fresh in (False, True):
            if self._token is None or fresh:
                self._token = self._log_in()
            answer = self._request(method, f"/api/v2{path}", headers={"Authorization": f"Bearer {self._token}"}, **options)
            if answer.status_code != 401:
                break
        if answer.status_code in none_on:
            return None
        if answer.is_error:
            raise LocalError(f"Airflow refused {method} {path}: {answer.status_code} {answer.text[:500]}")
        body: dict[str, Any] = answer.json() if answer.content else {}
        return body

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        # Reading again does no harm, so a busy server gets some time; whether a write arrived cannot be known.
        attempts = _READ_ATTEMPTS if method == "GET" else 1
        for attempt in range(1, attempts + 1):
            try:
                return self._client.request(method, path, **options)
            except httpx.HTTPError as error:
                if attempt == attempts:
                    raise LocalError(f"Airflow's API server does not answer {method} {path}: {error!r}") from error
                time.sleep(attempt)
        raise AssertionError("unreachable")

    def _log_in(self) -> str:
        try:
            answer = self._client.post("/auth/token", json={"username": USER, "password": self._password})
            answer.raise_for_status()
            return str(answer.json()["access_token"])
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise LocalError(f"Cannot log in to Airflow at {self.address} as {USER}: {error!r}") from error
