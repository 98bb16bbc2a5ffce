"""The store: complete or absent, the same twice, safe under two writers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError
from hypothesis import given
from hypothesis import strategies as st

from reviewclf import tables
from reviewclf.errors import ConflictError, StoreError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.store import Snapshot, StageResult, Store


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


def part(store: Store, *rows: int) -> list[str]:
    return store.put_part(pa.table({"row": list(rows)}))


def rows(store: Store, snapshot: Snapshot | None = None) -> list[int]:
    return store.read(snapshot or store.snapshot(), "seen")["row"].to_pylist()


def refused(store: Store, reason: str) -> list[str]:
    return store.put_part([{"row_number": 1, "reason": reason, "source": "a.csv"}], tables.QUARANTINE_SCHEMA)


def test_snapshot_shows_all_tables_of_a_commit_together(store: Store) -> None:
    assert store.snapshot() == Snapshot()
    first = store.commit(
        store.snapshot(), key="night 1", append={"seen": part(store, 1), "quarantine": refused(store, "a")}, state={"seen": 1}
    )
    store.commit(store.snapshot(), key="night 2", append={"seen": part(store, 2)}, replace={"quarantine": refused(store, "b")})
    snapshot = store.snapshot()
    assert (rows(store), store.read(snapshot, "quarantine")["reason"].to_pylist()) == ([1, 2], ["b"])
    assert (snapshot.version, snapshot.state) == (2, {"seen": 1})
    # An old snapshot is read as it was.
    old = store.snapshot(first.version)
    assert (rows(store, old), store.read(old, "quarantine")["reason"].to_pylist()) == ([1], ["a"])


def test_repeated_commit_changes_nothing(store: Store) -> None:
    store.commit(store.snapshot(), key="night 1", append={"seen": part(store, 1)})
    store.commit(store.snapshot(), key="night 1", append={"seen": part(store, 2)})
    assert rows(store) == [1]


def test_parts_that_a_table_holds_already_are_no_change(store: Store) -> None:
    parts = [*part(store, 1), *part(store, 2)]
    store.commit(store.snapshot(), key="night 1", replace={"seen": parts})
    before = store.snapshot()
    store.commit(before, key="night 2", replace={"seen": parts})
    assert store.snapshot() == before


def test_commit_on_an_old_snapshot_is_refused(store: Store) -> None:
    old = store.snapshot()
    store.commit(old, key="mine", append={"seen": part(store, 1)})
    with pytest.raises(ConflictError):
        store.commit(old, key="yours", append={"seen": part(store, 2)})
    assert rows(store) == [1]


def test_what_a_killed_writer_left_in_one_table_leaves_with_the_next_commit(store: Store) -> None:
    store.commit(store.snapshot(), key="night 1", append={"seen": part(store, 1)})
    # It has written to one table, and died before the snapshot.
    store.delta.commit("seen", [*store.snapshot().keys("seen"), *part(store, 666)], snapshot=2, change="night 2")
    assert rows(store) == [1]
    store.commit(store.snapshot(), key="night 2", append={"seen": part(store, 2)})
    assert rows(store) == [1, 2]
    assert store.delta.open("seen").to_pyarrow_table()["row"].to_pylist() in ([1, 2], [2, 1])


def test_a_part_takes_the_place_of_the_one_that_it_replaces(store: Store) -> None:
    for number in range(3):
        store.commit(store.snapshot(), key=f"night {number}", append={"seen": part(store, number)})
    first, _, last = store.snapshot().keys("seen")
    store.commit(store.snapshot(), key="edit", replace={"seen": [first, *part(store, 11), last]})
    assert rows(store) == [0, 11, 2]
    store.commit(store.snapshot(), key="night 3", append={"seen": part(store, 3)})
    assert rows(store) == [0, 11, 2, 3]


def test_laying_rows_out_anew_is_no_news_of_them(store: Store) -> None:
    for number in range(3):
        store.commit(store.snapshot(), key=f"night {number}", append={"seen": part(store, number)})
    before = store.snapshot()
    store.commit(before, key="compact", replace={"seen": part(store, 0, 1, 2)}, is_data=False)
    after = store.snapshot()
    assert (len(after.keys("seen")), rows(store)) == (1, [0, 1, 2])
    assert after.identity("seen") == before.identity("seen")
    assert rows(store, before) == [0, 1, 2]


def test_earlier_parts_lack_columns_that_came_later(store: Store) -> None:
    old = store.put_part(pa.table({"review_id": ["1"], "row_number": [1], "reason": ["x"], "payload": ["y"], "source": ["a"]}))
    store.commit(store.snapshot(), key="night 1", append={"quarantine": old})
    assert store.read(store.snapshot(), "quarantine").schema.equals(tables.QUARANTINE_SCHEMA)


def test_what_breaks_the_contract_is_refused_by_rule_and_table(store: Store) -> None:
    label = {"text_hash": "a", "label": "обувь", "confidence": 2.0, "agreement": 1.0, "votes": 1, "decision": "kept"}
    for change, said in (({}, "labels.*confidence_is_a_share"), ({"confidence": 0.5, "label": None}, "labels.*lack label")):
        bad = store.put_part([{**label, **change}], tables.LABEL_SCHEMA)
        with pytest.raises(StoreError, match=said):
            store.commit(store.snapshot(), key="night", replace={"labels": bad})
    with pytest.raises(StoreError, match="no contract for a table 'receipts'"):
        store.commit(store.snapshot(), key="night", append={"receipts": part(store, 1)})
    assert store.snapshot() == Snapshot()


def test_a_table_has_the_contract_as_its_schema_and_constraints(store: Store) -> None:
    label = {"text_hash": "a", "label": "обувь", "confidence": 1.0, "agreement": 1.0, "votes": 1, "decision": "kept"}
    store.commit(store.snapshot(), key="night", replace={"labels": store.put_part([label], tables.LABEL_SCHEMA)})
    table = store.delta.open("labels")
    assert pa.schema(table.schema().to_arrow()).names == tables.LABEL_SCHEMA.names
    assert "decision = 'dropped'" in table.metadata().configuration["delta.constraints.decision_is_known"]
    with pytest.raises(DeltaError, match="1 rows failed validation check"):
        write_deltalake(
            table, pa.Table.from_pylist([{**label, "decision": "perhaps"}], schema=tables.LABEL_SCHEMA), mode="append"
        )


def test_a_table_gets_the_columns_that_its_contract_gets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit(store.snapshot(), key="night 1", append={"seen": part(store, 1)})
    later = tables.SEEN_SCHEMA.append(pa.field("source", pa.string()))
    monkeypatch.setitem(tables.SCHEMAS, "seen", later)
    store.commit(store.snapshot(), key="night 2", append={"seen": part(store, 2)})
    seen = store.delta.open("seen").to_pyarrow_table()
    assert (seen.schema.names, sorted(seen["row"].to_pylist()), seen["source"].to_pylist()) == (
        later.names,
        [1, 2],
        [None, None],
    )


def test_a_query_reads_parts_of_tables_and_of_stages_alike(store: Store) -> None:
    store.commit(store.snapshot(), key="night 1", append={"seen": part(store, 1, 2, 3)})
    held = store.scan(store.snapshot().keys("seen"), tables.SEEN_SCHEMA)
    new = store.scan(part(store, 3, 4), tables.SEEN_SCHEMA)
    assert store.collect(new.join(held, on="row", how="anti"), tables.SEEN_SCHEMA)["row"].to_pylist() == [4]
    assert store.collect(store.scan([], tables.SEEN_SCHEMA), tables.SEEN_SCHEMA).num_rows == 0
    with pytest.raises(StoreError, match="is not there"):
        store.collect(store.scan(["objects/no/nothing.parquet"], tables.SEEN_SCHEMA), tables.SEEN_SCHEMA)


def test_a_store_of_the_earlier_format_is_named(store: Store, tmp_path: Path) -> None:
    store.create("log/000000000001.json", b"{}")
    with pytest.raises(StoreError, match="reviewclf store migrate"):
        store.snapshot()


def _append_often(uri: str, who: int, times: int) -> None:
    store = Store(uri)
    for number in range(times):
        while True:
            try:
                store.commit(store.snapshot(), key=f"{who} {number}", append={"seen": part(store, who + number)})
                break
            except ConflictError:
                continue


# Threads of delta-rs do not survive a fork.
SPAWN = multiprocessing.get_context("spawn")


def test_two_writers_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    writers = [SPAWN.Process(target=_append_often, args=(uri, who, 15)) for who in (100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert sorted(rows(Store(uri))) == [who + number for who in (100, 200) for number in range(15)]


def test_killed_writer_leaves_a_store_that_reads_and_goes_on(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    writer = SPAWN.Process(target=_append_often, args=(uri, 0, 10_000))
    writer.start()
    store = Store(uri)
    while store.snapshot().version < 5:
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(10)
    snapshot = store.snapshot()
    assert rows(store) == list(range(snapshot.version))
    _append_often(uri, 100_000, 1)
    assert rows(store) == [*range(snapshot.version), 100_000]
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
