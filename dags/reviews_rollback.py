"""Return to the version before the champion, by hand.

    trigger with reason → rollback → asset review_classifier

Moves the alias `champion` back to `previous`; `previous` becomes the champion before that one. What is rolled back is not
promoted again by the next night unless it wins anew on changed data. Who triggered the run, when and why goes into the history
and onto the version that went. The same as `reviewclf rollback`.

**When it fails.** There is nothing to return to: no version carries the alias `previous`. `reviews_promote` takes any version.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag, get_current_context, task
from pydantic import JsonValue

from reviewclf.orchestration.alerts import report_failure
from reviewclf.orchestration.flow import REVIEW_CLASSIFIER, TASK_DEFAULTS, announce_champion, run_stage, triggered_by


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    # A run that somebody asks for should not wait for somebody to switch the DAG on.
    is_paused_upon_creation=False,
    dagrun_timeout=timedelta(hours=2),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    params={
        "reason": Param("", type=["null", "string"], title="Reason", description="Kept in the history and on the version."),
    },
    tags=["reviewclf", "registry"],
    doc_md=__doc__,
)
def reviews_rollback() -> None:
    """Go from a person's wish to the asset review_classifier."""

    @task(outlets=[REVIEW_CLASSIFIER])
    def rollback() -> JsonValue:
        """Move the alias `champion` back to `previous`."""
        from reviewclf.stages import promotion as stages

        context = get_current_context()
        return announce_champion(
            run_stage(
                stages.rollback,
                reason=context["params"]["reason"] or "",
                who=triggered_by(context),
                key=f"reviews_rollback {context['run_id']}",
            )
        )

    rollback()


reviews_rollback()
