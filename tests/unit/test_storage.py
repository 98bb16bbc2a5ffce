"""The store: complete or absent, the same twice, safe under two writers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviewclf.errors import ConflictError, StoreError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.storage import Snapshot, StageResult, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "склад с пробелом"))


def table(*texts: str) -> pa.Table:
    return pa.table({"text": list(texts)})


def test_equal_tables_get_one_key_and_different_ones_do_not(store: Store) -> None:
    key = store.put_table(table("платье", "туфли"))
    assert store.put_table(table("платье", "туфли")) == key
    assert store.put_table(table("туфли", "платье")) != key
    assert store.read_table([key])["text"].to_pylist() == ["платье", "туфли"]


def test_reading_what_is_not_there_names_the_object(store: Store) -> None:
    with pytest.raises(StoreError, match=r"objects/no/nothing\.parquet"):
        store.read_bytes("objects/no/nothing.parquet")


def test_no_keys_read_as_an_empty_table_of_the_schema(store: Store) -> None:
    assert store.read_table([], schema=pa.schema([("text", pa.string())])).num_rows == 0
    with pytest.raises(StoreError, match="no schema"):
        store.read_table([])


def test_finished_stage_does_not_run_again(store: Store) -> None:
    calls = []

    def work() -> StageResult:
        calls.append(1)
        return StageResult(counts={"rows": 3})

    first = store.run_stage("clean", 1, {"raw": "abc"}, work)
    assert store.run_stage("clean", 1, {"raw": "abc"}, work) == first
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("stage", "version", "inputs"), [("clean", 2, {"raw": "abc"}), ("clean", 1, {"raw": "abd"}), ("dirty", 1, {"raw": "abc"})]
)
def test_other_version_input_or_stage_runs_anew(store: Store, stage: str, version: int, inputs: dict[str, str]) -> None:
    store.run_stage("clean", 1, {"raw": "abc"}, lambda: StageResult(counts={"rows": 3}))
    assert store.run_stage(stage, version, inputs, lambda: StageResult(counts={"rows": 4})).counts == {"rows": 4}


def test_failed_stage_leaves_no_manifest(store: Store) -> None:
    def broken() -> StageResult:
        store.put_table(table("a"))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.run_stage("clean", 1, {}, broken)
    assert store.run_stage("clean", 1, {}, lambda: StageResult(counts={"rows": 1})).counts == {"rows": 1}


def test_of_two_manifests_the_first_wins_for_both(store: Store) -> None:
    first = store.commit_manifest(Manifest(stage="train", digest="d", counts={"attempt": 1}))
    second = store.commit_manifest(Manifest(stage="train", digest="d", counts={"attempt": 2}))
    assert second == first


def test_damaged_manifest_is_named(store: Store, tmp_path: Path) -> None:
    store.commit_manifest(Manifest(stage="train", digest="d"))
    next(tmp_path.rglob("d.json")).write_text("{")
    with pytest.raises(StoreError, match=r"stages/train/d\.json.*damaged"):
        store.manifest("train", "d")


def test_snapshot_shows_all_tables_of_a_commit_together(store: Store) -> None:
    assert store.snapshot() == Snapshot()
    store.commit(store.snapshot(), key="night 1", append={"clean": ["a"], "quarantine": ["q"]}, state={"seen": 1})
    store.commit(store.snapshot(), key="night 2", append={"clean": ["b"]}, replace={"labels": ["l"]})
    store.commit(store.snapshot(), key="night 3", replace={"labels": ["m"]})
    snapshot = store.snapshot()
    assert snapshot.tables == {"clean": ["a", "b"], "quarantine": ["q"], "labels": ["m"]}
    assert (snapshot.version, snapshot.state) == (3, {"seen": 1})


def test_repeated_commit_changes_nothing(store: Store) -> None:
    store.commit(store.snapshot(), key="night 1", append={"clean": ["a"]})
    store.commit(store.snapshot(), key="night 1", append={"clean": ["a"]})
    assert store.snapshot().tables == {"clean": ["a"]}


def test_commit_on_an_old_snapshot_is_refused(store: Store) -> None:
    old = store.snapshot()
    store.commit(old, key="mine", append={"clean": ["a"]})
    with pytest.raises(ConflictError):
        store.commit(old, key="yours", append={"clean": ["b"]})
    assert store.snapshot().tables == {"clean": ["a"]}


def _append_often(uri: str, who: str, times: int) -> None:
    store = Store(uri)
    for number in range(times):
        while True:
            try:
                key = store.put_table(table(f"{who} {number}"))
                store.commit(store.snapshot(), key=f"{who} {number}", append={"clean": [key]})
                break
            except ConflictError:
                continue


def test_two_writers_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    writers = [multiprocessing.Process(target=_append_often, args=(uri, who, 15)) for who in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store = Store(uri)
    texts = store.read_table(store.snapshot().keys("clean"))["text"].to_pylist()
    assert sorted(texts) == sorted(f"{who} {number}" for who in ("a", "b") for number in range(15))


def test_killed_writer_leaves_a_store_that_reads_and_goes_on(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    writer = multiprocessing.Process(target=_append_often, args=(uri, "a", 10_000))
    writer.start()
    store = Store(uri)
    while store.snapshot().version < 5:
        pass
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(10)
    snapshot = store.snapshot()
    texts = store.read_table(snapshot.keys("clean"))["text"].to_pylist()
    assert texts == [f"a {number}" for number in range(snapshot.version)]
    _append_often(uri, "b", 1)
    assert store.snapshot().version == snapshot.version + 1


def test_unknown_kind_of_store_is_refused_with_the_setting() -> None:
    with pytest.raises(StoreError, match="REVIEWCLF_STORE"):
        Store("carrier-pigeon://coop")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_digest_does_not_mind_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(list(value.items()))))


def test_digest_minds_values_and_the_order_of_lists() -> None:
    assert digest_of({"a": [1, 2]}) != digest_of({"a": [2, 1]})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
