"""Label the new reviews.

    asset reviews_clean → select → shards → annotate (one task per shard) → aggregate → asset reviews_labelled

Runs when clean reviews are published: choose those without enough votes, ask the annotators for votes shard by shard
(at most as many at once as the pool `annotation` has slots), and aggregate all votes to one label per review. When no
label changed, `aggregate` ends as skipped and nothing downstream runs.

**When it fails.** Finished shards keep their votes; clearing a failed shard repeats that shard only.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import TriggerRule, dag, task
from pydantic import JsonValue

from reviewclf_alerts import report_failure
from reviews_flow import REVIEWS_CLEAN, REVIEWS_LABELLED, TASK_DEFAULTS, announce, run_stage


@dag(
    schedule=[REVIEWS_CLEAN],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    tags=["reviewclf", "labels"],
    doc_md=__doc__,
)
def reviews_label() -> None:
    """Go from the asset reviews_clean to the asset reviews_labelled."""

    @task
    def select() -> JsonValue:
        """Choose the clean reviews that need votes and cut them into shards."""
        from reviewclf.stages import label as stages

        return run_stage(stages.select)

    @task
    def shards(selected: dict[str, JsonValue]) -> JsonValue:
        """Spread the shards over mapped tasks."""
        return selected["details"]["shards"]  # type: ignore[index,call-overload]

    @task(
        pool="annotation",
        execution_timeout=timedelta(hours=12),
        map_index_template="shard {{ ti.map_index }}",
        # Airflow takes the documentation of mapped tasks from here, not from the function.
        doc_md="Collect the annotators' votes on one shard of reviews; those in the store are not asked for again.",
    )
    def annotate(selected: JsonValue, shard: JsonValue) -> JsonValue:
        from reviewclf.stages import label as stages

        return run_stage(stages.annotate, selected, shard=shard)

    # Without new reviews there are no shards and `annotate` is skipped; votes or rules may have changed all the same.
    @task(outlets=[REVIEWS_LABELLED], trigger_rule=TriggerRule.NONE_FAILED)
    def aggregate(selected: JsonValue, annotated: JsonValue) -> JsonValue:
        """Aggregate all votes to one label per review; skipped when no label changed."""
        from reviewclf.stages import label as stages

        labels = run_stage(stages.aggregate, selected, annotated)
        return announce(REVIEWS_LABELLED, labels, changed=labels["counts"]["changed"] > 0, unchanged="no label changed")

    selected = select()
    aggregate(selected, annotate.partial(selected=selected).expand(shard=shards(selected)))


reviews_label()
