"""What edits of reviews change in the tables: older texts leave `clean` and `duplicates` and stand in `history`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.data.cleaning import Cleaner, day_of
from reviewclf.data.lookups import matching_parts
from reviewclf.store import Snapshot, Store

REWRITTEN = ("clean", "duplicates", "near_duplicates")

Outputs = dict[str, list[str]]
Row = dict[str, Any]


class Applied(NamedTuple):
    """Parts of the tables after the edits: those that the store held, part by part as before, the night's own, and counts."""

    stored: Outputs
    new: Outputs
    counts: dict[str, int]


def apply_edits(store: Store, base: Snapshot, new: Mapping[str, list[str]], cleaner: Cleaner) -> Applied:
    """Write anew the parts that hold texts which were edited, and the history of these texts.

    Of an older text that somebody else has written too, the next copy takes the place in ``clean``.

    Returns
    -------
    Applied
        ``counts``: ``superseded`` (rows of history), ``left_clean`` and ``left_duplicates`` (rows that stand there no more),
        ``promoted`` (copies that took a place in ``clean``).
    """
    pages = {table: [*base.keys(table), *new[table]] for table in REWRITTEN}
    touched = {edit.text_hash for edit in cleaner.edits}
    places = {table: _places(store, table, keys, text_hash=touched) for table, keys in pages.items()}
    own = _Texts(store, pages, places, cleaner, touched)
    dated = _places(store, "clean", pages["clean"], review_id=cleaner.dated)
    places["clean"] = sorted({*places["clean"], *dated})
    # Copies that take a place in ``clean``: of their rows one goes, others with their ids are copies of them.
    promoted = {(owner, key) for key, owner in own.promoted.items()}

    def stays(table: str, at: tuple[int, int], row: Row) -> bool:
        key, owner = row["text_hash"], cleaner.first.get(row["text_hash"])
        if table == "clean":
            return at not in own.leaving
        if table == "near_duplicates":
            return bool(owner == row["review_id"])
        held = cleaner.holds.get(row["review_id"])
        if owner is None or held is None or held.text_hash != key:
            return False
        is_promoted = (row["review_id"], key) in promoted
        promoted.discard((row["review_id"], key))
        return not is_promoted

    removed: Counter[str] = Counter()
    for table, found in places.items():
        for place in found:
            before = store.read_table([pages[table][place]])
            part, is_kept = before, np.ones(before.num_rows, dtype=bool)
            positions, rows = _rows_with(part, "text_hash", touched)
            for position, row in zip(positions, rows, strict=True):
                is_kept[position] = stays(table, (place, position), row)
            if table == "duplicates":
                owners = [cleaner.first.get(row["text_hash"], row["duplicate_of"]) for row in rows]
                part = _with_values(part, positions, duplicate_of=owners)
            if table == "clean":
                part = _with_times(part, cleaner)
            part = part.filter(pa.array(is_kept))
            removed[table] += before.num_rows - part.num_rows
            if not part.equals(before):
                pages[table][place] = store.put_table(part.combine_chunks())
    stored = {table: pages[table][: len(base.keys(table))] for table in REWRITTEN}
    fresh = {table: pages[table][len(base.keys(table)) :] for table in REWRITTEN}
    fresh["clean"] += store.put_part(own.promoted_rows(), tables.CLEAN_SCHEMA)
    fresh["history"] = store.put_part(own.history(), tables.HISTORY_SCHEMA)
    counts = {"superseded": len(cleaner.edits), "promoted": len(own.promoted)}
    counts |= {"left_clean": removed["clean"], "left_duplicates": removed["duplicates"]}
    return Applied(stored, {**new, **fresh}, counts)


class _Texts:
    """The texts that edits are about, as they stand in ``clean`` and ``duplicates``."""

    def __init__(
        self,
        store: Store,
        pages: Mapping[str, list[str]],
        places: Mapping[str, Sequence[int]],
        cleaner: Cleaner,
        touched: set[str],
    ) -> None:
        self._cleaner = cleaner
        self._by_review: dict[tuple[str, str], Row] = {}
        self._by_text: dict[str, Row] = {}
        found: dict[tuple[int, int], Row] = {}
        for place in places["clean"]:
            for position, row in zip(*_rows_with(store.read_table([pages["clean"][place]]), "text_hash", touched), strict=True):
                found[place, position] = row
                self._by_review[row["review_id"], row["text_hash"]] = row
                self._by_text.setdefault(row["text_hash"], row)
        for place in places["duplicates"]:
            for row in _rows_with(store.read_table([pages["duplicates"][place]]), "text_hash", touched)[1]:
                self._by_review.setdefault((row["review_id"], row["text_hash"]), row)
        # A review that got its earlier text back stands there twice, of which the later one stays.
        kept = {row["text_hash"]: at for at, row in found.items() if cleaner.first.get(row["text_hash"]) == row["review_id"]}
        # Rows of ``clean``, by part and position, that leave it.
        self.leaving = {at for at, row in found.items() if kept.get(row["text_hash"]) != at}
        self.promoted = {
            key: owner for key in sorted(touched) if (owner := cleaner.first.get(key)) is not None and key not in kept
        }

    def promoted_rows(self) -> list[Row]:
        rows = []
        for key, owner in self.promoted.items():
            held, text = self._cleaner.holds[owner], self._by_text[key]
            own = self._by_review.get((owner, key), {})
            rows.append(
                {
                    **text,
                    "review_id": owner,
                    "text": own.get("text") or text["text"],
                    "source": held.source,
                    "created_at": held.created_at,
                    "dt": day_of(held.created_at),
                }
            )
        return rows

    def history(self) -> list[Row]:
        rows = []
        for edit in self._cleaner.edits:
            text = self._by_text[edit.text_hash]
            own = self._by_review.get((edit.review_id, edit.text_hash), {})
            rows.append({**edit._asdict(), "text": own.get("text") or text["text"], "text_clean": text["text_clean"]})
        return rows


def _places(store: Store, table: str, keys: Sequence[str], **among: Any) -> list[int]:
    """Which of the parts hold any of these values."""
    ((column, values),) = among.items()
    found = matching_parts(store, keys, tables.SCHEMAS[table], column, values)
    return [place for place, key in enumerate(keys) if key in found]


def _rows_with(part: pa.Table, column: str, among: set[str]) -> tuple[list[int], list[Row]]:
    """Positions of the rows with one of these values, and the rows."""
    is_wanted = pc.is_in(part[column], value_set=pa.array(sorted(among), pa.string()))
    return np.flatnonzero(is_wanted.to_numpy()).tolist(), part.filter(is_wanted).to_pylist()


def _with_times(part: pa.Table, cleaner: Cleaner) -> pa.Table:
    """The part with the times that its reviews have got."""
    positions, rows = _rows_with(part, "review_id", set(cleaner.dated))
    timeless = [(position, row) for position, row in zip(positions, rows, strict=True) if row["created_at"] is None]
    times = [cleaner.dated[row["review_id"]] for _, row in timeless]
    return _with_values(part, [position for position, _ in timeless], created_at=times, dt=[day_of(when) for when in times])


def _with_values(part: pa.Table, positions: Sequence[int], **columns: Sequence[Any]) -> pa.Table:
    """The part with other values at these positions, which ascend."""
    is_changed = np.zeros(part.num_rows, dtype=bool)
    is_changed[list(positions)] = True
    for name, values in columns.items():
        column = part[name].combine_chunks()
        changed = pc.replace_with_mask(column, pa.array(is_changed), pa.array(values, column.type))
        part = part.set_column(part.schema.get_field_index(name), part.schema.field(name), changed)
    return part
