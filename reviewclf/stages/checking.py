"""The data checks of raw and clean rows, as a stage."""

from __future__ import annotations

import logging
from statistics import median

from reviewclf import tables
from reviewclf.data.lookups import batches
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import QualitySettings, Settings
from reviewclf.store import StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import cyrillic_share

logger = logging.getLogger(__name__)

# In the state of a snapshot: rows that were new on the last nights that brought any, without the first load.
NEW_ROWS = "new_rows"
# In the details of `ingest`: known files were read again because the settings that read them have changed. What comes of that
# says nothing of how many reviews a night brings.
READ_ANEW = "read_anew"
_MOSTLY = 0.5
# A first night's million rows are checked in parts, each by all rules: what they take is memory for one part.
_BATCH = 100_000


def check_rows(settings: Settings, table: tables.Checked, rows: Manifest, *, is_batch: bool = True) -> Manifest:
    """Check the rows of ``outputs[table]``; those that fail are named in ``outputs["failed"]``.

    Rows that are no batch, as they have come on several nights, are judged one by one.

    Raises
    ------
    QualityError
        A rule about the batch as a whole failed.
    """
    store = Store(settings.store_uri)
    history = [int(volume) for volume in (store.snapshot().state.get(NEW_ROWS) or [])]  # type: ignore[union-attr, arg-type]
    if rows.details.get(READ_ANEW):
        history = []
    limits = _limits(settings)
    inputs = {"rows": rows.keys(table), "limits": limits, "history": history, "is_batch": is_batch}
    docs = settings.home.expanduser().resolve() / "data_docs"

    def work() -> StageResult:
        from reviewclf.data.quality import check_table, merged, raise_for

        total = sum(part.num_rows for part in store.iter_tables(rows.keys(table), []))
        # Few new rows are no fault: a source may bring one review, and a second run on one day finds next to nothing. That a
        # file has shrunk is seen when it is read.
        comparable = history if history and total > median(history) else []
        reports = []
        parts = batches(store, rows.keys(table), _BATCH) if total else iter([tables.SCHEMAS[table].empty_table()])
        for number, part in enumerate(parts):
            name = f"{table}-{digest_of(inputs)[:12]}" + (f"-{number + 1}" if number else "")
            found = check_table(
                table,
                part.to_pandas(),
                limits,
                history=comparable,
                docs=docs,
                run_name=name,
                others=total - part.num_rows,
            )
            reports.append(found)
        report = merged(reports)
        # Before anything is committed: a batch that is refused today is checked again tomorrow.
        if is_batch:
            raise_for(report)
        return StageResult(
            outputs={"failed": store.put_part([row._asdict() for row in report.failed_rows], tables.FAILED_SCHEMA)},
            counts={"rows": report.rows, "failed_rows": len(report.failed_rows), "rules": len(report.rules)},
            details={"data_docs": report.docs, "rules": [rule.model_dump(mode="json") for rule in report.rules]},
        )

    manifest = store.run_stage(f"validate_{table}", 2, inputs, work)
    counts, page = manifest.counts, manifest.details["data_docs"]
    logger.info("%s: %d rows, %d to quarantine; data docs: %s", table, counts["rows"], counts["failed_rows"], page)
    return manifest


def _limits(settings: Settings) -> QualitySettings:
    """The limits of the settings; whoever brings a taxonomy in another script does not expect reviews in Cyrillic."""
    taxonomy = Taxonomy.load(settings.taxonomy)
    if cyrillic_share(" ".join(f"{item.name} {item.description}" for item in taxonomy.categories)) >= _MOSTLY:
        return settings.quality
    return settings.quality.model_copy(update={"min_russian_rows": 0.0})
