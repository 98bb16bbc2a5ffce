"""Ingestion: read the source, check raw rows, clean them, check again, publish everything at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from reviewclf.data.edits import REWRITTEN
from reviewclf.data.intake import Intake, check_file
from reviewclf.data.sources import SourceFile, SqlSource, list_source, read_chunks
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.stages.checking import NEW_ROWS, READ_ANEW, check_rows
from reviewclf.stages.cleaning import IDS_IGNORED, clean_rows, read_base
from reviewclf.store import Change, Snapshot, StageResult, Store

logger = logging.getLogger(__name__)

_SOURCES = "sources"
_WATERMARKS = "watermarks"
_REMEMBERED_RUNS = 30
# Clocks differ and zones are mistaken, but no review is written more than a year from now.
LATEST = timedelta(days=366)

_Source = SourceFile | SqlSource


def ingest(settings: Settings) -> Manifest:
    """Read the rows of the source that the store does not hold yet.

    Files that were ingested before are not read again as long as neither they nor the settings that read them have changed. A
    database is asked only for rows from a little below its watermark on, and for those without a mark. A row that was seen
    before is counted as known. Nothing is visible in the tables before :func:`publish`.

    Returns
    -------
    Manifest
        ``outputs``: ``raw``, ``quarantine`` and ``seen`` parts; ``counts``: rows in = known + raw + quarantined;
        ``details``: fingerprints and watermarks to remember, counts by source, reasons of quarantine, first times that could
        not be read.

    Raises
    ------
    DataContractError
        A file cannot be read or lacks the text column.
    QualityError
        Too many of its rows cannot be read, or it has shrunk or grown out of all proportion.
    """
    store = Store(settings.store_uri)
    base = store.snapshot()
    remembered = _remembered(base)
    sources = list_source(settings.source, settings.ingest)
    fresh = [source for source in sources if not _is_unchanged(source, remembered, settings)]
    files = [source for source in fresh if source.fingerprint is not None]
    # What is read anew because its settings changed may tell times that were not understood before.
    known = [remembered[file.uri] for file in files if file.uri in remembered]
    fill_times = any(before.get("reading") != settings.ingest.reading for before in known)
    read = partial(_read, settings, store, base, sources, fresh, remembered, fill_times=fill_times)
    inputs: dict[str, Any] = {
        "files": [[source.uri, source.fingerprint] for source in files],
        "unchanged": len(sources) - len(fresh),
        "options": settings.ingest,
        "max_volume_ratio": settings.quality.max_volume_ratio,
        "base": base.identity("seen", "erased", "history", *(["clean"] if fill_times else [])),
    }
    if len(files) == len(fresh):
        return store.run_stage("ingest", 3, inputs, read)
    # A database has no fingerprint: it is read first, and what came is part of the digest.
    result = read()
    came = {"rows": result.outputs, "state": result.details["state"]}
    return store.run_stage("ingest", 3, {**inputs, **came}, lambda: result)


def validate_raw(settings: Settings, ingested: Manifest) -> Manifest:
    """Check the raw rows; rows that fail go to quarantine, a suite that fails stops the run.

    Returns
    -------
    Manifest
        ``outputs["failed"]``: positions of rows that must not go on, with reasons; ``details``: rules and the data docs page.

    Raises
    ------
    QualityError
        A rule about the batch as a whole failed; nothing was published.
    """
    return check_rows(settings, "raw", ingested)


def clean(settings: Settings, ingested: Manifest, validated: Manifest) -> Manifest:
    """Clean the texts, and tell new reviews from exact duplicates and from edits of known ones.

    Returns
    -------
    Manifest
        ``outputs``: ``clean``, ``duplicates``, ``near_duplicates``, ``quarantine`` and ``history`` parts;
        ``counts``: raw rows = clean + duplicates + quarantine + known; near-duplicates are counted and stay.
    """
    store = Store(settings.store_uri)
    return clean_rows(settings, store, store.snapshot(), ingested, validated)


def validate_clean(settings: Settings, cleaned: Manifest) -> Manifest:
    """Check the clean rows like :func:`validate_raw`."""
    return check_rows(settings, "clean", cleaned)


def publish(settings: Settings, ingested: Manifest, validated: Manifest, cleaned: Manifest, clean_report: Manifest) -> Manifest:
    """Make the night's rows visible in all tables at once.

    Where another run has published since the rows were cleaned, they are held against its reviews once more.

    Returns
    -------
    Manifest
        ``counts``: ``rows_in`` = ``known`` + ``clean`` + ``quarantined`` + ``duplicates``; ``new``, the same as ``clean``;
        ``edited`` rows among them that replaced an earlier text, ``superseded`` texts that went to the table ``history``,
        ``left_clean`` and ``left_duplicates``, rows that stand there no more, and ``promoted``, copies that took their place in
        ``clean``. ``details``: the same ``by_source``, and ``reasons`` of quarantine.
    """
    store = Store(settings.store_uri)
    key = f"reviews:{digest_of([ingested.digest, validated.digest])}"
    published: list[Manifest] = []

    def decide(base: Snapshot) -> Change:
        own, report = cleaned, clean_report
        if key not in base.applied and read_base(base) != cleaned.details["base"]:
            own = clean_rows(settings, store, base, ingested, validated)
            report = check_rows(settings, "clean", own)
        published.append(_publish_manifest(store, ingested, validated, own, report))
        append, replace = parts_to_commit(ingested, own)
        return Change(key, append, replace, _state(base, ingested, own, settings.ingest.id_column))

    store.publish(decide)
    return published[-1]


def parts_to_commit(*manifests: Manifest) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Parts to append to tables, and tables whose earlier parts edits have changed."""

    def named(prefix: str, names: Sequence[str]) -> dict[str, list[str]]:
        found = {table: [key for manifest in manifests for key in manifest.keys(prefix + table)] for table in names}
        return {table: keys for table, keys in found.items() if keys}

    written = ("raw", "seen", *REWRITTEN, "bands", "quarantine", "history")
    return named("", written), named("stored_", (*REWRITTEN, "bands"))


# -- reading ---------------------------------------------------------------------------------------------------------


def _read(
    settings: Settings,
    store: Store,
    base: Snapshot,
    sources: list[_Source],
    fresh: list[_Source],
    remembered: Mapping[str, dict[str, Any]],
    *,
    fill_times: bool,
) -> StageResult:
    options = settings.ingest
    watermarks: dict[str, Any] = base.state.get(_WATERMARKS) or {}  # type: ignore[assignment]
    latest = datetime.now(UTC) + LATEST
    intake = Intake(store, base, options, fill_times=fill_times)
    names = [options.source_name or source.name for source in sources]
    state: dict[str, dict[str, Any]] = {_SOURCES: {}, _WATERMARKS: {}}
    whole: dict[str, int] = {}
    for source in fresh:
        name, is_file = options.source_name or source.name, source.fingerprint is not None
        newer_than = None if is_file or not options.watermark_column else watermarks.get(source.uri)
        chunks = read_chunks(source, options, newer_than=newer_than, latest=latest)
        rows, watermark = intake.take(source.uri, name, chunks, is_whole=names.count(name) == 1)
        if not is_file and options.watermark_column:
            if watermark is not None:
                state[_WATERMARKS][source.uri] = watermark
            continue
        before = remembered.get(source.uri, {})
        is_read_as_before = before.get("reading") == options.reading
        check_file(
            source.uri,
            rows,
            before=before.get("rows") if is_read_as_before else None,
            others=[] if before else [entry["rows"] for entry in remembered.values() if entry.get("rows")],
            max_ratio=settings.quality.max_volume_ratio,
        )
        if is_read_as_before or not before:
            # Whose settings have changed may well have other texts under its ids: it is not numbered anew.
            whole[name] = whole.get(name, 0) + rows
        # An empty day is no measure of the days to come.
        rows = rows or before.get("rows") or 0
        state[_SOURCES][source.uri] = {"fingerprint": source.fingerprint, "reading": options.reading, "rows": rows}
    result = intake.result(state)
    return result.model_copy(update={"details": {**result.details, "whole": whole, READ_ANEW: fill_times}})


def _remembered(base: Snapshot) -> dict[str, dict[str, Any]]:
    """What is known of each source; earlier versions kept a file's fingerprint alone."""
    entries: dict[str, Any] = base.state.get(_SOURCES) or {}  # type: ignore[assignment]
    return {uri: entry if isinstance(entry, dict) else {"fingerprint": entry} for uri, entry in entries.items()}


def _is_unchanged(source: _Source, remembered: Mapping[str, dict[str, Any]], settings: Settings) -> bool:
    before = remembered.get(source.uri, {})
    is_same = (before.get("fingerprint"), before.get("reading")) == (source.fingerprint, settings.ingest.reading)
    return source.fingerprint is not None and is_same


# -- publishing ------------------------------------------------------------------------------------------------------


def _publish_manifest(
    store: Store, ingested: Manifest, validated: Manifest, cleaned: Manifest, clean_report: Manifest
) -> Manifest:
    inputs = {"ingested": ingested.digest, "cleaned": cleaned.digest, "report": clean_report.digest}

    def work() -> StageResult:
        counts = {
            "rows_in": ingested.counts["rows_in"],
            "known": ingested.counts["known"] + cleaned.counts["known"],
            "clean": cleaned.counts["clean"],
            "quarantined": ingested.counts["quarantined"] + cleaned.counts["quarantine"],
            "duplicates": cleaned.counts["duplicates"],
        }
        if counts["rows_in"] != sum(count for name, count in counts.items() if name != "rows_in"):
            raise AssertionError(f"rows were lost or doubled on the way: {counts}")
        for name in ("near_duplicates", "repaired", "edited", "superseded", "left_clean", "left_duplicates", "promoted"):
            counts[name] = cleaned.counts[name]
        counts["new"] = counts["clean"]
        counts["unknown_dates"] = ingested.counts["unknown_dates"]
        details = {
            "data_docs": {"raw": validated.details["data_docs"], "clean": clean_report.details["data_docs"]},
            "by_source": _by_source(ingested, cleaned),
            "reasons": _sum(ingested.details["reasons"], cleaned.details["reasons"]),
            "unknown_dates": ingested.details["unknown_dates"],
            "ids_ignored": cleaned.details["ids_ignored"],
        }
        return StageResult(counts=counts, details=details)

    return store.run_stage("publish", 2, inputs, work)


def _by_source(ingested: Manifest, cleaned: Manifest) -> dict[str, Any]:
    first: Any = ingested.details["by_source"]
    later: Any = cleaned.details["by_source"]
    found = {}
    for name in sorted({*first, *later}):
        counts = _sum(first.get(name, {}), later.get(name, {}))
        kept = {place: counts[place] for place in ("known", "clean", "quarantined", "duplicates")}
        found[name] = {"rows_in": sum(kept.values()), **kept, "unknown_dates": counts["unknown_dates"]}
    return found


def _sum(one: Any, other: Any) -> Counter[str]:
    return Counter(one) + Counter(other)


def _state(base: Snapshot, ingested: Manifest, cleaned: Manifest, id_column: str) -> dict[str, Any]:
    new: Any = ingested.details["state"]
    ignored: Any = cleaned.details["ids_ignored"]
    state: dict[str, Any] = {
        name: {**(base.state.get(name) or {}), **entries}  # type: ignore[dict-item]
        for name, entries in {**new, IDS_IGNORED: dict.fromkeys(ignored, id_column)}.items()
        if entries
    }
    # The first load is no night like others, nor is one that brought nothing or what was read anew.
    if ingested.counts["raw"] and base.keys("raw") and not ingested.details[READ_ANEW]:
        state[NEW_ROWS] = [*(base.state.get(NEW_ROWS) or []), ingested.counts["raw"]][-_REMEMBERED_RUNS:]  # type: ignore[misc]
    return state
