"""Buckets as archives, against a real S3 server."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.integration.conftest import S3

PATH = Path(__file__).resolve().parents[2] / "infra" / "setup" / "bucket_archive.py"
OBJECTS = {
    "store/objects/aa/rows.parquet": b"rows",
    "store/objects/bb/многа букв и пробел.parquet": b"",
    "store/objects/cc/large.bin": bytes(range(256)) * 80_000,  # more than one part of an upload
    "store/log/000000000001.json": b'{"version": 1}',
    "store/stages/train/abc.json": b"{}",
    f"artifacts/{'d' * 120}/{'e' * 120}/model.onnx": b"model",
}


@pytest.fixture
def archive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bucket_archive", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(s3: S3) -> Any:
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    there = {entry["Name"] for entry in client.list_buckets()["Buckets"]}
    for bucket in {"archived", "restored"} & there:
        for key in contents(client, bucket):
            client.delete_object(Bucket=bucket, Key=key)
    if "archived" not in there:
        client.create_bucket(Bucket="archived")
    for key, body in OBJECTS.items():
        client.put_object(Bucket="archived", Key=key, Body=body)
    return client


def contents(client: Any, bucket: str) -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
    return {entry["Key"]: client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in listed}


def names_in(stream: io.BytesIO) -> list[str]:
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        return archive.getnames()


def test_what_is_dumped_comes_back_byte_for_byte(archive: ModuleType, client: Any) -> None:
    stream = io.BytesIO()
    expected = (len(OBJECTS), sum(map(len, OBJECTS.values())))
    assert archive.dump(client, "archived", stream) == expected
    stream.seek(0)
    assert archive.load(client, "restored", stream) == expected
    assert contents(client, "restored") == OBJECTS


def test_what_names_others_is_read_before_them(archive: ModuleType, client: Any) -> None:
    stream = io.BytesIO()
    archive.dump(client, "archived", stream)
    assert set(names_in(stream)[:2]) == {"store/log/000000000001.json", "store/stages/train/abc.json"}


def test_snapshots_are_read_before_the_logs_of_tables_and_those_before_rows(archive: ModuleType, client: Any) -> None:
    keys = ["snapshots/000001.json", "tables/clean/_delta_log/00000.json", "tables/a/first.parquet"]
    for key in keys:
        client.put_object(Bucket="archived", Key=f"store/{key}", Body=b"{}")
    stream = io.BytesIO()
    archive.dump(client, "archived", stream)
    named = names_in(stream)
    places = [named.index(f"store/{key}") for key in keys]
    assert places == sorted(places)


def test_snapshot_that_comes_while_objects_are_read_is_left_out_but_its_objects_may_come(
    archive: ModuleType, client: Any
) -> None:
    class Committing:
        """The same client; somebody commits between the two listings."""

        exceptions = client.exceptions
        get_object = client.get_object
        listings = 0

        def get_paginator(self, name: str) -> Any:
            self.listings += 1
            if self.listings == 2:
                client.put_object(Bucket="archived", Key="store/objects/zz/new.parquet", Body=b"new")
                client.put_object(Bucket="archived", Key="store/log/000000000002.json", Body=b'{"version": 2}')
            return client.get_paginator(name)

    stream = io.BytesIO()
    archive.dump(Committing(), "archived", stream)
    assert set(names_in(stream)) == {*OBJECTS, "store/objects/zz/new.parquet"}


def test_bucket_that_holds_something_is_not_mixed_with_older_state(archive: ModuleType, client: Any) -> None:
    with pytest.raises(SystemExit, match="bucket archived is not empty"):
        archive.load(client, "archived", io.BytesIO())
