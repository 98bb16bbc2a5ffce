"""What happens when a task or a run fails: one readable summary in the log.

Used as ``on_failure_callback``; Airflow puts this folder on the import path of every worker.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("reviewclf.alerts")


def report_failure(context: Mapping[str, Any]) -> None:
    """Log what failed, why, in which attempt, and where to look.

    Parameters
    ----------
    context : mapping
        Airflow's context. A failed task brings ``exception`` and its task instance; a run that failed as a whole, for
        example by its time limit, brings ``reason``.
    """
    log.error(failure_summary(context))


def send_alert(kind: str, subject: str, body: str) -> None:
    """Tell people about something that is no failure of a task; never raises.

    Parameters
    ----------
    kind : str
        ``failure``, ``deadline``, ``gate``, ``budget``, ``drift`` or ``promotion``.
    subject, body : str
        One line, and what there is to know.
    """
    log.warning("%s: %s\n%s", kind, subject, body)


def failure_summary(context: Mapping[str, Any]) -> str:
    """One line on the failure, plus the address of the task where there is one."""
    ti = context.get("ti") or context.get("task_instance")
    exception = context.get("exception")
    if exception is None:
        run = context.get("dag_run") or context.get("run_id")
        dag_id = getattr(run, "dag_id", getattr(context.get("dag"), "dag_id", "DAG"))
        run_id = getattr(run, "run_id", context.get("run_id"))
        return f"FAILED {dag_id}, run {run_id}: {context.get('reason', 'see its tasks')}"
    name = f"{ti.dag_id}.{ti.task_id}" + (f"[{ti.map_index}]" if ti.map_index >= 0 else "")
    lines = [f"FAILED {name}, run {ti.run_id}, attempt {ti.try_number}: {_message(exception)}"]
    if url := getattr(ti, "log_url", None):
        lines.append(f"Log: {url}")
    return "\n".join(lines)


def _message(exception: object) -> str:
    # A stage's own error arrives wrapped, its type already in the message.
    text = str(exception).strip()
    kind = type(exception).__name__
    if isinstance(exception, str) or kind == "AirflowFailException":
        return text
    return f"{kind}: {text}" if text else kind
