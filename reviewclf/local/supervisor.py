"""``reviewclf up``: start MLflow and Airflow, take the reviews to a champion, keep serving."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

import reviewclf
from reviewclf.local import mlflow
from reviewclf.local.airflow import (
    PASSWORDS_FILE,
    USER,
    AirflowApi,
    airflow_command,
    airflow_environment,
    child_environment,
    load_keys,
)
from reviewclf.local.processes import Child, LocalError, Processes, free_port, locked
from reviewclf.local.progress import FLOW, Driver, wait_until_ready
from reviewclf.settings import Settings

START_SECONDS = 180.0


def up(
    settings: Settings,
    *,
    report: Callable[[str], bool],
    once: bool = False,
    dags: Path | None = None,
    plugins: Path | None = None,
    airflow_port: int = 8080,
    mlflow_port: int = 5000,
    console: Console | None = None,
) -> int:
    """Start everything on this machine, run ingest, label and retrain through Airflow, and keep the servers going.

    Parameters
    ----------
    settings : Settings
        Its ``home`` holds all state: Airflow's and MLflow's databases, logs, keys, the store. Tasks read their settings
        from the same environment and working directory.
    report : callable
        Called with MLflow's address when all DAGs have succeeded and the servers still run: prints the leaderboard and
        returns whether there is a champion.
    once : bool
        Stop everything after the leaderboard instead of serving until Ctrl-C.
    dags, plugins : Path, optional
        Airflow's folders; default: ``dags`` and ``plugins`` of the clone that this package, or the working directory,
        is part of.
    airflow_port, mlflow_port : int
        Preferred ports on 127.0.0.1; when taken, the next free ones are used, and said.
    console : Console, optional
        Where to print; default: standard output.

    Returns
    -------
    int
        0 when the flow ran through and there is a champion, 1 otherwise, 130 when interrupted before that.

    Raises
    ------
    LocalError
        When ``reviewclf up`` already runs for this home, a server cannot be started or died, or a DAG cannot be loaded.
    """
    home = settings.home.expanduser().resolve()
    console = console or Console()
    dags = dags or _folder_of_clone("dags", holding="reviews_ingest.py")
    plugins = plugins or _folder_of_clone("plugins", holding="reviewclf_plugin.py")
    with locked(home / "run" / "lock"), _interruptible():
        platform = _Platform(home, dags=dags.resolve(), plugins=plugins.resolve(), console=console)
        answer = 130
        try:
            driver = platform.start(airflow_port=airflow_port, mlflow_port=mlflow_port, triggerer=not once)
            answer = 0 if driver.drive() and report(platform.tracking_uri) else 1
            if not once:
                platform.show_addresses()
                console.print("Press Ctrl-C to stop.")
                platform.serve()
        except KeyboardInterrupt:
            console.print("Stopping …")
        finally:
            # A second Ctrl-C while stopping must not leave half of the processes behind.
            with _uninterruptible():
                platform.stop()
        return answer


def _folder_of_clone(name: str, *, holding: str) -> Path:
    places = [Path(reviewclf.__file__).resolve().parent.parent, Path.cwd()]
    for place in places:
        if (place / name / holding).is_file():
            return place / name
    looked = " and ".join(str(place / name) for place in places)
    raise LocalError(f"No {holding} in {looked}. Run the command in a clone of the repository.")


class _Platform:
    """The running servers of one home."""

    def __init__(self, home: Path, *, dags: Path, plugins: Path, console: Console) -> None:
        self._home = home
        self._dags = dags
        self._plugins = plugins
        self._console = console
        self._processes = Processes(home=home, logs=home / "logs")
        self._api: AirflowApi | None = None
        self.tracking_uri = ""

    def start(self, *, airflow_port: int, mlflow_port: int, triggerer: bool) -> Driver:
        """Start all servers and wait until they answer; return what drives the DAGs."""
        if left := self._processes.end_all():
            self._console.print(f"Ended {left} processes that an earlier, killed run had left behind.")
        airflow_home = self._home / "airflow"
        mlflow_home = self._home / "mlflow"
        for folder in (airflow_home, mlflow_home):
            folder.mkdir(parents=True, exist_ok=True)
        keys, new = load_keys(airflow_home)
        ports = self._ports(airflow_port, mlflow_port)
        own_mlflow = f"http://127.0.0.1:{ports[1]}"
        self.tracking_uri = mlflow.external_tracking_uri() or own_mlflow
        env = child_environment(home=self._home, tracking_uri=self.tracking_uri)
        airflow_env = env | airflow_environment(
            home=airflow_home, dags=self._dags, plugins=self._plugins, port=ports[0], keys=keys
        )
        api = self._api = AirflowApi(f"http://127.0.0.1:{ports[0]}", password=keys["password"])
        driver = Driver(api, logs=airflow_home / "logs", console=self._console, check=self._processes.check)
        with self._console.status("Starting MLflow and Airflow …"):
            if self.tracking_uri == own_mlflow:
                command = mlflow.server_command(mlflow_home, port=ports[1])
                self._processes.start("mlflow", command, env=mlflow.server_environment(env))
            self._migrate(airflow_home, airflow_env)
            since = datetime.now(UTC)
            # Logs are read from the folder they are written to: workers need not serve them on ports of their own.
            self._airflow("api-server", airflow_env)
            self._airflow("dag-processor", airflow_env)
            self._airflow("scheduler", airflow_env, "--skip-serve-logs")
            if triggerer:
                self._airflow("triggerer", airflow_env, "--skip-serve-logs")
            wait_until_ready(api, since=since, check=self._processes.check, timeout=START_SECONDS)
            if self.tracking_uri == own_mlflow:
                self._wait_for_mlflow()
            if settled := driver.settle_old_runs():
                self._console.print(f"Marked {settled} unfinished runs of an earlier, killed Airflow as failed.")
            for step in reversed(FLOW):
                api.unpause(step.dag_id)
        self.show_addresses()
        kept = airflow_home / PASSWORDS_FILE
        password = f"password {keys['password']} (shown once, kept in {kept})" if new else f"password in {kept}"
        self._console.print(Text(f"Log in to Airflow as {USER}, {password}"), soft_wrap=True)
        return driver

    def serve(self) -> None:
        """Wait for Ctrl-C; raise when a server dies."""
        while True:
            self._processes.check()
            time.sleep(1)

    def stop(self) -> None:
        if self._api is not None:
            self._api.close()
        self._processes.stop()

    def show_addresses(self) -> None:
        airflow = self._api.address if self._api else "not started"
        self._console.print(Text(f"Airflow  {airflow}\nMLflow   {self.tracking_uri}"), soft_wrap=True)

    def _ports(self, airflow_port: int, mlflow_port: int) -> tuple[int, int]:
        airflow = free_port(airflow_port)
        mlflow = free_port(mlflow_port, avoid=[airflow])
        for name, wanted, got in (("Airflow", airflow_port, airflow), ("MLflow", mlflow_port, mlflow)):
            if got != wanted:
                self._console.print(f"Port {wanted} is taken: {name} uses {got}.", highlight=False)
        return airflow, mlflow

    def _airflow(self, component: str, env: dict[str, str], *arguments: str) -> Child:
        return self._processes.start(component, airflow_command(component, *arguments), env=env)

    def _migrate(self, airflow_home: Path, env: dict[str, str]) -> None:
        """Create or upgrade Airflow's database; one that cannot be upgraded is put aside and begun anew.

        It only holds Airflow's history: reviews, labels and models live in the store and in MLflow.
        """

        def migrated() -> bool:
            child = self._processes.start("db-migrate", airflow_command("db", "migrate"), env=env)
            return self._processes.finish(child, timeout=START_SECONDS) == 0

        if migrated():
            return
        broken = airflow_home / f"airflow.db.broken-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        database = airflow_home / "airflow.db"
        if database.exists():
            for suffix in ("-wal", "-shm", "-journal"):
                database.with_name(database.name + suffix).unlink(missing_ok=True)
            database.replace(broken)
            self._console.print(f"Airflow's database was damaged: put aside as {broken}, history begins anew.", soft_wrap=True)
            if migrated():
                return
        raise LocalError(f"Airflow's database cannot be set up; see {self._home / 'logs' / 'db-migrate.log'}.")

    def _wait_for_mlflow(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            self._processes.check()
            try:
                if httpx.get(f"{self.tracking_uri}/health", trust_env=False, timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise LocalError(f"MLflow does not answer in time; see {self._home / 'logs' / 'mlflow.log'}.")
            time.sleep(0.2)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take SIGTERM and SIGHUP like Ctrl-C, so that children are stopped by whoever ends this process politely."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextmanager
def _uninterruptible() -> Iterator[None]:
    ignored = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)
    with _handled(ignored):
        yield


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    # Only the main thread may set handlers; elsewhere (tests, notebooks) signals keep their meaning.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
