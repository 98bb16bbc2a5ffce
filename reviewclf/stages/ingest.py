"""Ingestion: read the source, check raw rows, clean them, check again, publish everything at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.data.cleaning import CleanedPart, Cleaner
from reviewclf.data.sources import SourceFile, SqlSource, list_source, read_chunks
from reviewclf.errors import ConflictError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import QualitySettings, Settings
from reviewclf.storage import Snapshot, StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import cyrillic_share

logger = logging.getLogger(__name__)

_SOURCES = "sources"
_WATERMARKS = "watermarks"
_VOLUMES = "volumes"
_REMEMBERED_RUNS = 30
_MOSTLY = 0.5


def ingest(settings: Settings) -> Manifest:
    """Read the rows of the source that the store does not hold yet.

    Files that were ingested before and have not changed are not read again (their fingerprints are remembered), a
    database is asked only for rows above its watermark, and a row that was seen before is counted as known. Nothing is
    visible in the tables before :func:`publish`.

    Returns
    -------
    Manifest
        ``outputs``: ``raw``, ``quarantine`` and ``seen`` parts; ``counts``: rows in = known + raw + quarantined;
        ``details``: fingerprints and watermarks to remember.

    Raises
    ------
    DataContractError
        A file cannot be read or lacks the text column.
    """
    store = Store(settings.store_uri)
    base = store.snapshot()
    remembered = dict(base.state.get(_SOURCES) or {})  # type: ignore[arg-type]
    watermarks = dict(base.state.get(_WATERMARKS) or {})  # type: ignore[arg-type]
    sources = list_source(settings.source, settings.ingest)
    fresh = [
        source
        for source in sources
        if not (isinstance(source, SourceFile) and remembered.get(source.uri) == source.fingerprint)
    ]
    files = [source for source in fresh if isinstance(source, SourceFile)]
    databases = [source for source in fresh if isinstance(source, SqlSource)]

    def work() -> StageResult:
        writer = _RawWriter(store, base)
        for source in files:
            for chunk in read_chunks(source, settings.ingest):
                writer.add(chunk.rows, chunk.quarantined)
        return writer.result({_SOURCES: {source.uri: source.fingerprint for source in files}})

    inputs: dict[str, Any] = {
        "files": [[source.uri, source.fingerprint] for source in files],
        "unchanged": len(sources) - len(fresh),
        "options": settings.ingest,
        "seen": base.keys("seen"),
    }
    if not databases:
        return store.run_stage("ingest", 1, inputs, work)
    # A database has no fingerprint: it is read first, and what came is part of the digest.
    writer = _RawWriter(store, base)
    marks: dict[str, Any] = {}
    for database in databases:
        for chunk in read_chunks(database, settings.ingest, newer_than=watermarks.get(database.uri)):
            writer.add(chunk.rows, chunk.quarantined)
            if chunk.watermark is not None:
                marks[database.uri] = chunk.watermark
    result = writer.result({_WATERMARKS: marks})
    return store.run_stage("ingest", 1, {**inputs, "rows": result.outputs}, lambda: result)


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
    return _validate(settings, "raw", ingested)


def clean(settings: Settings, ingested: Manifest, validated: Manifest) -> Manifest:
    """Clean the texts, and tell new reviews from exact duplicates.

    Returns
    -------
    Manifest
        ``outputs``: ``clean``, ``duplicates``, ``near_duplicates``, ``signatures`` and ``quarantine`` parts;
        ``counts``: raw rows = clean + duplicates + quarantined; near-duplicates are counted and stay.
    """
    store = Store(settings.store_uri)
    return _clean(settings, store, store.snapshot(), ingested, validated)


def validate_clean(settings: Settings, cleaned: Manifest) -> Manifest:
    """Check the clean rows like :func:`validate_raw`."""
    return _validate(settings, "clean", cleaned)


def publish(settings: Settings, ingested: Manifest, validated: Manifest, cleaned: Manifest, clean_report: Manifest) -> Manifest:
    """Make the night's rows visible in all tables at once.

    Where another run has published since the rows were cleaned, they are held against its reviews once more.

    Returns
    -------
    Manifest
        ``counts``: ``rows_in`` = ``known`` + ``clean`` + ``quarantined`` + ``duplicates``, and ``new``, the same as ``clean``.
    """
    store = Store(settings.store_uri)
    key = f"reviews:{digest_of([ingested.digest, validated.digest])}"
    for _ in range(10):
        base = store.snapshot()
        if key not in base.applied and base.keys("clean") != cleaned.keys("base"):
            cleaned = _clean(settings, store, base, ingested, validated)
            clean_report = _validate(settings, "clean", cleaned)
        manifest = _publish_manifest(store, ingested, validated, cleaned, clean_report)
        rows = manifest.counts["rows_in"]
        if rows == 0:
            return manifest
        append = {
            table: keys
            for table in ("raw", "seen", "clean", "duplicates", "near_duplicates", "signatures", "quarantine")
            if (keys := [*ingested.keys(table), *cleaned.keys(table)])
        }
        try:
            store.commit(base, key=key, append=append, state=_state(base, ingested, rows))
        except ConflictError:
            continue
        return manifest
    raise ConflictError(f"{settings.store_uri}: other runs kept publishing first; run this stage again")


# -- raw rows --------------------------------------------------------------------------------------------------------


class _RawWriter:
    """Writes chunks of raw rows part by part, leaving out what the store has seen."""

    def __init__(self, store: Store, base: Snapshot) -> None:
        self._store = store
        seen = [part["row"].to_numpy() for part in store.iter_tables(base.keys("seen"))]
        self._seen = np.unique(np.concatenate(seen)) if seen else np.empty(0, dtype=np.uint64)
        self._outputs: dict[str, list[str]] = {"raw": [], "quarantine": [], "seen": []}
        self._counts = {"rows_in": 0, "known": 0, "raw": 0, "quarantined": 0}

    def add(self, rows: pa.Table, quarantined: pa.Table) -> None:
        self._counts["rows_in"] += rows.num_rows + quarantined.num_rows
        row_digests = _row_digests(rows, ("source", "review_id", "text"))
        bad_digests = _row_digests(quarantined, ("source", "reason", "payload"))
        new_rows = ~np.isin(row_digests, self._seen)
        new_bad = ~np.isin(bad_digests, self._seen)
        self._counts["known"] += int((~new_rows).sum() + (~new_bad).sum())
        rows, quarantined = rows.filter(pa.array(new_rows)), quarantined.filter(pa.array(new_bad))
        self._counts["raw"] += rows.num_rows
        self._counts["quarantined"] += quarantined.num_rows
        digests = np.concatenate([row_digests[new_rows], bad_digests[new_bad]])
        for name, part in (("raw", rows), ("quarantine", quarantined), ("seen", pa.table({"row": digests}))):
            if part.num_rows:
                self._outputs[name].append(self._store.put_table(part))

    def result(self, state: dict[str, Any]) -> StageResult:
        return StageResult(outputs=dict(self._outputs), counts=self._counts, details={"state": state})


def _row_digests(table: pa.Table, columns: tuple[str, ...]) -> np.ndarray:
    """64 bits a row over `columns`: with ten million rows the odds of any false match are one in 400,000."""
    import hashlib

    digests = (
        hashlib.blake2b(json.dumps(values, ensure_ascii=False).encode(), digest_size=8).digest()
        for values in zip(*(table[name].to_pylist() for name in columns), strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


# -- checks ----------------------------------------------------------------------------------------------------------


def _validate(settings: Settings, table: tables.Checked, rows: Manifest) -> Manifest:
    store = Store(settings.store_uri)
    schema = tables.RAW_SCHEMA if table == "raw" else tables.CLEAN_SCHEMA
    history = [int(volume) for volume in (store.snapshot().state.get(_VOLUMES) or [])]  # type: ignore[union-attr, arg-type]
    limits = _limits(settings)
    inputs = {"rows": rows.keys(table), "limits": limits, "history": history}
    docs = settings.home.expanduser().resolve() / "data_docs"

    def work() -> StageResult:
        from reviewclf.data.quality import check_table, raise_for

        frame = store.read_table(rows.keys(table), schema=schema).to_pandas()
        report = check_table(table, frame, limits, history=history, docs=docs, run_name=f"{table}-{digest_of(inputs)[:12]}")
        # Before anything is committed: a batch that is refused today is checked again tomorrow.
        raise_for(report)
        failed = pa.table(
            {
                "position": pa.array([row.position for row in report.failed_rows], pa.int64()),
                "reason": pa.array([row.reason for row in report.failed_rows], pa.string()),
            }
        )
        return StageResult(
            outputs={"failed": store.put_table(failed)},
            counts={"rows": report.rows, "failed_rows": failed.num_rows, "rules": len(report.rules)},
            details={
                "data_docs": report.docs,
                "rules": [rule.model_dump(mode="json") for rule in report.rules],
            },
        )

    manifest = store.run_stage(f"validate_{table}", 1, inputs, work)
    logger.info(
        "%s: %d rows, %d to quarantine; data docs: %s",
        table,
        manifest.counts["rows"],
        manifest.counts["failed_rows"],
        manifest.details["data_docs"],
    )
    return manifest


def _limits(settings: Settings) -> QualitySettings:
    """The limits of the settings; whoever brings a taxonomy in another script does not expect reviews in Cyrillic."""
    taxonomy = Taxonomy.load(settings.taxonomy)
    if cyrillic_share(" ".join(f"{item.name} {item.description}" for item in taxonomy.categories)) >= _MOSTLY:
        return settings.quality
    return settings.quality.model_copy(update={"min_russian_rows": 0.0})


# -- clean rows ------------------------------------------------------------------------------------------------------


def _clean(settings: Settings, store: Store, base: Snapshot, ingested: Manifest, validated: Manifest) -> Manifest:
    inputs = {
        "raw": ingested.keys("raw"),
        "failed": validated.keys("failed"),
        "base": base.keys("clean"),
        "near": settings.dataset.near_duplicate_similarity,
    }

    def work() -> StageResult:
        cleaner = Cleaner(similarity=settings.dataset.near_duplicate_similarity)
        for known, signatures in _known(store, base):
            cleaner.know(known, signatures)
        for copies in store.iter_tables(base.keys("duplicates"), ["review_id", "text_hash"]):
            cleaner.know_duplicates(copies.to_pandas())
        outputs: dict[str, list[str]] = {name: [] for name in CleanedPart._fields}
        counts = dict.fromkeys(CleanedPart._fields, 0)
        for raw, failed in _parts_with_failures(store, ingested, validated):
            part = cleaner.clean(raw, failed)
            for name, table in part._asdict().items():
                counts[name] += table.num_rows
                if table.num_rows:
                    outputs[name].append(store.put_table(table))
        return StageResult(outputs={**outputs, "base": base.keys("clean")}, counts=counts)

    return store.run_stage("clean", 1, inputs, work)


def _known(store: Store, base: Snapshot) -> Iterator[tuple[pd.DataFrame, pa.Table]]:
    clean_parts = store.iter_tables(base.keys("clean"), ["review_id", "text_hash"])
    for clean_part, signatures in zip(clean_parts, store.iter_tables(base.keys("signatures")), strict=True):
        yield clean_part.to_pandas(), signatures


def _parts_with_failures(store: Store, ingested: Manifest, validated: Manifest) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    failures = store.read_table(validated.keys("failed")).to_pydict()
    reasons = dict(zip(failures["position"], failures["reason"], strict=True))
    start = 0
    for raw in store.iter_tables(ingested.keys("raw")):
        yield (
            raw,
            {position - start: reason for position, reason in reasons.items() if start <= position < start + raw.num_rows},
        )
        start += raw.num_rows


# -- publishing ------------------------------------------------------------------------------------------------------


def _publish_manifest(
    store: Store, ingested: Manifest, validated: Manifest, cleaned: Manifest, clean_report: Manifest
) -> Manifest:
    inputs = {"ingested": ingested.digest, "cleaned": cleaned.digest, "report": clean_report.digest}

    def work() -> StageResult:
        counts = {
            "rows_in": ingested.counts["rows_in"],
            "known": ingested.counts["known"],
            "clean": cleaned.counts["clean"],
            "quarantined": ingested.counts["quarantined"] + cleaned.counts["quarantine"],
            "duplicates": cleaned.counts["duplicates"],
        }
        if counts["rows_in"] != sum(count for name, count in counts.items() if name != "rows_in"):
            raise AssertionError(f"rows were lost or doubled on the way: {counts}")
        counts["near_duplicates"] = cleaned.counts["near_duplicates"]
        counts["new"] = counts["clean"]
        docs = {"raw": validated.details["data_docs"], "clean": clean_report.details["data_docs"]}
        return StageResult(counts=counts, details={"data_docs": docs})

    return store.run_stage("publish", 1, inputs, work)


def _state(base: Snapshot, ingested: Manifest, rows: int) -> dict[str, Any]:
    new: Any = ingested.details["state"]
    state: dict[str, Any] = {
        name: {**(base.state.get(name) or {}), **entries}  # type: ignore[dict-item]
        for name, entries in new.items()
    }
    volumes = [*(base.state.get(_VOLUMES) or []), rows]  # type: ignore[misc]
    state[_VOLUMES] = volumes[-_REMEMBERED_RUNS:]
    return state


def data_docs_index(settings: Settings) -> Path:
    """The data docs' first page, which lists all runs."""
    return settings.home.expanduser().resolve() / "data_docs" / "index.html"
