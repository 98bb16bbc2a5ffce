"""A team's platform on this machine: Airflow with Celery workers, MLflow with accounts, PostgreSQL, Redis and S3, all real.

Everything listens on 127.0.0.1 on free ports with passwords made up at the start. What dies is started again, as the
containers' restart policy would do, until it is taken away on purpose.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import httpx

from reviewclf.local.airflow import AirflowApi, airflow_command, airflow_environment, child_environment, load_keys
from reviewclf.local.mlflow import server_environment
from reviewclf.local.progress import FLOW, wait_until_ready
from tests.services import PostgreSQL, Redis, SeaweedFS, Server, free_port

ROOT = Path(__file__).resolve().parents[2]
HOOKS = Path(__file__).with_name("hooks")
CANDIDATES = Path(__file__).with_name("candidates.yaml")
WORKERS = ("worker-1", "worker-2")
START_SECONDS = 180.0
_MLFLOW_USER = "pipeline"

# From the source to a champion. The DAG reviews_score would go on with the models of a night that is put aside already.
NIGHT = tuple(step for step in FLOW if step.dag_id != "reviews_score")


def product_settings() -> dict[str, str]:
    """What `infra/airflow.env` says."""
    lines = (ROOT / "infra" / "airflow.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Platform:
    """All services of one platform.

    Parameters
    ----------
    folder : Path
        For everything it leaves behind; other accounts have to be able to enter it.
    overrides : mapping
        Environment variables that win over the product's settings.

    Attributes
    ----------
    api : AirflowApi
    servers : dict of str to Server
    """

    def __init__(self, folder: Path, *, overrides: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.points = folder / "points"
        self.desk = folder / "desk"
        self._logs = folder / "logs"
        for made in (self.points, self.desk, self._logs):
            made.mkdir(parents=True)
        self.postgres = PostgreSQL(folder / "postgresql", names=("airflow", "mlflow", "mlflow_auth"), logs=self._logs)
        self.redis = Redis(folder / "redis", logs=self._logs)
        self.s3 = SeaweedFS(folder / "s3", logs=self._logs, buckets=("reviews", "mlflow"))
        self._mlflow_port = free_port()
        self.tracking_uri = f"http://127.0.0.1:{self._mlflow_port}"
        self._mlflow_passwords = {name: secrets.token_urlsafe(16) for name in ("admin", _MLFLOW_USER)}
        self.servers: dict[str, Server] = {
            "postgres": self.postgres.server,
            "redis": self.redis.server,
            "s3": self.s3.server,
            "mlflow": self._mlflow(),
        }
        self._overrides = dict(overrides or {})
        self._keeper = threading.Thread(target=self._keep_up, daemon=True)
        self._closing = threading.Event()
        port = free_port()
        keys, _ = load_keys(folder / "airflow")
        self.airflow_environment = self._airflow_environment(port, keys)
        self.password = keys["password"]
        self.api = AirflowApi(f"http://127.0.0.1:{port}", password=self.password)

    # -- environments ----------------------------------------------------------------------------------------------

    def worker_environment(self, name: str) -> dict[str, str]:
        """What a worker sees: a home of its own, so that nothing can pass between workers by way of a folder."""
        home = self.folder / name
        base = child_environment(home=home, tracking_uri=self.tracking_uri)
        return {
            **base,
            **self.s3.variables,
            "PYTHONPATH": os.pathsep.join((str(HOOKS), base["PYTHONPATH"])),
            "REVIEWCLF_TEST_POINTS": str(self.points),
            "REVIEWCLF_CANDIDATES": str(CANDIDATES),
            # One amount beside none: choosing is not what is tested here.
            "REVIEWCLF_AUGMENTATION__AMOUNTS": "[1.0]",
            "REVIEWCLF_AUGMENTATION__FOLDS": "2",
            "MLFLOW_TRACKING_USERNAME": _MLFLOW_USER,
            "MLFLOW_TRACKING_PASSWORD": self._mlflow_passwords[_MLFLOW_USER],
        }

    def _airflow_environment(self, port: int, keys: Mapping[str, str]) -> dict[str, str]:
        local = airflow_environment(
            home=self.folder / "airflow", dags=ROOT / "dags", plugins=ROOT / "plugins", port=port, keys=keys
        )
        metadata = self.postgres.address("airflow", driver="+psycopg2")
        return {
            **local,
            **product_settings(),
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{metadata}",
            "AIRFLOW__CELERY__BROKER_URL": self.redis.address,
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            **self._overrides,
        }

    def _mlflow(self) -> Server:
        folder = self.folder / "mlflow"
        folder.mkdir()
        accounts = folder / "basic_auth.ini"
        accounts.touch(0o600)
        accounts.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = {self.postgres.address('mlflow_auth', driver='+psycopg2')}\n"
            "admin_username = admin\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            # A password's hash takes a third of a second, and a model is hundreds of requests.
            "auth_cache_ttl_seconds = 60\n"
        )
        env = {
            **server_environment(child_environment(home=folder, tracking_uri="")),
            **self.s3.variables,
            **product_settings(),
            "MLFLOW_AUTH_CONFIG_PATH": str(accounts),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._mlflow_passwords["admin"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        command = [*airflow_command()[:2], "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        command += ["--backend-store-uri", self.postgres.address("mlflow", driver="+psycopg2")]
        command += ["--serve-artifacts", "--artifacts-destination", "s3://mlflow"]
        command += ["--host", "127.0.0.1", "--port", str(self._mlflow_port)]
        return Server("MLflow", command, env=env, folder=folder, log=self._logs / "mlflow.log", ready=self._mlflow_answers)

    def _mlflow_answers(self) -> bool:
        try:
            return httpx.get(f"{self.tracking_uri}/health", trust_env=False, timeout=5).is_success
        except httpx.HTTPError:
            return False

    # -- start and stop --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all services and wait until they answer."""
        for name in ("postgres", "redis", "s3"):
            self.servers[name].start()
        for name in ("postgres", "redis", "s3"):
            self.servers[name].wait()
        self.postgres.create_databases()
        self.servers["mlflow"].start()
        base = child_environment(home=self.folder / "airflow-home", tracking_uri=self.tracking_uri) | self.airflow_environment
        with (self._logs / "migrate.log").open("wb") as output:
            subprocess.run(
                airflow_command("db", "migrate"), env=base, cwd=self.desk, stdout=output, stderr=output, check=True, timeout=180
            )
        since = datetime.now(UTC)
        for component, arguments in (
            ("api-server", ()),
            ("dag-processor", ()),
            ("scheduler", ("--skip-serve-logs",)),
            ("triggerer", ("--skip-serve-logs",)),
        ):
            self._add(component, airflow_command(component, *arguments), base)
        for number, name in enumerate(WORKERS):
            # Both take what any worker can do, one of them also what is meant for a GPU.
            command = airflow_command(
                "celery", "worker", "--skip-serve-logs", "--queues", "default,gpu" if number else "default"
            )
            command += ["--celery-hostname", f"{name}@%h", "--pid", str(self.folder / f"{name}.pid"), "--without-mingle"]
            self._add(name, command, base | self.worker_environment(name))
        wait_until_ready(self.api, since=since, check=self._check, timeout=START_SECONDS)
        self.servers["mlflow"].wait(START_SECONDS)
        self._create_mlflow_user()
        for step in reversed(NIGHT):
            self.api.unpause(step.dag_id)
        self._keeper.start()

    def _add(self, name: str, command: list[str], env: dict[str, str]) -> None:
        # Tasks read `.env` in the working directory, which is how a test changes their settings without a restart.
        self.servers[name] = Server(name, command, env=env, folder=self.desk, log=self._logs / f"{name}.log")
        self.servers[name].start()

    def _create_mlflow_user(self) -> None:
        answer = httpx.post(
            f"{self.tracking_uri}/api/2.0/mlflow/users/create",
            json={"username": _MLFLOW_USER, "password": self._mlflow_passwords[_MLFLOW_USER]},
            auth=("admin", self._mlflow_passwords["admin"]),
            trust_env=False,
            timeout=30,
        )
        answer.raise_for_status()

    def _check(self) -> None:
        for server in self.servers.values():
            if not server.is_alive():
                raise AssertionError(f"{server.name} ended by itself:\n{server.tail()}")

    def _keep_up(self) -> None:
        while not self._closing.wait(0.5):
            for server in list(self.servers.values()):
                if server.wanted and not server.is_alive():
                    server.start()

    def close(self) -> None:
        """End everything."""
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join(5)
        self.api.close()
        for server in self.servers.values():
            server.wanted = False
        for server in reversed(list(self.servers.values())):
            server.kill()

    # -- what tests do to it ---------------------------------------------------------------------------------------

    def configure(self, **settings: str) -> None:
        """Set settings that tasks started from now on read."""
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        draft = self.desk / ".env.new"
        draft.write_text(text)
        draft.replace(self.desk / ".env")

    def arm(self, point: str) -> None:
        """Make the next task that comes by a point wait there; the points are listed in ``hooks/sitecustomize.py``."""
        (self.points / point).touch()

    def held(self, point: str) -> int | None:
        """Id of the process that waits at a point, or None."""
        for path in self.points.glob(f"{point}.*"):
            return int(path.suffix[1:])
        return None

    def release(self, point: str) -> None:
        """Let the process that waits at a point go on, or disarm it."""
        for path in (self.points / point, *self.points.glob(f"{point}.*")):
            path.unlink(missing_ok=True)

    def worker_of(self, pid: int) -> Server:
        """The worker that a task's process belongs to."""
        return next(self.servers[name] for name in WORKERS if self.servers[name].owns(pid))

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Take a service away; it is back, and answers, afterwards."""
        server = self.servers[name]
        server.wanted = False
        server.kill()
        try:
            yield
        finally:
            server.start()
            server.wait()

    def tails(self) -> str:
        """The ends of all logs, for a test that failed."""
        return "\n".join(f"--- {name}\n{server.tail(1500)}" for name, server in self.servers.items())


@contextmanager
def running(folder: Path, *, overrides: Mapping[str, str] | None = None) -> Iterator[Platform]:
    """A platform that is started and, whatever happens, ended: also when the tests are asked to end by SIGTERM."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    platform = Platform(folder, overrides=overrides)
    try:
        platform.start()
        yield platform
    finally:
        platform.close()
        signal.signal(signal.SIGTERM, before)
