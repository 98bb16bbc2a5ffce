"""What a person's review has left behind: how its rows are told in each table, and how texts that quote it are blotted out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.data.cleaning import day_of
from reviewclf.data.digests import ERASED_REVIEW, ERASED_TEXT, row_digests
from reviewclf.data.sources.rows import made_id
from reviewclf.store import Snapshot, Store
from reviewclf.text import clean_texts, redact, text_hash

BLOT = "[стёрто]"
# Where a review's own text is kept, under its id and its source.
_HOLDERS = ("clean", "duplicates", "history")
# Shorter texts are many people's: they are known by the review's id alone, and stand inside of others by chance.
_TELLING = 20
# Examples in reports are cut here.
_SHOWN = 200


@dataclass
class Traces:
    """What there is of the reviews that are to be erased.

    Attributes
    ----------
    ids : frozenset of str
        As they were given.
    reviews : set of (str, str)
        Source and id of each, as the source numbers it and as the store does.
    hashes : set of str
        Text hashes of all texts that the reviews have, or had before they were edited.
    gone : set of str
        Those of them that no other review has; what is kept by text hash alone is erased for these.
    texts : dict of str to set of str
        By text hash, how the text is written: as it came and cleaned.
    """

    ids: frozenset[str]
    reviews: set[tuple[str, str]] = field(default_factory=set)
    hashes: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    texts: dict[str, set[str]] = field(default_factory=dict)

    @property
    def found(self) -> set[str]:
        """Ids of which there is anything."""
        return {review_id for _, review_id in self.reviews} & self.ids

    def spellings(self, hashes: Iterable[str]) -> set[str]:
        """How the texts of these hashes are written."""
        return {text for key in hashes for text in self.texts.get(key, ())}

    @cached_property
    def whole(self) -> set[str]:
        """How the texts are written that nobody else has."""
        return self.spellings(self.gone)

    @cached_property
    def quotes(self) -> list[str]:
        """What a text that quotes one of the reviews holds: long enough to be no chance, also inside of JSON and CSV."""
        told = {text for text in self.whole if len(text) >= _TELLING}
        told |= {redact(text)[:_SHOWN] for text in told} | {redact(text) for text in told}
        spelled = {json.dumps(text, ensure_ascii=is_ascii)[1:-1] for text in told for is_ascii in (True, False)}
        doubled = {text.replace('"', '""') for text in told}
        return sorted((text for text in told | spelled | doubled if len(text) >= _TELLING), key=len, reverse=True)

    @cached_property
    def beginnings(self) -> list[str]:
        """How quotes begin: as good for finding them, and texts may be very long."""
        return sorted({quote[:_SHOWN] for quote in self.quotes})

    def digests(self) -> pa.Table:
        """What is kept so that the reviews do not come back: digests, of which nothing can be read."""
        reviews, gone = sorted(self.reviews), sorted(key for key in self.gone if self._is_telling(key))
        of_reviews = pa.table({"source": [one for one, _ in reviews], "review_id": [two for _, two in reviews]})
        found = np.concatenate(
            [
                row_digests(of_reviews, ("source", "review_id")),
                row_digests(pa.table({"text_hash": pa.array(gone, pa.string())}), ("text_hash",)),
            ]
        )
        kinds = [ERASED_REVIEW] * len(reviews) + [ERASED_TEXT] * len(gone)
        return pa.table({"kind": pa.array(kinds, pa.string()), "digest": pa.array(found, pa.int64())}, tables.ERASED_SCHEMA)

    def _is_telling(self, key: str) -> bool:
        return max(map(len, self.texts.get(key, ("",)))) >= _TELLING


def find_traces(store: Store, base: Snapshot, ids: Collection[str], gold: Collection[str] = ()) -> Traces:
    """Look where the reviews are.

    Parameters
    ----------
    ids : collection of str
        As the store or the source numbers them.
    gold : collection of str
        Text hashes of gold, which is a file of its own: what is in it stays known.
    """
    traces = Traces(frozenset(ids))
    wanted = pa.array(sorted(traces.ids), pa.string())
    for name in _HOLDERS:
        for part in store.iter_tables(base.keys(name)):
            for row in part.filter(pc.is_in(part["review_id"], wanted)).to_pylist():
                traces.reviews.add((row["source"], row["review_id"]))
                _add_text(traces, row["text_hash"], row.get("text"), row.get("text_clean"))
    _find_raw(store, base, traces)
    _leave_shared(store, base, traces)
    traces.gone -= set(gold)
    return traces


def _find_raw(store: Store, base: Snapshot, traces: Traces) -> None:
    """Add what only raw and refused rows tell: ids of the source, and texts as they came."""
    placed = {review_id for _, review_id in traces.reviews}
    ignored: Any = base.state.get("ids_ignored") or {}
    for name in ("raw", "quarantine"):
        for part in store.iter_tables(base.keys(name)):
            sources, own = part["source"].to_pylist(), part["review_id"].to_pylist()
            for place, (source, review_id) in enumerate(zip(sources, own, strict=True)):
                # Where ids name something else than reviews, a review is known by its text.
                if review_id is None or source in ignored or not _is_of(traces, placed, source, review_id):
                    continue
                traces.reviews.add((source, review_id))
                row = part.slice(place, 1).to_pylist()[0]
                text = row.get("text") or _payload_text(row.get("payload"))
                if text and (cleaned := clean_texts([text])[0]):
                    _add_text(traces, text_hash(cleaned), text, cleaned)


def _is_of(traces: Traces, placed: set[str], source: str, own: str) -> bool:
    """Whether a raw row is of one of the reviews."""
    if (source, own) in traces.reviews or made_id(source, own) in placed:
        return True
    # One that was refused stands nowhere else.
    return own in traces.ids and own not in placed


def _leave_shared(store: Store, base: Snapshot, traces: Traces) -> None:
    """Texts that others have as well are not gone."""
    hashes = pa.array(sorted(traces.hashes), pa.string())
    for name in ("clean", "duplicates"):
        for part in store.iter_tables(base.keys(name)):
            for row in part.filter(pc.is_in(part["text_hash"], hashes)).to_pylist():
                _add_text(traces, row["text_hash"], row.get("text_clean"))
                if (row["source"], row["review_id"]) not in traces.reviews:
                    traces.gone.discard(row["text_hash"])


def _add_text(traces: Traces, key: str, *spellings: str | None) -> None:
    if key not in traces.hashes:
        traces.hashes.add(key)
        traces.gone.add(key)
    traces.texts.setdefault(key, set()).update(text for text in spellings if text)


def _payload_text(payload: str | None) -> str | None:
    try:
        values = json.loads(payload or "")
    except ValueError:
        return None
    return values.get("text") if isinstance(values, dict) and isinstance(values.get("text"), str) else None


def of_traces(traces: Traces, rows: pa.Table) -> np.ndarray:
    """Which rows of a part, whatever table or output of a stage it belongs to, have to go.

    A row goes that bears a review's id together with one of its texts, that is about a text which nobody else has, or, where
    it is an answer or a payload, that quotes such a text.
    """
    import polars as pl

    frame = pl.DataFrame(rows)
    there = set(frame.columns)

    def within(name: str, values: Iterable[str]) -> pl.Expr:
        return pl.col(name).is_in(sorted(values)).fill_null(value=False)

    of_person = within("review_id", {own for _, own in traces.reviews}) if "review_id" in there else pl.lit(value=False)
    if {"source", "review_id"} <= there:
        both = pl.concat_str("source", "review_id", separator="\n")
        of_person = both.is_in(["\n".join(pair) for pair in sorted(traces.reviews)]).fill_null(value=False)
    written, gone = traces.spellings(traces.hashes), traces.whole
    found = [pl.lit(value=False)]
    if "text_hash" in there:
        found.append(within("text_hash", traces.gone))
        if "review_id" in there:
            found.append(of_person & within("text_hash", traces.hashes))
        if "review_ids" in there:
            found.append(within("text_hash", traces.hashes))
    elif "text_clean" in there:
        found += [of_person & within("text_clean", written), within("text_clean", gone)]
    elif {"source", "review_id"} <= there:
        found.append(of_person)
        if "text" in there:
            found.append(within("text", gone))
    if "near_duplicate_of" in there:
        found.append(within("near_duplicate_of", traces.gone))
    if quotes := traces.beginnings:
        quoting = there & ({"payload", "raw"} | ({"text", "detail"} if "generator" in there else set()))
        found += [pl.col(name).str.contains_any(quotes).fill_null(value=False) for name in sorted(quoting)]
        if "texts" in there:
            found.append(pl.col("texts").list.join("\n").str.contains_any(quotes).fill_null(value=False))
    mask: np.ndarray = frame.with_columns(pl.any_horizontal(found).alias("found"))["found"].to_numpy()
    return mask


def blotted(traces: Traces, value: Any) -> Any:
    """A JSON value in which nothing of the texts is left: those of reports, with their examples."""
    if isinstance(value, str):
        if value in traces.whole:
            return BLOT
        for quote in traces.quotes:
            value = value.replace(quote, BLOT)
        return value
    if isinstance(value, list):
        return [blotted(traces, item) for item in value]
    if isinstance(value, dict):
        return {name: blotted(traces, item) for name, item in value.items()}
    return value


# -- the tables as they are without the reviews ----------------------------------------------------------------------------


def without_traces(
    store: Store, base: Snapshot, traces: Traces, *, dry_run: bool = False
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Parts of the tables that hold anything of the reviews, as they are without; and how many rows leave each.

    Where somebody else has written the same text, the first copy takes the place in ``clean``. With `dry_run` nothing is
    written, and the rows are only counted.
    """
    replace: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    promoted = _promoted(store, base, traces)
    heirs = {row["text_hash"]: row["review_id"] for row in promoted}
    for name in base.tables:
        keys = []
        for key in base.keys(name):
            rows = store.read_table([key])
            kept = rows.filter(pa.array(~of_traces(traces, rows)))
            counts[name] = counts.get(name, 0) + rows.num_rows - kept.num_rows
            if name == "duplicates" and heirs:
                kept = _inherited(kept, heirs)
            if name == "health":
                kept = with_blotted_reports(traces, kept)
            keys += [key] if dry_run or kept.equals(rows) else store.put_part(kept)
        if name == "clean" and not dry_run:
            keys += store.put_part(promoted, tables.CLEAN_SCHEMA)
        if keys != base.keys(name):
            replace[name] = keys
    return replace, {name: count for name, count in counts.items() if count}


def _promoted(store: Store, base: Snapshot, traces: Traces) -> list[dict[str, Any]]:
    """Rows for ``clean`` of texts whose first review is erased while others have the same."""
    shared = traces.hashes - traces.gone
    lost: dict[str, dict[str, Any]] = {}
    for part in store.iter_tables(base.keys("clean")) if shared else ():
        for row in part.filter(pc.is_in(part["text_hash"], pa.array(sorted(shared), pa.string()))).to_pylist():
            if (row["source"], row["review_id"]) in traces.reviews:
                lost[row["text_hash"]] = row
            else:
                shared.discard(row["text_hash"])
    rows: dict[str, dict[str, Any]] = {}
    for row in store.iter_rows(base.keys("duplicates") if lost else ()):
        key = row["text_hash"]
        if key in lost and key in shared and key not in rows and (row["source"], row["review_id"]) not in traces.reviews:
            when: datetime | None = row.get("created_at")
            own = {"review_id": row["review_id"], "source": row["source"], "text": row.get("text") or lost[key]["text_clean"]}
            rows[key] = {**lost[key], **own, "created_at": when, "dt": day_of(when)}
    return [rows[key] for key in sorted(rows)]


def _inherited(rows: pa.Table, heirs: Mapping[str, str]) -> pa.Table:
    """Copies whose first review is another one now."""
    found, taken = [], set()
    for row in rows.to_pylist():
        heir = heirs.get(row["text_hash"])
        if heir is not None and row["review_id"] == heir and heir not in taken:
            taken.add(heir)
            continue
        found.append(row if heir is None else {**row, "duplicate_of": heir})
    return pa.Table.from_pylist(found, schema=rows.schema)


def with_blotted_reports(traces: Traces, rows: pa.Table) -> pa.Table:
    """Rows of the table `health`, whose reports show nothing of the texts."""
    found = []
    for row in rows.to_pylist():
        report = json.loads(row["report"])
        clean = blotted(traces, report)
        found.append(row if clean == report else {**row, "report": json.dumps(clean, ensure_ascii=False)})
    return pa.Table.from_pylist(found, schema=rows.schema)
