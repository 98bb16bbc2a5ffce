"""Sources on a real S3 server: the same files as on a disk, told apart by ETag and size."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import boto3
import pandas as pd
import pytest

from reviewclf.data.sources import SourceFile, list_source, read_chunks
from reviewclf.errors import DataContractError
from reviewclf.settings import IngestSettings
from tests.integration.conftest import S3

OPTIONS = IngestSettings()


class Folder:
    """A folder of the bucket, written with boto3: by someone else, as far as the reader knows."""

    def __init__(self, s3: S3) -> None:
        self.bucket, self.prefix = s3.bucket, uuid4().hex
        self.uri = f"s3://{s3.bucket}/{self.prefix}"
        self._client = boto3.client("s3")

    def put(self, name: str, body: bytes) -> str:
        self._client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=body)
        return f"{self.uri}/{name}"


@pytest.fixture
def folder(s3: S3) -> Iterator[Folder]:
    import s3fs

    yield Folder(s3)
    # Listings are cached by s3fs; the next test starts without them.
    s3fs.S3FileSystem.clear_instance_cache()


def texts(uri: str) -> list[str]:
    return [
        text
        for source in list_source(uri, OPTIONS)
        for chunk in read_chunks(source, OPTIONS)
        for text in chunk.rows["text"].to_pylist()
    ]


def test_folder_and_glob_are_read_in_order_and_in_all_formats(folder: Folder, tmp_path: Path) -> None:
    folder.put("b.csv", "review_id;text\n1;Плед\n".encode("cp1251"))
    folder.put("a.csv.gz", gzip.compress("review_id,text\n2,Туфли\n".encode()))
    folder.put("в глубине/c.jsonl", '{"text": "Чайник"}\n'.encode())
    pd.DataFrame({"text": ["Серьги"]}).to_parquet(tmp_path / "d.parquet")
    folder.put("d.parquet", (tmp_path / "d.parquet").read_bytes())
    folder.put("README.md", b"no reviews")
    assert texts(folder.uri) == ["Туфли", "Плед", "Серьги", "Чайник"]
    assert texts(f"{folder.uri}/*.csv*") == ["Туфли", "Плед"]
    assert texts(f"{folder.uri}/b.csv") == ["Плед"]


def test_fingerprint_changes_with_the_content_alone(folder: Folder) -> None:
    def described() -> SourceFile:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        (source,) = list_source(uri, OPTIONS)
        assert isinstance(source, SourceFile)
        return source

    uri = folder.put("a.csv", b"review_id,text\n1,a\n")
    first = described()
    folder.put("a.csv", b"review_id,text\n1,a\n")
    assert described() == first
    folder.put("a.csv", b"review_id,text\n1,b\n")
    second = described()
    assert second.uri == first.uri
    assert second.fingerprint != first.fingerprint


def test_memory_does_not_grow_with_the_object(folder: Folder) -> None:
    row = '{},"' + "Платье село отлично, но швы кривые; " * 60 + '"\n'

    def peak(rows: int) -> tuple[int, int]:
        body = ("review_id,text\n" + "".join(row.format(number) for number in range(rows))).encode()
        size = len(body)
        uri = folder.put(f"{rows}.csv", body)
        del body
        options = IngestSettings(chunk_rows=200)
        (source,) = list_source(uri, options)
        tracemalloc.start()
        read_rows = sum(chunk.rows.num_rows for chunk in read_chunks(source, options))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert read_rows == rows
        return most, size

    (small, _), (large, size) = peak(6_000), peak(18_000)
    assert size > 60e6
    assert large < 1.2 * small
    assert large < size / 2


def test_refused_object_is_named_with_its_whole_address(folder: Folder) -> None:
    uri = folder.put("a.csv", "review_id,отзыв\n1,a\n".encode())
    with pytest.raises(DataContractError, match=rf"{uri}: no column 'text'; found review_id, отзыв"):
        texts(uri)
    with pytest.raises(DataContractError, match="there is no such file or folder"):
        texts(f"{folder.uri}/none.csv")
