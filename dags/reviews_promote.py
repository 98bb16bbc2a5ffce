"""Make a version the champion, by hand.

    trigger with version, reason, force → promote → asset review_classifier

Moves the alias `champion` of the registered model `review-classifier` to the version named; the old champion becomes
`previous`. A version that has not passed the gate is refused unless `force` is set. Who triggered the run, when and why goes
into the history and onto the version. The same as `reviewclf promote VERSION --reason`.

**When it fails.** The log says why: the version does not exist, was retired, or has not passed the gate.
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
        "version": Param(type="string", pattern=r"^\s*[0-9]+\s*$", title="Version", description="Number in the registry."),
        "reason": Param(type="string", minLength=1, title="Reason", description="Kept in the history and on the version."),
        "force": Param(False, type="boolean", title="Force", description="Also a version that has not passed the gate."),
    },
    tags=["reviewclf", "registry"],
    doc_md=__doc__,
)
def reviews_promote() -> None:
    """Go from a person's wish to the asset review_classifier."""

    @task(outlets=[REVIEW_CLASSIFIER])
    def promote() -> JsonValue:
        """Move the alias `champion` to the version asked for; skipped when it is champion already."""
        from reviewclf.stages import promotion as stages

        context = get_current_context()
        params = context["params"]
        return announce_champion(
            run_stage(
                stages.promote_version,
                version=params["version"].strip(),
                reason=params["reason"],
                force=params["force"],
                who=triggered_by(context),
                key=f"reviews_promote {context['run_id']}",
            )
        )

    promote()


reviews_promote()
