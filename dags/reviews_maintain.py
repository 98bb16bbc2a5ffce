"""Keep house in the store.

    store → maintain → store, tidied

Every night at 01:00 in Moscow, before the new reviews come: put small parts of the tables together, and remove what nothing
within retention (`REVIEWCLF_MAINTENANCE__*`) names any more: old snapshots and the versions of tables that only they hold,
outputs of stages, journals, training sets, checkpoints. Training sets of versions with an alias stay, and so does the history
of promotions. The same as `reviewclf store maintain`, which shows with `--dry-run` what it would do.

**When it fails.** Nothing is broken, only not tidied: mend the cause and clear the task, or wait for the next night.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task
from pydantic import JsonValue

from reviewclf.orchestration.alerts import report_failure
from reviewclf.orchestration.flow import TASK_DEFAULTS, nightly, run_stage


@dag(
    schedule=nightly("0 1 * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    tags=["reviewclf", "data"],
    doc_md=__doc__,
)
def reviews_maintain() -> None:
    """Go through the store once."""

    @task(execution_timeout=timedelta(hours=4))
    def maintain() -> JsonValue:
        """Put small parts of tables together, and remove what nothing within retention names."""
        from reviewclf.stages import maintain as stages

        return run_stage(stages.maintain)

    maintain()


reviews_maintain()
