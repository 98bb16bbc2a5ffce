"""What was refused: shown, and read again with today's settings and code."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from reviewclf import tables
from reviewclf.data.digests import row_digests
from reviewclf.data.intake import READ, kind_of, seen_among
from reviewclf.data.lookups import matching_rows
from reviewclf.data.sources import SourceFile, list_source
from reviewclf.data.sources.files import DELIMITED, reread, suffix_of
from reviewclf.data.sources.layout import Layout, recognise
from reviewclf.data.sources.options import ReadOptions
from reviewclf.data.sources.rows import BadRow, make_chunk
from reviewclf.errors import ReviewclfError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.stages.checking import check_rows
from reviewclf.stages.cleaning import clean_rows
from reviewclf.stages.ingest import LATEST, parts_to_commit
from reviewclf.store import Change, Snapshot, StageResult, Store

if TYPE_CHECKING:
    from rich.console import Group

logger = logging.getLogger(__name__)

# What labelling refuses are votes.
_VOTES = "vote refused"
_SHOWN = 80


class _Entry(NamedTuple):
    """A refused row: where it lies in the table, and the row."""

    part: str
    place: int
    row: dict[str, Any]


def refused_rows(settings: Settings, *, reason: str | None = None, source: str | None = None) -> list[dict[str, Any]]:
    """Rows of the table `quarantine`, oldest first.

    Parameters
    ----------
    reason : str, optional
        Only rows whose reason begins so, such as ``too_many_fields``.
    source : str, optional
        Only rows of this source.
    """
    store = Store(settings.store_uri)
    return [entry.row for entry in _entries(store, store.snapshot(), reason, source)]


def overview(rows: Sequence[Mapping[str, Any]], newest: int) -> Group:
    """Counts by source and reason, and the newest rows, for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    counts = Table("source", "reason", "rows", title="quarantine")
    for (source, reason), count in sorted(Counter((str(row["source"]), kind_of(row["reason"])) for row in rows).items()):
        counts.add_row(Text(source), Text(reason), f"{count:,}")
    shown = Table("source", "row", "reason", "what came in", title=f"the newest {min(newest, len(rows))} of {len(rows):,}")
    for row in rows[len(rows) - min(newest, len(rows)) :]:
        payload = str(row["payload"])
        cut = payload if len(payload) <= _SHOWN else f"{payload[: _SHOWN - 1]}…"
        shown.add_row(Text(str(row["source"])), str(row["row_number"]), Text(row["reason"]), Text(cut))
    return Group(counts, shown) if newest else Group(counts)


def replay(settings: Settings, *, reason: str | None = None, source: str | None = None) -> Manifest:
    """Read refused rows again; those that pass all checks now leave quarantine for ``clean`` or ``duplicates``.

    Parameters
    ----------
    reason, source
        As for :func:`refused_rows`.

    Returns
    -------
    Manifest
        ``counts``: ``rows_in`` = ``known`` (taken in since they were refused) + ``clean`` + ``duplicates`` + ``left``, and of
        these the same as :func:`reviewclf.stages.ingest.publish` counts; ``details["reasons"]``: why rows are left.
    """
    store = Store(settings.store_uri)
    replayed: list[Manifest] = []

    def decide(base: Snapshot) -> Change | None:
        manifest, append, replace = _replay(settings, store, base, reason, source)
        replayed.append(manifest)
        return Change(f"replay:{manifest.digest}", append, replace) if replace else None

    store.publish(decide)
    return replayed[-1]


def _replay(
    settings: Settings, store: Store, base: Snapshot, reason: str | None, source: str | None
) -> tuple[Manifest, dict[str, list[str]], dict[str, list[str]]]:
    entries = [entry for entry in _entries(store, base, reason, source) if kind_of(entry.row["reason"]) != _VOTES]
    raw, is_first_read, left = _read_again(settings, entries)
    digests = row_digests(raw, READ)
    known = seen_among(store, base, digests) & is_first_read
    places = raw["row_number"].to_pylist()
    raw, is_first_read = raw.filter(pa.array(~known)), is_first_read[~known]
    ingested = Manifest(
        stage="replay_rows",
        digest=digest_of([base.version, reason, source, settings.ingest, settings.quality]),
        outputs={"raw": store.put_part(raw)},
        details={"stale": [*_stale(store, base, raw)]},
    )
    validated = check_rows(settings, "raw", ingested, is_batch=False)
    cleaned = clean_rows(settings, store, base, ingested, validated)
    checked = check_rows(settings, "clean", cleaned)
    for row in store.iter_rows(cleaned.keys("quarantine")):
        left[row["row_number"]] = row["reason"]
    gone = [entries[place] for place in places if place not in left]
    append, replace = parts_to_commit(cleaned)
    append.pop("quarantine", None)
    if duplicates := cleaned.keys("duplicates"):
        append["duplicates"] = [_renumbered(store, key, entries) for key in duplicates]
    first_read = raw.filter(pa.array(is_first_read & ~np.isin(raw["row_number"].to_numpy(), list(left))))
    if first_read.num_rows:
        append["raw"] = [_renumbered(store, store.put_table(first_read), entries)]
        append["seen"] = store.put_part(pa.table({"row": row_digests(first_read, READ)}))
    if gone:
        replace["quarantine"] = _without(store, base, gone)
    counts = {
        "rows_in": len(entries),
        "known": int(known.sum()) + cleaned.counts["known"],
        "clean": cleaned.counts["clean"],
        "duplicates": cleaned.counts["duplicates"],
        "left": len(left),
        **{name: cleaned.counts[name] for name in ("edited", "superseded", "left_clean", "left_duplicates", "promoted")},
    }
    if counts["rows_in"] != sum(counts[name] for name in ("known", "clean", "duplicates", "left")):
        raise AssertionError(f"rows were lost or doubled on the way: {counts}")
    details = {"reasons": dict(Counter(map(kind_of, left.values())).most_common())}
    inputs = {"rows": ingested.digest, "cleaned": cleaned.digest, "checked": checked.digest}
    manifest = store.run_stage("replay", 1, inputs, lambda: StageResult(counts=counts, details=details))
    return manifest, append, replace


def _entries(store: Store, base: Snapshot, reason: str | None, source: str | None) -> Iterator[_Entry]:
    keys = base.keys("quarantine")
    for key, part in zip(keys, store.iter_tables(keys), strict=True):
        for place, row in enumerate(part.to_pylist()):
            if row["reason"].startswith(reason or "") and source in (None, row["source"]):
                yield _Entry(key, place, row)


def _read_again(settings: Settings, entries: list[_Entry]) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
    """Raw rows numbered by their entries, which of them were never raw rows before, and why the other entries are left."""
    latest = datetime.now(UTC) + LATEST
    options = ReadOptions.of(settings.ingest)
    layouts: dict[str, Layout | None] = {}
    rows: list[dict[str, Any]] = []
    is_first_read: list[bool] = []
    left: dict[int, str] = {}
    for number, entry in enumerate(entries):
        row = entry.row
        if row["review_id"] is not None:
            rows.append({**_raw(row), "source": row["source"], "row_number": number})
            is_first_read.append(False)
            continue
        bad = BadRow(number, row["reason"], row["payload"], row.get("layout"))
        again = reread(bad, _layout_of(settings, row, layouts), options)
        chunk = make_chunk([again], source=row["source"], options=settings.ingest, latest=latest)
        if chunk.rows.num_rows:
            rows += chunk.rows.to_pylist()
            is_first_read.append(True)
        else:
            left[number] = chunk.quarantined["reason"][0].as_py()
    return pa.Table.from_pylist(rows, schema=tables.RAW_SCHEMA), np.array(is_first_read, dtype=bool), left


def _stale(store: Store, base: Snapshot, raw: pa.Table) -> list[int]:
    """Numbers of rows whose review has come with another text since they were refused."""
    newest = {(row["source"], row["review_id"]): "" for row in raw.to_pylist()}
    among = raw.select(["source", "review_id"])
    columns = ["source", "review_id", "text"]
    for row in matching_rows(store, base.keys("raw"), tables.RAW_SCHEMA, columns, among, on=among.schema.names).to_pylist():
        newest[row["source"], row["review_id"]] = row["text"] or ""
    return [row["row_number"] for row in raw.to_pylist() if newest[row["source"], row["review_id"]] not in ("", row["text"])]


def _raw(row: Mapping[str, Any]) -> dict[str, Any]:
    """The raw row that a check refused."""
    values: dict[str, Any] = json.loads(row["payload"])
    when = values.get("created_at")
    return {**values, "created_at": datetime.fromisoformat(when).astimezone(UTC) if when else None}


def _layout_of(settings: Settings, row: Mapping[str, Any], of_files: dict[str, Layout | None]) -> Layout | None:
    """How a delimited file was laid out: as was kept with the row, else as the file of this name is today."""
    if row.get("layout"):
        return Layout(*json.loads(row["layout"]))
    name = str(row["source"])
    if row["payload"].lstrip().startswith("{") or suffix_of(name) not in DELIMITED:
        return None
    if name not in of_files:
        of_files[name] = None
        try:
            files = [file for file in list_source(settings.source, settings.ingest) if isinstance(file, SourceFile)]
            uri = next(file.uri for file in files if file.name == name or file.name.endswith(f"/{name}"))
            of_files[name] = recognise(uri, ReadOptions.of(settings.ingest))
        except (ReviewclfError, StopIteration):
            logger.warning("%s: how its lines were laid out is not known any more, so they cannot be read again", name)
    return of_files[name]


def _renumbered(store: Store, key: str, entries: list[_Entry]) -> str:
    """The part with the numbers that its rows had in their files."""
    part = store.read_table([key])
    numbers = [entries[number].row["row_number"] for number in part["row_number"].to_pylist()]
    place = part.schema.get_field_index("row_number")
    return store.put_table(part.set_column(place, "row_number", pa.array(numbers, pa.int64())))


def _without(store: Store, base: Snapshot, gone: list[_Entry]) -> list[str]:
    """The parts of the table without these rows; parts that lose none stay as they are."""
    places: dict[str, list[int]] = {}
    for entry in gone:
        places.setdefault(entry.part, []).append(entry.place)
    keys = []
    for key in base.keys("quarantine"):
        part = store.read_table([key])
        stays = ~np.isin(np.arange(part.num_rows), places.get(key, []))
        keys += [key] if stays.all() else store.put_part(part.filter(pa.array(stays)))
    return keys
