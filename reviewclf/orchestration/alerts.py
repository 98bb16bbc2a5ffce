"""Alerts: what people are told when they are not looking, over the channels that Airflow's connections name.

A kind of alert goes to every connection of `REVIEWCLF_ALERTS__CONNECTIONS`; the type of a connection says how
(:mod:`reviewclf.orchestration.channels`). What cannot be delivered is logged and never fails a task. Airflow calls this in
several of its components: the callbacks of tasks in the worker, those of runs in the DAG processor, those of deadlines in the
triggerer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.listeners import hookimpl

import reviewclf.orchestration.messages as messages

log = logging.getLogger("reviewclf.alerts")

# A run that failed because of its tasks: each of them has told already.
_TOLD_BY_TASKS = "task_failure"

# Looking up connections and importing a provider, on a machine that has other things to do. Together with the longest
# REVIEWCLF_ALERTS__TIMEOUT_SECONDS it stays below the 50 seconds after which the DAG processor ends a callback.
_PREPARATION_SECONDS = 25.0

# A server that is away fails every shard of a night, and that is one piece of news.
_MAX_ALERTS_OF_A_MAPPED_TASK = 3


def send_alert(kind: str, subject: str, body: str) -> None:
    """Log an alert and tell people; never raises.

    Called in a task, it adds which one that was and where its log lies; and what to do about this kind of alert.

    Parameters
    ----------
    kind : str
        ``failure``, ``deadline``, ``gate``, ``budget``, ``drift`` or ``promotion``.
    subject, body : str
        One line, and what there is to know.
    """
    try:
        _tell(kind, subject, messages.complete(kind, body, _current_task()))
    except Exception:
        log.exception("Alert %r was not delivered", subject)


def _current_task() -> Any:
    from airflow.sdk import get_current_context

    try:
        return get_current_context()["ti"]
    except (RuntimeError, KeyError):  # outside of tasks, such as in the API server
        return None


def _tell(kind: str, subject: str, body: str) -> None:
    try:
        (log.error if kind == "failure" else log.warning)("%s\n%s", subject, body)
        for connection, reason in deliver(kind, subject, body).items():
            log.error("Alert %r was not delivered to the connection %s: %s", subject, connection, reason)
    except Exception:
        log.exception("Alert %r was not delivered", subject)


def deliver(kind: str, subject: str, body: str) -> dict[str, str]:
    """Send an alert to all configured connections at once.

    Returns
    -------
    dict of str to str
        Connections that did not take it, with the reason; empty when all did, or nobody wants this kind.

    Raises
    ------
    SettingsError
        When the settings cannot be used.
    """
    from reviewclf.settings import load_settings

    options = load_settings().alerts
    if kind not in options.kinds:
        return {}
    return _send_to_all(options.connections, options.timeout_seconds, kind=kind, subject=subject, body=body)


def _send_to_all(connections: Sequence[str], limit: float, *, kind: str, subject: str, body: str) -> dict[str, str]:
    from reviewclf.orchestration.channels import send

    most = limit + _PREPARATION_SECONDS
    undelivered = dict.fromkeys(connections, f"not done within {most:g} s")

    def attempt(connection_id: str) -> None:
        reason = send(connection_id, kind=kind, subject=subject, body=body, timeout=limit)
        if reason is None:
            del undelivered[connection_id]
        else:
            undelivered[connection_id] = reason

    # Libraries take time-outs for each step, name servers and proxies none at all, and the DAG processor ends a callback that
    # takes too long. So each channel has a thread of its own that is left behind when the time is up.
    threads = [threading.Thread(target=attempt, args=(name,), name=f"alert-{name}", daemon=True) for name in undelivered]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + most
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return dict(undelivered)


def report_failure(context: Mapping[str, Any]) -> None:
    """Tell what failed, why, in which attempt, where to look and what to do: the ``on_failure_callback`` of tasks and DAGs.

    Airflow calls it for a task whose last attempt failed, not for each retry. A run that failed because of its tasks is only
    logged: they have told. So is a mapped task of which some others have failed in this run.

    Parameters
    ----------
    context : mapping
        Airflow's context. A failed task brings ``exception`` and its task instance; a run that failed as a whole, for
        example by its time limit, brings ``reason``.
    """
    summary = messages.failure_summary(context)
    told_already = context.get("exception") is None and context.get("reason") == _TOLD_BY_TASKS
    if told_already or _enough_failed_before(context.get("ti")):
        log.error("%s", summary)
        return
    _tell("failure", *messages.failure(context))


def _enough_failed_before(ti: Any) -> bool:
    """Whether so many of the same mapped task have failed in this run that one more is only logged."""
    if getattr(ti, "map_index", -1) < 0:
        return False
    try:
        failed = ti.get_ti_count(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], states=["failed"])
    except Exception:
        log.debug("Failed tasks cannot be counted here", exc_info=True)
        return False
    return bool(failed > _MAX_ALERTS_OF_A_MAPPED_TASK)


async def report_deadline(context: Mapping[str, Any], hours: float) -> None:
    """Tell that a run is not done in time; called by the triggerer when a DAG's deadline has passed."""
    # The triggerer serves all deferred tasks with one thread, which must not wait for a mail server.
    await asyncio.to_thread(_tell, "deadline", *messages.deadline(context, hours))


def alert_if_budget_spent(stopped: Sequence[str]) -> None:
    """Tell that asking the model ended early, and why; nothing when it did not."""
    if stopped:
        send_alert("budget", "A budget for the language model is spent", messages.listed(stopped))


@hookimpl
def on_new_dag_import_error(filename: str, stacktrace: str) -> None:
    """Tell that a DAG file cannot be loaded: no run fails then, there are just none any more."""
    # Called in the DAG processor's own loop and transaction, which must go on.
    alert = messages.import_error(filename, stacktrace)
    threading.Thread(target=_tell, args=("failure", *alert), name="alert-import-error", daemon=True).start()
