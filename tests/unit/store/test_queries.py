"""What is new in a table, and what is known, whatever was laid out anew, rewritten or forgotten in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars
import pytest

from reviewclf import tables
from reviewclf.store import Snapshot, Store
from reviewclf.store.queries import known_rows, rows_since, unknown_parts

ON = ["review_id", "text_hash"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def part(store: Store, *ids: str, text: str = "h") -> list[str]:
    rows = [{"review_id": i, "text": i, "text_clean": i, "text_hash": f"{text}{i}", "source": "a"} for i in ids]
    return store.put_part(rows, tables.CLEAN_SCHEMA)


def commit(store: Store, **change: Any) -> Snapshot:
    base = store.snapshot()
    return store.commit(base, key=f"change {base.version}", **change)


def since(store: Store, version: int | None) -> list[str]:
    found = rows_since(store, store.snapshot(), "clean", version, ON).collect()
    return sorted(found["review_id"].to_list())


def test_rows_that_were_appended_are_new_and_no_others(store: Store) -> None:
    first = commit(store, append={"clean": part(store, "1", "2")})
    assert since(store, None) == ["1", "2"]
    assert since(store, first.version) == []
    second = commit(store, append={"clean": part(store, "3")})
    assert since(store, first.version) == ["3"]
    assert since(store, second.version) == []
    # Other tables are no news of this one.
    commit(store, append={"seen": store.put_part([{"row": 1}], tables.SEEN_SCHEMA)})
    assert since(store, second.version) == []


def test_rows_that_were_laid_out_anew_are_no_news_beside_those_that_came(store: Store) -> None:
    first = commit(store, append={"clean": part(store, "1", "2")})
    commit(store, append={"clean": part(store, "3")})
    commit(store, replace={"clean": part(store, "1", "2", "3")}, is_data=False)
    assert since(store, first.version) == ["3"]
    commit(store, append={"clean": part(store, "4")})
    assert since(store, first.version) == ["3", "4"]


def test_of_a_part_in_which_a_review_was_edited_only_that_review_is_new(store: Store) -> None:
    first = commit(store, append={"clean": part(store, "1", "2")})
    commit(store, replace={"clean": [*part(store, "1"), *part(store, "2", text="edited ")]})
    assert since(store, first.version) == ["2"]


def test_all_rows_are_new_where_the_earlier_snapshot_or_its_parts_are_gone(store: Store) -> None:
    first = commit(store, append={"clean": part(store, "1", "2")})
    (old,) = first.keys("clean")
    commit(store, replace={"clean": part(store, "1", "2", "3")}, is_data=False)
    commit(store, append={"clean": part(store, "4")})
    store.remove(old)
    assert since(store, first.version) == ["1", "2", "3", "4"]
    store.remove(f"snapshots/{first.version:012d}.json")
    assert since(store, first.version) == ["1", "2", "3", "4"]


def test_known_rows_are_those_that_agree_in_every_column(store: Store) -> None:
    keys = commit(store, append={"clean": part(store, "1", "2")}).keys("clean")
    asked = polars.DataFrame({"review_id": ["1", "1", "2", "3"], "text_hash": ["h1", "h1", "other", "h3"]})
    assert known_rows(store, keys, tables.CLEAN_SCHEMA, asked).rows() == [("1", "h1")]
    assert known_rows(store, [], tables.CLEAN_SCHEMA, asked).rows() == []


def test_only_rows_that_the_table_lacks_are_appended(store: Store) -> None:
    base = commit(store, append={"clean": part(store, "1", "2")})
    whole, some, none = part(store, "3"), part(store, "2", "4"), part(store, "1")
    found = unknown_parts(store, base, "clean", [*whole, *some, *none], ON)
    assert found[0] == whole[0]
    assert store.read_table(found)["review_id"].to_pylist() == ["3", "4"]
    assert unknown_parts(store, commit(store, append={"clean": found}), "clean", [*whole, *some], ON) == []
