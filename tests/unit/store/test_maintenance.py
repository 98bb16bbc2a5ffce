"""Keeping house: what is kept can be read as before, what is not kept is gone, and a killed run harms nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from reviewclf.errors import StoreError
from reviewclf.manifest import Manifest
from reviewclf.settings import MaintenanceSettings
from reviewclf.store import StageResult, Store
from reviewclf.store.compaction import compact
from reviewclf.store.inventory import take_inventory
from reviewclf.store.retention import remove_old
from tests.stores import Killed, before_each_write, held, killed_after

NOW = datetime.now(UTC) + timedelta(days=1)
LATER = NOW + timedelta(days=100)
FEW = MaintenanceSettings(keep_snapshots=3, keep_datasets=2)


def write(store: Store, *rows: int, key: str = "") -> None:
    part = store.put_part(pa.table({"row": pa.array(rows, pa.int64())}))
    store.commit(store.snapshot(), key=key or f"night {rows}", append={"seen": part})


def rows(store: Store, version: int | None = None) -> list[int]:
    return store.read(store.snapshot(version), "seen")["row"].to_pylist()


def files(store: Store) -> set[str]:
    return set(store.files())


def age(store: Store, key: str, days: float) -> None:
    when = (NOW - timedelta(days=days)).timestamp()
    os.utime(store.path(key), (when, when))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Thirty nights of two rows each."""
    store = Store(str(tmp_path / "склад с пробелом"))
    for night in range(30):
        write(store, 2 * night, 2 * night + 1)
    return store


# -- small parts ---------------------------------------------------------------------------------------------------------


def test_small_parts_become_one_with_the_same_rows_in_the_same_order(store: Store) -> None:
    before = store.snapshot()
    assert compact(store) == {"seen": 29}
    after = store.snapshot()
    assert len(after.keys("seen")) == 1
    assert rows(store) == rows(store, before.version) == list(range(60))
    assert after.identity("seen") == before.identity("seen")
    assert compact(store) == {}
    assert store.snapshot() == after


def test_dry_run_only_counts(store: Store) -> None:
    before, there = held(store.uri), files(store)
    assert compact(store, dry_run=True) == {"seen": 29}
    assert (held(store.uri), files(store)) == (before, there)


def test_large_parts_stay_and_their_neighbours_keep_their_places(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    expected: list[int] = []
    for size in (10, 20, 30, 40, 60_000, 1, 2, 3, 4, 30_000, 30_000):
        part = range(len(expected), len(expected) + size)
        write(store, *part)
        expected += part
    compact(store)
    sizes = [part.rows for part in store.delta.sizes("seen", store.snapshot().tables["seen"].version)]
    assert sizes == [100, 60_000, 30_010, 30_000]
    assert rows(store) == expected


def test_later_nights_are_not_written_anew_each_time(store: Store) -> None:
    compact(store)
    (whole,) = store.snapshot().keys("seen")
    write(store, 100)
    write(store, 101)
    assert compact(store) == {}
    assert store.snapshot().keys("seen")[0] == whole
    write(store, 102)
    assert compact(store) == {"seen": 3}


def test_killed_compaction_leaves_the_same_rows(store: Store) -> None:
    writes = 0
    while killed_after(writes, lambda: compact(store)):
        assert rows(store) == list(range(60))
        writes += 1
    assert writes > 1
    assert len(store.snapshot().keys("seen")) == 1


@pytest.mark.parametrize("moment", range(3))
def test_night_that_is_published_meanwhile_is_not_lost(store: Store, moment: int) -> None:
    came = False

    def publish_once(number: int) -> None:
        nonlocal came
        if number == moment and not came:
            came = True
            write(Store(store.uri), 1000)

    with before_each_write(publish_once):
        compact(store)
    assert came
    assert rows(store) == [*range(60), 1000]


# -- what is old ---------------------------------------------------------------------------------------------------------


def test_nothing_that_is_young_is_removed(store: Store) -> None:
    compact(store)
    there = files(store)
    assert remove_old(store, FEW, datasets=(), now=NOW).files == {}
    assert files(store) == there


def test_kept_snapshots_are_read_as_before_and_the_others_are_gone(store: Store) -> None:
    newest = store.snapshot().version
    compact(store)
    expected = {version: rows(store, version) for version in range(newest - 1, newest + 2)}
    removed = remove_old(store, FEW, datasets=(), now=LATER)
    assert removed.files["snapshots"] == newest + 1 - 3
    again = Store(store.uri)
    assert {version: rows(again, version) for version in expected} == expected
    with pytest.raises(StoreError, match="is not there"):
        again.snapshot(newest - 2)
    table = DeltaTable(again.delta.uri("seen"))
    assert table.to_pyarrow_table().num_rows == 60
    table.load_as_version(expected_version := again.snapshot(newest - 1).tables["seen"].version)
    assert table.version() == expected_version
    # Its log begins at a checkpoint; the parts before it are still those of kept versions.
    assert removed.files["logs of tables"] > 20
    write(again, 100)
    assert rows(again) == [*range(60), 100]


def test_store_can_be_read_as_it_was_at_any_time_within_retention(store: Store) -> None:
    newest = store.snapshot().version
    for version in range(1, newest - 5):
        age(store, f"snapshots/{version:012d}.json", 90)
    for version in range(newest - 5, newest + 1):
        age(store, f"snapshots/{version:012d}.json", 5)
    remove_old(store, MaintenanceSettings(keep_snapshots=1, keep_days=30), datasets=(), now=NOW)
    # Thirty days ago the newest one was the last of the old ones.
    kept = sorted(key for key in files(store) if key.startswith("snapshots/"))
    assert kept == [f"snapshots/{version:012d}.json" for version in range(newest - 6, newest + 1)]
    assert len(rows(store, newest - 6)) == 2 * (newest - 6)


def test_what_a_killed_run_has_left_goes_after_the_grace_period(store: Store) -> None:
    left = [store.put_bytes(b"rows", ".bin"), "objects/aa/.new-abc", "tables/seen/00000001-abc.parquet", "stages/clean/.new-1"]
    for key in left[1:]:
        store.create(key, b"x")
    there = files(store)
    assert remove_old(store, FEW, datasets=(), now=NOW - timedelta(hours=2)).files == {}
    for key in left:
        age(store, key, 3)
    assert sum(remove_old(store, FEW, datasets=(), now=NOW, dry_run=True).files.values()) == 4
    assert files(store) == there
    remove_old(store, FEW, datasets=(), now=NOW)
    assert there - files(store) == set(left)


def test_object_that_is_written_once_more_is_young_again(store: Store) -> None:
    key = store.put_bytes(b"rows", ".bin")
    age(store, key, 50)
    store.put_bytes(b"rows", ".bin")
    remove_old(store, FEW, datasets=(), now=NOW)
    assert store.read_bytes(key) == b"rows"


def test_outputs_and_parts_that_a_kept_manifest_names_stay(store: Store) -> None:
    def run(stage: str, number: int) -> Manifest:
        made = store.put_part(pa.table({"row": [1000 + number]}))
        return store.run_stage(
            stage, 1, {"n": number}, lambda: StageResult(outputs={"rows": made, "seen": store.snapshot().keys("seen")})
        )

    old, new = run("select", 1), run("select", 2)
    compact(store)
    for manifest, days in ((old, 90), (new, 50)):
        age(store, f"stages/select/{manifest.digest}.json", days)
    for key in files(store):
        if key.startswith(("objects/", "tables/", "snapshots/")):
            age(store, key, 95)
    remove_old(store, FEW, datasets=(), now=NOW)
    assert store.manifest("select", old.digest) is None
    # The newest of its stage stays, as old as it is, and so do the parts that it read.
    assert store.manifest("select", new.digest) == new
    assert store.read(new, "rows")["row"].to_pylist() == [1002]
    assert store.read(new, "seen").num_rows == 60
    with pytest.raises(StoreError):
        store.read(old, "rows")


def test_promotions_and_needed_training_sets_stay_for_ever(store: Store) -> None:
    made = [
        store.run_stage(
            "dataset", 1, {"n": n}, lambda n=n: StageResult(outputs={"dataset": store.put_table(pa.table({"n": [n]}))})
        )
        for n in range(6)
    ]  # type: ignore[misc]
    event = store.commit_manifest(Manifest(stage="promotions/1", digest="000001"))
    for days, manifest in enumerate(reversed(made)):
        age(store, f"stages/dataset/{manifest.digest}.json", 200 + 40 * days)
        age(store, manifest.keys("dataset")[0], 400)
    age(store, "stages/promotions/1/000001.json", 1000)
    champion, newest = made[0], made[4:]
    remove_old(store, FEW, datasets={champion.digest, "gone"}, now=NOW)
    assert store.manifest("promotions/1", "000001") == event
    for manifest in (champion, *newest):
        assert store.manifest("dataset", manifest.digest) == manifest
        assert store.read(manifest, "dataset").num_rows == 1
    assert [store.manifest("dataset", manifest.digest) for manifest in made[1:4]] == [None] * 3


def test_training_set_that_stays_can_be_made_again(store: Store) -> None:
    made = store.run_stage("dataset", 1, {}, lambda: StageResult(details={"snapshot": 7}))
    compact(store)
    parts = set(store.snapshot(15).keys("seen"))
    for night in range(3):
        write(store, 100 + night)
    remove_old(store, FEW, datasets={made.digest}, now=LATER)
    again = Store(store.uri)
    assert rows(again, 7) == list(range(14))
    assert len(again.snapshot(7).keys("seen")) == 7
    # Only its own version is held, not all of those that came after.
    assert len(parts & files(again)) == 7
    with pytest.raises(StoreError, match="is not there"):
        again.snapshot(8)


def test_old_journals_and_snapshots_of_the_earlier_format_go(store: Store) -> None:
    for key, days in (("journal/votes/a.jsonl", 40), ("journal/votes/b.jsonl", 20), ("log/000000000001.json", 40)):
        store.create(key, b"{}\n")
        age(store, key, days)
    remove_old(store, FEW, datasets=(), now=NOW)
    assert store.find("journal").keys() == {"journal/votes/b.jsonl"}
    assert not store.find("log")


def killed_while_removing(store: Store, removals: int, work: Callable[[], object]) -> bool:
    remove, done = Store.remove, 0

    def counted(self: Store, key: str) -> None:
        nonlocal done
        if done >= removals:
            raise Killed
        done += 1
        remove(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "remove", counted)
        try:
            work()
        except Killed:
            return True
    return False


def test_killed_while_removing_leaves_a_store_that_can_be_read(store: Store) -> None:
    compact(store)
    removals = 0
    while killed_while_removing(store, removals, lambda: remove_old(store, FEW, datasets=(), now=LATER)):
        fresh = Store(store.uri)
        # Whatever a snapshot that is still there names, is there.
        for version in (int(key[10:22]) for key in files(store) if key.startswith("snapshots/")):
            assert rows(fresh, version) == list(range(2 * min(version, 30)))
        removals = 2 * removals + 1
    assert removals > 30
    assert remove_old(store, FEW, datasets=(), now=LATER).files == {}


def test_inventory_counts_every_byte_once(store: Store) -> None:
    compact(store)
    store.create("journal/votes/a.jsonl", b"{}\n")
    found = take_inventory(store)
    assert (found.tables["seen"].rows, found.tables["seen"].parts) == (60, 1)
    assert found.tables["seen"].older_bytes > 0
    assert found.others["journals"].files == 1
    assert found.bytes == sum(file.bytes for file in store.files().values())
