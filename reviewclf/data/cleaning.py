"""Raw rows become clean rows, duplicates and quarantine, chunk by chunk. Pure but for what it remembers and looks up."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from reviewclf import tables
from reviewclf.data.lookups import KnownReviews
from reviewclf.data.sources.rows import made_id
from reviewclf.text import clean_texts, repaired, text_hash

_KNOWN_SCHEMA = pa.schema([("source", pa.string())])


class CleanedPart(NamedTuple):
    """What one chunk of raw rows became: raw rows = clean + duplicates + quarantine + known.

    Texts that were edited since stand in ``clean`` and ``duplicates`` until :func:`reviewclf.data.edits.apply_edits` has
    moved them to ``history``. ``known`` holds the sources of reviews that brought nothing but their time.
    """

    clean: pa.Table
    duplicates: pa.Table
    quarantine: pa.Table
    known: pa.Table


class Held(NamedTuple):
    """What is known of an id."""

    text_hash: str
    source: str
    created_at: datetime | None


class Edit(NamedTuple):
    """A text that a review had before, or that came later than the newer one which replaces it."""

    review_id: str
    source: str
    text_hash: str
    created_at: datetime | None
    replaced_by: str
    replaced_by_created_at: datetime | None


class Cleaner:
    """Cleans chunks one after another, and recognises what earlier chunks and nights have brought.

    The same id with another text from the same source is an edited review: the text with the later time wins or, where one
    has no time, the one that came later. An id that another source has used already is no id of this one: its reviews get one
    made of source and id, by which their edits are recognised too.

    Parameters
    ----------
    ids_ignored : collection of str
        Sources whose ids name something else than reviews: their reviews get ids made of source and text.
    stale : collection of int
        Numbers of rows that came before what is known of their reviews, for those whose times do not tell.
    known : KnownReviews, optional
        Where the reviews of earlier nights and chunks are looked up, so that they need not be remembered.

    Attributes
    ----------
    holds : dict of str to Held
        By id, what holds now; with `known`, only of reviews of this chunk and of those that edits are about.
    first : dict of str to str
        By text hash, the id of the clean row; as `holds`.
    ids_ignored : set of str
        As given.
    edited, repaired : int
        Reviews that got a newer text, and rows whose text was read again from a wrong encoding.
    edits : list of Edit
        In the order in which they came.
    dated : dict of str to datetime
        Times of reviews that are clean already and had none.
    """

    def __init__(
        self, *, ids_ignored: Collection[str] = (), stale: Collection[int] = (), known: KnownReviews | None = None
    ) -> None:
        self.holds: dict[str, Held] = {}
        self.first: dict[str, str] = {}
        self.edits: list[Edit] = []
        self.dated: dict[str, datetime] = {}
        self._copies: dict[str, list[str]] = {}
        self.ids_ignored = set(ids_ignored)
        self._stale = frozenset(stale)
        self._known = known
        # Ids and texts that need not be looked up. What edits have changed is kept, as the parts do not show it.
        self._asked: set[str] = set()
        self._changed: set[str] = set()
        self._touched: set[str] = set()
        self.edited = 0
        self.repaired = 0

    def know(self, clean: pa.Table) -> None:
        """Remember reviews that are clean already, by ``review_id``, ``text_hash``, ``source`` and ``created_at``."""
        for row in clean.to_pylist():
            self.holds[row["review_id"]] = _held(row)
            self.first.setdefault(row["text_hash"], row["review_id"])

    def know_duplicates(self, duplicates: pa.Table) -> None:
        """Remember the ids under which copies came: ``review_id``, ``text_hash``, ``source``, and ``created_at`` where kept."""
        for row in duplicates.to_pylist():
            self._add_copy(row["review_id"], _held(row))

    def resolve(self, row: Mapping[str, Any]) -> str:
        """The id under which a raw row is held."""
        source, own = row["source"], row["review_id"]
        if source in self.ids_ignored:
            return made_id(source, row["text"] or "")
        held = self.holds.get(own)
        return own if held is None or held.source == source else made_id(source, own)

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Look up what is held by the ids that raw rows may have."""
        self._recall_ids({review_id for row in rows for review_id in self._possible_ids(row)})

    def forget(self) -> None:
        """Forget what can be looked up again."""
        kept = set(self._changed)
        for key in self._touched:
            kept.update(self._copies.get(key, ()), [self.first[key]] if key in self.first else ())
        self.holds = {review_id: self.holds[review_id] for review_id in kept if review_id in self.holds}
        self.first = {key: self.first[key] for key in self._touched if key in self.first}
        self._copies = {key: self._copies[key] for key in self._touched if key in self._copies}
        self._asked = set(self.holds)

    def clean(self, raw: pa.Table, failed: Mapping[int, str]) -> CleanedPart:
        """Clean one chunk.

        Parameters
        ----------
        raw : Table
            Rows of the raw schema.
        failed : mapping of int to str
            Rows, by position in `raw`, that failed a check, with the reason.
        """
        rows = raw.to_pylist()
        self.repaired += sum(repaired(row["text"]) != row["text"] for row in rows if row["text"])
        texts = clean_texts([row["text"] or "" for row in rows])
        hashes = [text_hash(text) if text and place not in failed else None for place, text in enumerate(texts)]
        self._recall_all(rows, hashes)
        parts: dict[str, list[dict[str, Any]]] = {name: [] for name in CleanedPart._fields}
        for position, (row, text, key) in enumerate(zip(rows, texts, hashes, strict=True)):
            if key is None:
                parts["quarantine"].append(_quarantined(row, failed.get(position) or "text_empty_after_cleaning"))
                continue
            review_id = self.resolve(row)
            if self._brings_its_time(review_id, key, row["created_at"]):
                parts["known"].append({"source": row["source"]})
                continue
            is_current = self._note_edit(review_id, key, row)
            columns = {name: row[name] for name in ("text", "source", "created_at")}
            columns |= {"review_id": review_id, "text_hash": key}
            held = Held(key, sys.intern(row["source"]), row["created_at"])
            if key in self.first:
                parts["duplicates"].append({**columns, "row_number": row["row_number"], "duplicate_of": self.first[key]})
                if is_current:
                    self._add_copy(review_id, held)
            else:
                parts["clean"].append({**columns, "text_clean": text, "dt": day_of(row["created_at"])})
                if is_current:
                    self.holds[review_id] = held
                    self.first[key] = review_id
        schemas = {**tables.SCHEMAS, "known": _KNOWN_SCHEMA}
        return CleanedPart(**{name: pa.Table.from_pylist(found, schema=schemas[name]) for name, found in parts.items()})

    def _possible_ids(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        source, own = row["source"], row["review_id"]
        return (made_id(source, row["text"] or ""),) if source in self.ids_ignored else (own, made_id(source, own))

    def _recall_all(self, rows: Sequence[Mapping[str, Any]], hashes: Sequence[str | None]) -> None:
        """Look up what holds of the rows' ids and texts, and who else has a text that one of the rows may replace."""
        if self._known is None:
            return
        texts: dict[str, set[str]] = {}
        for row, key in zip(rows, hashes, strict=True):
            if key is not None:
                for review_id in self._possible_ids(row):
                    texts.setdefault(review_id, set()).add(key)
        self._recall_ids(texts)
        for review_id in texts.keys() & self.holds.keys():
            texts[review_id].add(self.holds[review_id].text_hash)
        replaced = {key for found in texts.values() if len(found) > 1 for key in found} - self._touched
        unknown = {key for key in (*hashes, *replaced) if key is not None} - self._touched - self.first.keys()
        for row in self._known.rows("clean", texts=unknown).to_pylist():
            self.first.setdefault(row["text_hash"], row["review_id"])
            self.holds.setdefault(row["review_id"], _held(row))
        copies = self._known.rows("duplicates", texts=replaced).to_pylist()
        self._recall_ids({row["review_id"] for row in copies})
        for row in copies:
            self._add_copy(row["review_id"], _held(row))

    def _recall_ids(self, ids: Collection[str]) -> None:
        unknown = set(ids) - self._asked
        if self._known is None or not unknown:
            return
        self._asked |= unknown
        for row in self._known.rows("clean", ids=unknown).to_pylist():
            self.holds[row["review_id"]] = _held(row)
        for row in self._known.rows("duplicates", ids=unknown).to_pylist():
            self.holds.setdefault(row["review_id"], _held(row))

    def _add_copy(self, review_id: str, held: Held) -> None:
        if self.holds.setdefault(review_id, held).text_hash == held.text_hash and self.first.get(held.text_hash) != review_id:
            self._copies.setdefault(held.text_hash, []).append(review_id)

    def _brings_its_time(self, review_id: str, key: str, created_at: datetime | None) -> bool:
        held = self.holds.get(review_id)
        if held is None or held.text_hash != key or held.created_at is not None or created_at is None:
            return False
        self.holds[review_id] = held._replace(created_at=created_at)
        self._changed.add(review_id)
        if self.first.get(key) == review_id:
            self.dated[review_id] = created_at
        return True

    def _note_edit(self, review_id: str, key: str, row: Mapping[str, Any]) -> bool:
        """Whether the row's text is the newest of its review; the other of the two, if there is one, is noted."""
        held = self.holds.get(review_id)
        if held is None or held.text_hash == key:
            return True
        self._changed.add(review_id)
        when = row["created_at"]
        is_older = when < held.created_at if when and held.created_at else row["row_number"] in self._stale
        if is_older:
            self._touched.add(key)
            self.edits.append(Edit(review_id, held.source, key, when, held.text_hash, held.created_at))
            return False
        self._touched.add(held.text_hash)
        self.edits.append(Edit(review_id, held.source, held.text_hash, held.created_at, key, when))
        self.edited += 1
        del self.holds[review_id]
        if self.first.get(held.text_hash) == review_id:
            del self.first[held.text_hash]
            # The text stays as long as somebody has it.
            text = held.text_hash
            heirs = [copy for copy in self._copies.pop(text, []) if copy in self.holds and self.holds[copy].text_hash == text]
            if heirs:
                self.first[text] = heirs[0]
                self._copies[text] = [copy for copy in heirs if copy != heirs[0]]
        return True


def _held(row: Mapping[str, Any]) -> Held:
    return Held(row["text_hash"], sys.intern(row["source"]), row.get("created_at"))


def day_of(created_at: datetime | None) -> str | None:
    """Value of the column `dt`."""
    return None if created_at is None else created_at.date().isoformat()


def _quarantined(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    payload = {name: value for name, value in row.items() if name not in ("row_number", "source")}
    return {
        "review_id": row["review_id"],
        "row_number": row["row_number"],
        "reason": reason,
        "payload": json.dumps(payload, ensure_ascii=False, default=str),
        "source": row["source"],
    }
