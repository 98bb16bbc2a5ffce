"""Label the new reviews.

    asset reviews_clean → select → shards → annotate (one task per shard) → collect → [ask_people] → aggregate
                                                                                   → asset reviews_labelled

Runs when clean reviews are published: choose those without enough votes, ask the annotators for votes shard by shard
(at most as many at once as the pool `annotation` has slots), publish the votes, and aggregate all votes to one label per
review. When no label changed, `aggregate` ends as skipped and nothing downstream runs.

With `REVIEWCLF_REVIEW__WAIT=true` the run waits between votes and labels, ten hours at most, until somebody has gone
through the queue of doubtful labels (`reviewclf review export`, `reviewclf review import`) and says so under Required Actions.

**When it fails.** Every vote is kept the moment it exists; clearing a failed shard asks only for what is missing. A
labelling server that is away makes `annotate` wait (up for reschedule) and look again every minute; a wrong address, key
or model, an empty account, or a model whose thoughts leave no room for answers, fails it at once with the way out.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import PokeReturnValue, TriggerRule, dag, task
from pydantic import JsonValue

from reviewclf.errors import AnnotatorUnavailableError
from reviewclf.orchestration.alerts import alert_if_budget_spent, report_failure
from reviewclf.orchestration.flow import REVIEWS_CLEAN, REVIEWS_LABELLED, TASK_DEFAULTS, announce, done_within, run_stage
from reviewclf.settings import load_settings

logger = logging.getLogger(__name__)


@dag(
    schedule=[REVIEWS_CLEAN],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    deadline=done_within(load_settings().alerts.label_hours),
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

    @task.sensor(
        pool="annotation",
        mode="reschedule",
        poke_interval=60,
        timeout=12 * 60 * 60,
        execution_timeout=timedelta(hours=12),
        map_index_template="shard {{ ti.map_index }}",
        # Airflow takes the documentation of mapped tasks from here, not from the function.
        doc_md="Collect the annotators' votes on one shard of reviews; those in the store are not asked for again. "
        "While the labelling server is away the task gives its slot back and looks again every minute.",
    )
    def annotate(selected: JsonValue, shard: JsonValue) -> PokeReturnValue:
        from reviewclf.stages import label as stages

        try:
            return PokeReturnValue(is_done=True, xcom_value=run_stage(stages.annotate, selected, shard=shard))
        except AnnotatorUnavailableError as error:
            logger.warning("%s", error)
            return PokeReturnValue(is_done=False)

    # Without new reviews there are no shards and `annotate` is skipped; votes or rules may have changed all the same.
    @task(trigger_rule=TriggerRule.NONE_FAILED)
    def collect(selected: JsonValue, annotated: JsonValue) -> JsonValue:
        """Publish the votes, and put the doubtful labels into the queue for people."""
        from reviewclf.stages import review as stages

        collected = run_stage(stages.collect, selected, annotated)
        alert_if_budget_spent(collected["details"]["stopped"])
        return collected  # type: ignore[no-any-return]

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def wait_for_people(collected: JsonValue) -> bool:
        """Go by way of people only when REVIEWCLF_REVIEW__WAIT says so and the queue holds something."""
        return load_settings().review.wait and collected["counts"]["queue"] > 0  # type: ignore[index,call-overload,operator]

    ask_people = HITLOperator(
        task_id="ask_people",
        subject="Doubtful labels: {{ ti.xcom_pull(task_ids='collect')['counts']['queue'] }} reviews wait for a reader",
        body="Run `reviewclf review export queue.csv`, fill in the column `answer`, run `reviewclf review import queue.csv`, "
        "then say here that the labels are ready. Without an answer the run goes on after ten hours.",
        options=["Labels are ready"],
        defaults=["Labels are ready"],
        response_timeout=timedelta(hours=10),
        doc_md="Wait until somebody has gone through the queue of doubtful labels; ten hours at most.",
    )

    @task(outlets=[REVIEWS_LABELLED], trigger_rule=TriggerRule.NONE_FAILED)
    def aggregate(selected: JsonValue, annotated: JsonValue) -> JsonValue:
        """Aggregate all votes to one label per review; skipped when no label changed."""
        from reviewclf.stages import label as stages

        labels = run_stage(stages.aggregate, selected, annotated)
        return announce(REVIEWS_LABELLED, labels, changed=labels["counts"]["changed"] > 0, unchanged="no label changed")

    selected = select()
    annotated = annotate.partial(selected=selected).expand(shard=shards(selected))
    wait_for_people(collect(selected, annotated)) >> ask_people >> aggregate(selected, annotated)


reviews_label()
