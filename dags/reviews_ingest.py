"""Take in new reviews, check and clean them, publish the snapshot.

    ingest → validate_raw → clean → validate_clean → publish → asset reviews_clean

Every night at 02:00 in Moscow: read what is new in the source (`REVIEWCLF_SOURCE`), check it as it came, clean it,
check it again, and publish the snapshot of clean reviews. Rows that break the contract go to quarantine with a reason;
a batch that is wrong as a whole stops the run before anything is published. When there is nothing new, `publish` ends
as skipped and nothing downstream runs.

**When it fails.** The task's log ends with what is wrong, where, and what to do. Every stage commits last and can be
run again at any time: mend the cause, then clear the failed task.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task
from pydantic import JsonValue

from reviewclf.orchestration.alerts import report_failure
from reviewclf.orchestration.flow import REVIEWS_CLEAN, TASK_DEFAULTS, announce, done_within, nightly, run_stage
from reviewclf.settings import load_settings


@dag(
    schedule=nightly("0 2 * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=4),
    deadline=done_within(load_settings().alerts.ingest_hours),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    tags=["reviewclf", "data"],
    doc_md=__doc__,
)
def reviews_ingest() -> None:
    """Go from the source to the asset reviews_clean."""

    @task
    def ingest() -> JsonValue:
        """Read the new rows of the source; malformed ones go to quarantine with row number and reason."""
        from reviewclf.stages import ingest as stages

        return run_stage(stages.ingest)

    @task
    def validate_raw(ingested: JsonValue) -> JsonValue:
        """Check the rows as they came: columns, nulls, lengths, share of Cyrillic, volume."""
        from reviewclf.stages import ingest as stages

        return run_stage(stages.validate_raw, ingested)

    @task
    def clean(ingested: JsonValue, validated: JsonValue) -> JsonValue:
        """Clean the texts, take out personal data, recognise exact and near duplicates."""
        from reviewclf.stages import ingest as stages

        return run_stage(stages.clean, ingested, validated)

    @task
    def validate_clean(cleaned: JsonValue) -> JsonValue:
        """Check the clean rows against the suite for clean data."""
        from reviewclf.stages import ingest as stages

        return run_stage(stages.validate_clean, cleaned)

    @task(outlets=[REVIEWS_CLEAN])
    def publish(ingested: JsonValue, validated: JsonValue, cleaned: JsonValue, clean_report: JsonValue) -> JsonValue:
        """Commit the snapshot of clean reviews; skipped when no review is new."""
        from reviewclf.stages import ingest as stages

        published = run_stage(stages.publish, ingested, validated, cleaned, clean_report)
        changed = published["counts"]["new"] + published["counts"]["superseded"] > 0
        return announce(REVIEWS_CLEAN, published, changed=changed, unchanged="no new reviews")

    ingested = ingest()
    validated = validate_raw(ingested)
    cleaned = clean(ingested, validated)
    publish(ingested, validated, cleaned, validate_clean(cleaned))


reviews_ingest()
