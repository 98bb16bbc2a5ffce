"""Edits over several nights: the tables hold each review's newest text once, and its older ones in history."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf import tables
from reviewclf.data.bands import find_near_duplicates
from reviewclf.data.cleaning import CleanedPart, Cleaner
from reviewclf.data.edits import apply_edits
from reviewclf.data.lookups import KnownReviews
from reviewclf.store import Store
from reviewclf.text import text_hash

# (id, text): few of each, so that reviews are edited, copied and edited back.
night = st.lists(
    st.tuples(st.sampled_from("12345"), st.sampled_from(["Плед", "плед!", "Туфли", "Чайник", "Кукла"])), max_size=8
)


def live(store: Store, rows: list[tuple[str, str]], number: int, *, chunk: int = 3, remembers: bool = False) -> Cleaner:
    """Clean one night's rows on top of the store, in chunks, and commit them; looked up in the store, or all remembered."""
    base = store.snapshot()
    known = KnownReviews(store, base.keys("clean"), base.keys("duplicates"))
    cleaner = Cleaner(known=None if remembers else known)
    if remembers:
        cleaner.know(store.read(base, "clean"))
        cleaner.know_duplicates(store.read(base, "duplicates"))
    raw = pa.Table.from_pylist(
        [
            {"review_id": key, "text": text, "source": "a.csv", "extra": "{}", "row_number": n}
            for n, (key, text) in enumerate(rows)
        ],
        schema=tables.RAW_SCHEMA,
    )
    new: dict[str, list[str]] = {name: [] for name in CleanedPart._fields if name not in ("known", "quarantine")}
    for start in range(0, raw.num_rows, chunk):
        part = cleaner.clean(raw.slice(start, chunk), {})
        put = {name: store.put_part(getattr(part, name)) for name in new}
        new = {name: [*keys, *put[name]] for name, keys in new.items()}
        known.add(put["clean"], put["duplicates"])
        if not remembers:
            cleaner.forget()
    near = find_near_duplicates(store, base, new["clean"], 0.7)
    new |= {"near_duplicates": near.rows, "bands": near.bands}
    replace: dict[str, list[str]] = {}
    if cleaner.edits:
        applied = apply_edits(store, base, new, cleaner)
        new, replace = applied.new, applied.stored
    store.commit(base, key=f"night {number}", append=new, replace=replace)
    return cleaner


def rows_of(store: Store, table: str) -> list[dict[str, Any]]:
    return [row for part in store.iter_tables(store.snapshot().keys(table)) for row in part.to_pylist()]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(night, min_size=1, max_size=4))
def test_tables_hold_what_each_review_says_now_and_what_it_said_before(nights: list[list[tuple[str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(str(Path(folder) / "store"))
        now: dict[str, str] = {}
        edits: list[tuple[str, str, str]] = []
        for number, rows in enumerate(nights):
            live(store, rows, number)
            for key, text in rows:
                if key in now and now[key] != text_hash(text):
                    edits.append((key, now[key], text_hash(text)))
                now[key] = text_hash(text)
        clean, duplicates = rows_of(store, "clean"), rows_of(store, "duplicates")
        owners = {row["text_hash"]: row["review_id"] for row in clean}
        assert len(owners) == len(clean)
        assert set(owners) == set(now.values())
        assert all(now[row["review_id"]] == row["text_hash"] == text_hash(row["text"]) for row in clean)
        assert all(now[row["review_id"]] == row["text_hash"] for row in duplicates)
        assert all(row["duplicate_of"] == owners[row["text_hash"]] for row in duplicates)
        assert {row["review_id"] for row in [*clean, *duplicates]} == set(now)
        history = rows_of(store, "history")
        assert [(row["review_id"], row["text_hash"], row["replaced_by"]) for row in history] == edits
        assert all(text_hash(row["text"]) == row["text_hash"] for row in history)
        assert {row["review_id"] for row in rows_of(store, "near_duplicates")} <= {row["review_id"] for row in clean}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(night, min_size=1, max_size=4))
def test_what_is_looked_up_in_chunks_leaves_what_remembering_all_leaves(nights: list[list[tuple[str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stores = [Store(str(Path(folder) / name)) for name in ("remembered", "row by row", "at once")]
        for number, rows in enumerate(nights):
            for store, chunk in zip(stores, (100, 1, 100), strict=True):
                live(store, rows, number, chunk=chunk, remembers=store is stores[0])
        for table in ("clean", "duplicates", "near_duplicates", "history"):
            found = [rows_of(store, table) for store in stores]
            assert found[1] == found[0], table
            assert found[2] == found[0], table


def test_edits_change_only_the_parts_that_hold_the_texts(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    live(store, [("1", "Плед")], 0)
    live(store, [("2", "Туфли")], 1)
    before = store.snapshot()
    live(store, [("2", "Чайник")], 2)
    after = store.snapshot()
    assert after.keys("clean")[0] == before.keys("clean")[0]
    assert len(after.keys("clean")) == len(before.keys("clean")) + 1


def test_text_that_moved_to_another_review_is_no_near_duplicate_of_itself(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    text = "Плед тёплый, большой, цвет как на фото, доставили быстро"
    live(store, [("1", text)], 0)
    live(store, [("1", "Чайник шумит и протекает у носика"), ("2", text), ("3", text + " очень")], 1)
    assert {row["review_id"]: row["text"] for row in rows_of(store, "clean")}["2"] == text
    found = [(row["review_id"], row["near_duplicate_of"]) for row in rows_of(store, "near_duplicates")]
    assert found == [("3", text_hash(text))]
