"""What edits of reviews change in the tables: older texts leave `clean` and `duplicates` and stand in `history`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.data.cleaning import Cleaner, day_of
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
    own = _Texts(store, pages, cleaner, touched)
    promoted = set(own.promoted.values())

    def clean(place: int, position: int, row: Row) -> Row | None:
        if (place, position) in own.leaving:
            return None
        when = cleaner.dated.get(row["review_id"]) if row["created_at"] is None else None
        return row if when is None else {**row, "created_at": when, "dt": day_of(when)}

    def duplicate(place: int, position: int, row: Row) -> Row | None:
        key, owner = row["text_hash"], cleaner.first.get(row["text_hash"])
        if key not in touched:
            return row
        if owner is None or cleaner.holds[row["review_id"]].text_hash != key:
            return None
        if owner == row["review_id"] in promoted:
            # Only the row that took the place goes: others with its id are copies of it.
            promoted.discard(owner)
            return None
        return {**row, "duplicate_of": owner}

    def near_duplicate(place: int, position: int, row: Row) -> Row | None:
        return None if row["text_hash"] in touched and cleaner.first.get(row["text_hash"]) != row["review_id"] else row

    removed: Counter[str] = Counter()
    for table, change in zip(REWRITTEN, (clean, duplicate, near_duplicate), strict=True):
        for place, key in enumerate(pages[table]):
            # Parts of `clean` are big, and few hold what was edited.
            if table != "clean" or place in own.changed_places or cleaner.dated:
                rows = store.read_table([key]).to_pylist()
                changed = [change(place, position, row) for position, row in enumerate(rows)]
                kept = [row for row in changed if row is not None]
                removed[table] += len(rows) - len(kept)
                if kept != rows:
                    pages[table][place] = store.put_table(pa.Table.from_pylist(kept, schema=tables.SCHEMAS[table]))
    stored = {table: pages[table][: len(base.keys(table))] for table in REWRITTEN}
    fresh = {table: pages[table][len(base.keys(table)) :] for table in REWRITTEN}
    fresh["clean"] += store.put_part(own.promoted_rows(), tables.CLEAN_SCHEMA)
    fresh["history"] = store.put_part(own.history(), tables.HISTORY_SCHEMA)
    counts = {"superseded": len(cleaner.edits), "promoted": len(own.promoted)}
    counts |= {"left_clean": removed["clean"], "left_duplicates": removed["duplicates"]}
    return Applied(stored, {**new, **fresh}, counts)


class _Texts:
    """The texts that edits are about, as they stand in ``clean`` and ``duplicates``."""

    def __init__(self, store: Store, pages: Mapping[str, list[str]], cleaner: Cleaner, touched: set[str]) -> None:
        self._cleaner = cleaner
        self._by_review: dict[tuple[str, str], dict[str, Any]] = {}
        self._by_text: dict[str, dict[str, Any]] = {}
        found: dict[tuple[int, int], Row] = {}
        wanted = pa.array(sorted(touched), pa.string())
        for place, part in enumerate(store.iter_tables(pages["clean"])):
            is_wanted = pc.is_in(part["text_hash"], value_set=wanted)
            positions = np.flatnonzero(is_wanted.to_numpy()).tolist()
            for position, row in zip(positions, part.filter(is_wanted).to_pylist(), strict=True):
                found[place, position] = row
                self._by_review[row["review_id"], row["text_hash"]] = row
                self._by_text.setdefault(row["text_hash"], row)
        for part in store.iter_tables(pages["duplicates"]):
            for row in part.filter(pc.is_in(part["text_hash"], value_set=wanted)).to_pylist():
                self._by_review.setdefault((row["review_id"], row["text_hash"]), row)
        # A review that got its earlier text back stands there twice, of which the later one stays.
        kept = {row["text_hash"]: at for at, row in found.items() if cleaner.first.get(row["text_hash"]) == row["review_id"]}
        # Rows of ``clean``, by part and position, that leave it.
        self.leaving = {at for at, row in found.items() if kept.get(row["text_hash"]) != at}
        self.changed_places = {place for place, _ in self.leaving}
        self.promoted = {
            key: owner for key in sorted(touched) if (owner := cleaner.first.get(key)) is not None and key not in kept
        }

    def promoted_rows(self) -> list[dict[str, Any]]:
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

    def history(self) -> list[dict[str, Any]]:
        rows = []
        for edit in self._cleaner.edits:
            text = self._by_text[edit.text_hash]
            own = self._by_review.get((edit.review_id, edit.text_hash), {})
            rows.append({**edit._asdict(), "text": own.get("text") or text["text"], "text_clean": text["text_clean"]})
        return rows
