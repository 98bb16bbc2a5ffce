"""Cleaning as a stage: raw rows become clean rows, duplicates and quarantine, and edited reviews their newer texts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from reviewclf.data.bands import find_near_duplicates
from reviewclf.data.cleaning import CleanedPart, Cleaner
from reviewclf.data.edits import REWRITTEN, apply_edits
from reviewclf.data.intake import kind_of
from reviewclf.data.lookups import KnownReviews, batches
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings
from reviewclf.store import Snapshot, StageResult, Store
from reviewclf.text import clean_texts, text_hash

logger = logging.getLogger(__name__)

# In the state of a snapshot: by source, the column that was found to hold no ids of reviews.
IDS_IGNORED = "ids_ignored"
# Where so many ids of a file, and more than half of its rows, have other texts than before, its numbering has begun anew.
_FEWEST_RENUMBERED = 5
_MOSTLY = 0.5

# What counts by source call the rows of each table.
_NAMES = {"known": "known", "clean": "clean", "duplicates": "duplicates", "quarantine": "quarantined"}


def read_base(base: Snapshot) -> dict[str, int]:
    """Versions of the tables that cleaning depends on; where they have changed, rows are cleaned anew to be published.

    Of edits the parts are named that hold the texts, so that rows that are laid out anew count as changed.
    """
    return {name: base.tables[name].version for name in (*REWRITTEN, "history", "bands") if name in base.tables}


def clean_rows(settings: Settings, store: Store, base: Snapshot, ingested: Manifest, validated: Manifest) -> Manifest:
    """Clean the raw rows of `ingested` on top of `base`.

    Returns
    -------
    Manifest
        ``outputs``: new parts by table, and ``stored_<table>``, all earlier parts of a table where some have changed;
        ``counts``: raw rows = clean + duplicates + quarantine + known; ``details``: ``base``, counts by source, reasons of
        quarantine, and sources whose ids are ignored.
    """
    remembered: dict[str, Any] = base.state.get(IDS_IGNORED) or {}  # type: ignore[assignment]
    column = settings.ingest.id_column
    found_now: Any = ingested.details.get("ids_ignored") or []
    ignored: set[str] = {name for name, found in remembered.items() if found == column} | set(found_now)
    stale: Any = ingested.details.get("stale") or []
    inputs = {
        "raw": ingested.keys("raw"),
        "failed": validated.keys("failed"),
        "base": read_base(base),
        "near": settings.dataset.near_duplicate_similarity,
        "ids_ignored": sorted(ignored),
        "rows_by_source": ingested.details.get("whole") or {},
        "stale": stale,
    }

    def work() -> StageResult:
        known = KnownReviews(store, base.keys("clean"), base.keys("duplicates"))
        cleaner = Cleaner(ids_ignored=ignored, stale=stale, known=known)
        cleaner.ids_ignored |= _renumbered(store, ingested, cleaner)
        new: dict[str, list[str]] = {name: [] for name in CleanedPart._fields if name != "known"}
        counts = dict.fromkeys(CleanedPart._fields, 0)
        by_source: dict[str, Counter[str]] = {}
        reasons: Counter[str] = Counter()
        for raw, failed in _batches_with_failures(store, ingested, validated):
            part = cleaner.clean(raw, failed)
            reasons.update(map(kind_of, part.quarantine["reason"].to_pylist()))
            put: dict[str, list[str]] = {}
            for name, table in part._asdict().items():
                counts[name] += table.num_rows
                for source in table["source"].to_pylist() if name in _NAMES else ():
                    by_source.setdefault(source, Counter())[_NAMES[name]] += 1
                if name in new:
                    put[name] = store.put_part(table)
                    new[name] += put[name]
            known.add(put["clean"], put["duplicates"])
            cleaner.forget()
        near = find_near_duplicates(store, base, new["clean"], settings.dataset.near_duplicate_similarity)
        new |= {"near_duplicates": near.rows, "bands": near.bands}
        counts["near_duplicates"] = near.found
        outputs: dict[str, str | list[str]] = {}
        if near.stored_bands != base.keys("bands"):
            outputs["stored_bands"] = near.stored_bands
        counts |= {"edited": cleaner.edited, "repaired": cleaner.repaired}
        counts |= {"superseded": 0, "left_clean": 0, "left_duplicates": 0, "promoted": 0}
        if cleaner.edits or cleaner.dated:
            applied = apply_edits(store, base, new, cleaner)
            new = applied.new
            counts |= applied.counts
            outputs |= {f"stored_{name}": keys for name, keys in applied.stored.items() if keys != base.keys(name)}
            logger.info("%d reviews were edited; their earlier texts are kept in the table history", cleaner.edited)
        return StageResult(
            outputs={**outputs, **new},
            counts=counts,
            details={
                "base": inputs["base"],
                "by_source": {name: dict(found) for name, found in sorted(by_source.items())},
                "reasons": dict(sorted(reasons.items())),
                "ids_ignored": sorted(cleaner.ids_ignored),
            },
        )

    return store.run_stage("clean", 3, inputs, work)


def _renumbered(store: Store, ingested: Manifest, cleaner: Cleaner) -> set[str]:
    """Files that number their reviews from 1 each time they are written: by their ids all reviews would seem to be edited."""
    rows: dict[str, Any] = ingested.details.get("whole") or {}  # type: ignore[assignment]
    renamed: Counter[str] = Counter()
    for part in batches(store, ingested.keys("raw"), columns=["review_id", "source", "text"]):
        cleaner.forget()
        cleaner.recall(row for row in part.to_pylist() if row["source"] in rows)
        again = [row for row in part.to_pylist() if row["source"] in rows and cleaner.resolve(row) in cleaner.holds]
        for row, text in zip(again, clean_texts([row["text"] or "" for row in again]), strict=True):
            renamed[row["source"]] += bool(text) and text_hash(text) != cleaner.holds[cleaner.resolve(row)].text_hash
    found = {
        name
        for name, count in renamed.items()
        if name not in cleaner.ids_ignored and count >= _FEWEST_RENUMBERED and count > _MOSTLY * rows.get(name, float("inf"))
    }
    for name in sorted(found):
        logger.warning(
            "%s: %d of its %d rows have ids that other texts had before, so it is numbered anew each time: its ids are "
            "ignored, and each review is known by its text",
            name,
            renamed[name],
            rows[name],
        )
    return found


def _batches_with_failures(store: Store, ingested: Manifest, validated: Manifest) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    failures = {row["position"]: row["reason"] for row in store.iter_rows(validated.keys("failed"))}
    start = 0
    for raw in batches(store, ingested.keys("raw")):
        yield raw, {place: failures[start + place] for place in range(raw.num_rows) if start + place in failures}
        start += raw.num_rows
