"""Leaves a summary of the night as a note on the DAG run: rows, labels, cost, candidates, verdict, or what failed.

Airflow calls this in the scheduler at the moment it decides that a run is over (with any executor), or in the API server when a
person marks one. What the tasks handed on is read in a session of its own: whatever goes wrong here, the scheduler's own
transaction, in which the note travels, stays sound.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl

from reviewclf.monitoring.night import summarize
from reviewclf.orchestration.results import read_result

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

# Each is started by an asset of the one before it.
NIGHTLY = ("reviews_ingest", "reviews_label", "reviews_retrain")

log = logging.getLogger("reviewclf.notes")


@hookimpl
def on_dag_run_success(dag_run: DagRun) -> None:
    """Note what a run did."""
    _note(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: DagRun) -> None:
    """Note what a run did before it failed, and where."""
    _note(dag_run)


def _note(dag_run: DagRun) -> None:
    if dag_run.dag_id not in NIGHTLY:
        return
    try:
        text = _summary(dag_run.id)
        note = dag_run.dag_run_note
        # A note with an author is a person's: it stays.
        if not text or (note is not None and note.user_id is not None):
            return
        if note is None:
            dag_run.note = text
        else:
            note.content = text
    except Exception:  # a note is not worth a scheduler
        log.exception("No summary for run %s of %s", dag_run.run_id, dag_run.dag_id)


def _summary(run: int) -> str:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    results: dict[str, list[Any]] = defaultdict(list)
    with create_session(scoped=False) as session:
        found = session.get(DagRun, run)
        if found is None:
            return ""
        for each in _night(found):
            rows = session.execute(
                XComModel.get_many(key="return_value", run_id=each.run_id, dag_ids=each.dag_id)
                .with_only_columns(XComModel.task_id, XComModel.map_index, XComModel.value)
                .order_by(None)
            ).all()
            for task_id, _, value in sorted(rows, key=lambda row: (row[0], row[1])):
                results[task_id].append(read_result(value))
        failed = session.execute(
            select(TaskInstance.task_id, TaskInstance.map_index).where(
                TaskInstance.dag_id == found.dag_id, TaskInstance.run_id == found.run_id, TaskInstance.state == "failed"
            )
        ).all()
    names = sorted(f"{task_id}[{index}]" if index >= 0 else str(task_id) for task_id, index in failed)
    return summarize(results, names)


def _night(run: DagRun) -> list[DagRun]:
    """The runs that led to this one through their assets, the earliest first, and the run itself."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session: Any = object_session(run)
    night, wave = [run], [run]
    for _ in NIGHTLY:
        sources = {(event.source_dag_id, event.source_run_id) for each in wave for event in each.consumed_asset_events}
        wave = [
            before
            for dag_id, run_id in sorted(source for source in sources if all(source))
            if dag_id in NIGHTLY
            for before in session.scalars(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        ]
        night = [*wave, *night]
    return night
