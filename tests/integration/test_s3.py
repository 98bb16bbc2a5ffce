"""The same store and sources on a real S3 server."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pytest

from reviewclf import tables
from reviewclf.data.sources import list_source, read_chunks
from reviewclf.errors import ConflictError, DataContractError, StoreError
from reviewclf.settings import IngestSettings, load_settings
from reviewclf.store import StageResult, Store
from tests.integration.conftest import S3
from tests.integration.test_stages import run_ingest, run_label
from tests.stores import held


@pytest.fixture
def uri(s3: S3) -> str:
    return f"s3://{s3.bucket}/{uuid4().hex}"


def rows(store: Store) -> list[int]:
    return store.read(store.snapshot(), "seen")["row"].to_pylist()


def test_objects_manifests_and_snapshots_are_kept(uri: str) -> None:
    store = Store(uri)
    (key,) = store.put_part(pa.table({"row": [1]}))
    assert store.put_part(pa.table({"row": [1]})) == [key]
    assert store.read_table([key])["row"].to_pylist() == [1]
    first = store.run_stage("clean", 1, {"raw": "a"}, lambda: StageResult(counts={"rows": 1}))
    assert Store(uri).run_stage("clean", 1, {"raw": "a"}, lambda: StageResult(counts={"rows": 2})) == first
    store.commit(store.snapshot(), key="night", append={"seen": [key]})
    assert rows(Store(uri)) == [1]
    queried = Store(uri).scan(store.snapshot().keys("seen"), tables.SEEN_SCHEMA)
    assert store.collect(queried, tables.SEEN_SCHEMA)["row"].to_pylist() == [1]
    with pytest.raises(StoreError, match="is not there"):
        store.read_bytes("objects/no/thing.parquet")


def test_commit_on_an_old_snapshot_is_refused(uri: str) -> None:
    store = Store(uri)
    old = store.snapshot()
    store.commit(old, key="mine", append={"seen": store.put_part(pa.table({"row": [1]}))})
    with pytest.raises(ConflictError):
        Store(uri).commit(old, key="yours", append={"seen": store.put_part(pa.table({"row": [2]}))})
    assert rows(store) == [1]


def _append_often(uri: str, who: int, times: int) -> None:
    store = Store(uri)
    for number in range(times):
        while True:
            try:
                part = store.put_part(pa.table({"row": [who + number]}))
                store.commit(store.snapshot(), key=f"{who} {number}", append={"seen": part})
                break
            except ConflictError:
                continue


def test_two_writers_lose_nothing_and_double_nothing(uri: str) -> None:
    # Fresh interpreters: an S3 client does not survive a fork.
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_often, args=(uri, who, 10)) for who in (100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert sorted(rows(Store(uri))) == [who + number for who in (100, 200) for number in range(10)]


def test_night_on_s3_ends_like_one_on_a_folder(uri: str, tmp_path: Path) -> None:
    local = load_settings(_env_file=None, home=tmp_path / "local")
    remote = load_settings(_env_file=None, home=tmp_path / "remote", store=uri)
    for settings in (local, remote):
        run_ingest(settings)
        run_label(settings)
    assert held(remote.store_uri) == held(local.store_uri)
    assert run_ingest(remote).counts["new"] == 0


def test_sources_on_s3_are_read_and_recognised_as_unchanged(uri: str, tmp_path: Path) -> None:
    pd.DataFrame({"review_id": ["1"], "text": ["Туфли жмут"]}).to_csv(f"{uri}/in/a.csv", index=False)
    pd.DataFrame({"review_id": ["2"], "text": ["Плед тёплый"]}).to_parquet(f"{uri}/in/b.parquet", index=False)
    settings = load_settings(_env_file=None, home=tmp_path, source=f"{uri}/in", store=f"{uri}/store", votes=None, gold=None)
    assert run_ingest(settings).counts["new"] == 2
    again = run_ingest(settings)
    assert again.counts["rows_in"] == 0
    (only,) = list_source(f"{uri}/in/*.csv", IngestSettings())
    (chunk,) = read_chunks(only, IngestSettings())
    assert chunk.rows["text"].to_pylist() == ["Туфли жмут"]


def test_missing_bucket_is_named(s3: S3) -> None:
    with pytest.raises(DataContractError, match="s3://no-such-bucket"):
        list_source("s3://no-such-bucket/reviews.csv", IngestSettings())
