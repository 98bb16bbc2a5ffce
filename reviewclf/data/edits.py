"""What edits of reviews change in the tables: older texts leave `clean` and `duplicates` and stand in `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.data.cleaning import Cleaner, day_of
from reviewclf.storage import Snapshot, Store

REWRITTEN = ("clean", "duplicates", "near_duplicates")
_SCHEMAS = {
    "clean": tables.CLEAN_SCHEMA,
    "duplicates": tables.DUPLICATE_SCHEMA,
    "near_duplicates": tables.NEAR_DUPLICATE_SCHEMA,
}

Outputs = dict[str, list[str]]


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
    own = _Texts(store, pages, cleaner)
    counts = {"superseded": len(cleaner.edits), "left_clean": 0, "left_duplicates": 0, "promoted": len(own.promoted)}
    for place, key in enumerate(pages["clean"]):
        if place in own.clean_places or cleaner.dated:
            gone = own.removed_from_clean(place)
            counts["left_clean"] += len(gone)
            pages["clean"][place] = _without(store, key, gone, "clean", dated=cleaner.dated)
    promoted = set(own.promoted.values())
    for place, key in enumerate(pages["duplicates"]):
        pages["duplicates"][place], gone_rows = _duplicates(store, key, cleaner, promoted)
        counts["left_duplicates"] += gone_rows
    for place, key in enumerate(pages["near_duplicates"]):
        part = store.read_table([key])
        gone = [
            row
            for row, (review_id, text) in enumerate(_pairs(part))
            if text in cleaner.touched and cleaner.first.get(text) != review_id
        ]
        pages["near_duplicates"][place] = _without(store, key, gone, "near_duplicates")
    stored = {table: pages[table][: len(base.keys(table))] for table in REWRITTEN}
    fresh = {table: pages[table][len(base.keys(table)) :] for table in REWRITTEN}
    fresh["clean"] += store.put_part(own.promoted_rows(), tables.CLEAN_SCHEMA)
    fresh["history"] = store.put_part(own.history(), tables.HISTORY_SCHEMA)
    return Applied(stored, {**new, **fresh}, counts)


class _Texts:
    """The texts that edits are about, as they stand in ``clean`` and ``duplicates``."""

    def __init__(self, store: Store, pages: Mapping[str, list[str]], cleaner: Cleaner) -> None:
        self._cleaner = cleaner
        self._by_review: dict[tuple[str, str], dict[str, Any]] = {}
        self._by_text: dict[str, dict[str, Any]] = {}
        self._rows: dict[int, list[tuple[int, str, str]]] = {}
        touched = cleaner.touched
        wanted = pa.array(sorted(touched), pa.string())
        for place, part in enumerate(store.iter_tables(pages["clean"])):
            is_wanted = pc.is_in(part["text_hash"], value_set=wanted)
            found = np.flatnonzero(is_wanted.to_numpy()).tolist()
            for position, row in zip(found, part.filter(is_wanted).to_pylist(), strict=True):
                self._rows.setdefault(place, []).append((position, row["review_id"], row["text_hash"]))
                self._by_review[row["review_id"], row["text_hash"]] = row
                self._by_text.setdefault(row["text_hash"], row)
        for part in store.iter_tables(pages["duplicates"]):
            for row in part.filter(pc.is_in(part["text_hash"], value_set=wanted)).to_pylist():
                self._by_review.setdefault((row["review_id"], row["text_hash"]), row)
        # A review that got its earlier text back stands there twice, of which the later one stays.
        self._kept = {
            key: (place, position)
            for place, rows in self._rows.items()
            for position, review_id, key in rows
            if cleaner.first.get(key) == review_id
        }
        self.promoted = {
            key: owner for key in sorted(touched) if (owner := cleaner.first.get(key)) is not None and key not in self._kept
        }

    @property
    def clean_places(self) -> set[int]:
        return set(self._rows)

    def removed_from_clean(self, place: int) -> list[int]:
        return [position for position, _, key in self._rows.get(place, []) if self._kept.get(key) != (place, position)]

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


def _duplicates(store: Store, key: str, cleaner: Cleaner, promoted: set[str]) -> tuple[str, int]:
    """The part without copies that are none any more, and with today's clean row of each text; how many rows went."""
    rows = store.read_table([key]).to_pylist()
    kept = []
    for row in rows:
        owner = cleaner.first.get(row["text_hash"])
        if row["text_hash"] not in cleaner.touched:
            kept.append(row)
        elif owner is None or cleaner.holds[row["review_id"]].text_hash != row["text_hash"]:
            continue
        elif row["review_id"] in promoted and owner == row["review_id"]:
            # Only the row that took the place goes: others with its id are copies of it.
            promoted.discard(row["review_id"])
        else:
            kept.append({**row, "duplicate_of": owner})
    if kept == rows:
        return key, 0
    return store.put_table(pa.Table.from_pylist(kept, schema=tables.DUPLICATE_SCHEMA)), len(rows) - len(kept)


def _without(
    store: Store, key: str, gone: list[int], table: str | None = None, *, dated: Mapping[str, Any] | None = None
) -> str:
    part = store.read_table([key])
    undated = _undated(part, dated) if dated else []
    if not gone and not undated:
        return key
    if undated:
        rows = part.to_pylist()
        for position in undated:
            when = (dated or {})[rows[position]["review_id"]]
            rows[position].update(created_at=when, dt=day_of(when))
        part = pa.Table.from_pylist(rows, schema=_SCHEMAS[table or ""])
    mask = np.ones(part.num_rows, dtype=bool)
    mask[gone] = False
    return store.put_table(part.filter(pa.array(mask)).combine_chunks())


def _undated(part: pa.Table, dated: Mapping[str, Any]) -> list[int]:
    wanted = pc.and_(
        pc.is_null(part["created_at"]), pc.is_in(part["review_id"], value_set=pa.array(sorted(dated), pa.string()))
    )
    return np.flatnonzero(wanted.to_numpy()).tolist()


def _pairs(part: pa.Table) -> list[tuple[str, str]]:
    return list(zip(part["review_id"].to_pylist(), part["text_hash"].to_pylist(), strict=True))
