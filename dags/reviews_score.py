"""Score new reviews with the champion, then look whether production is healthy.

    asset reviews_clean or review_classifier → select → score (a task per shard) → publish → asset reviews_scored
        → monitor → alarm → asset reviews_drifted

Runs when there are new clean reviews, and when there is a new champion: answer every review that no champion has answered yet
(with `REVIEWCLF_SCORING__RESCORE_ON_PROMOTION`, all that this champion has not), publish the answers in the table
`predictions`, exactly one row per review and model version, and compare the night with the nights before. With
`REVIEWCLF_SCORING__SHADOW` the version with the alias `challenger` answers beside the champion. Without a champion, or with
nothing to answer, `select` ends as skipped and says so.

`alarm` ends as skipped while production is healthy. When something moved that had been calm in the last three nights, it tells
people and emits reviews_drifted, which starts a retrain. That cannot go round in circles: a retrain brings at most a new
champion, a new champion without new reviews ends here at `select` or, when it answers history anew, at `monitor`, and
what goes on moving night after night is told once.

**When it fails.** Every stage can be run again at any time: mend the cause, then clear the failed task.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task
from pydantic import JsonValue

from reviewclf.orchestration.alerts import report_failure, send_alert
from reviewclf.orchestration.flow import (
    REVIEW_CLASSIFIER,
    REVIEWS_CLEAN,
    REVIEWS_DRIFTED,
    REVIEWS_SCORED,
    TASK_DEFAULTS,
    announce,
    run_stage,
    skip_if_told,
)


@dag(
    schedule=(REVIEWS_CLEAN | REVIEW_CLASSIFIER),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    tags=["reviewclf", "scoring"],
    doc_md=__doc__,
)
def reviews_score() -> None:
    """Go from the assets reviews_clean and review_classifier to the assets reviews_scored and reviews_drifted."""

    @task
    def select() -> JsonValue:
        """Find the reviews that the champion has to answer and cut them into shards."""
        from reviewclf.stages import score as stages

        return skip_if_told(run_stage(stages.select))

    @task
    def shards(selected: dict[str, JsonValue]) -> JsonValue:
        """Spread the shards over mapped tasks."""
        return selected["details"]["shards"]  # type: ignore[index,call-overload]

    @task(
        execution_timeout=timedelta(hours=6),
        map_index_template="shard {{ ti.map_index }}",
        # Airflow takes the documentation of mapped tasks from here, not from the function.
        doc_md="Let the champion, and the challenger in its shadow, answer the reviews of one shard.",
    )
    def score(selected: JsonValue, shard: JsonValue) -> JsonValue:
        from reviewclf.stages import score as stages

        return run_stage(stages.score, selected, shard=shard)

    @task(outlets=[REVIEWS_SCORED])
    def publish(selected: JsonValue, scored: JsonValue) -> JsonValue:
        """Make the answers visible in the table `predictions`, each review and model version once."""
        from reviewclf.stages import score as stages

        published = run_stage(stages.publish, selected, scored)
        return announce(REVIEWS_SCORED, published, changed=True, unchanged="")

    @task
    def monitor(published: JsonValue) -> JsonValue:
        """Compare the night with the nights before: input, answers, confidence, later labels; estimate F1 without labels."""
        from reviewclf.stages import monitor as stages

        return skip_if_told(run_stage(stages.monitor, published))

    @task(outlets=[REVIEWS_DRIFTED])
    def alarm(watched: JsonValue) -> JsonValue:
        """Tell people what moved, and start a retrain; skipped while nothing new did."""
        details, counts = watched["details"], watched["counts"]  # type: ignore[index,call-overload]
        calm = "what moved was told before" if counts["alarms"] else "nothing moved that matters"
        manifest = announce(
            REVIEWS_DRIFTED, watched, changed=counts["new_alarms"] > 0, unchanged=f"{details['verdict']}: {calm}"
        )
        send_alert("drift", details["headline"], details["alarm"])
        return manifest

    selected = select()
    alarm(monitor(publish(selected, score.partial(selected=selected).expand(shard=shards(selected)))))


reviews_score()
