"""The texts of alerts: one line of subject; then DAG, run, task, error, address, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

Message = tuple[str, str]

# Telegram takes 4,096 characters a message; whoever needs the whole error has the address of the log.
_MAX_ERROR = 1500
_MAX_LINES = 20

_CLEAR = "Mend the cause, then clear the failed task in Airflow: what finished stages have done is not done again."
# By the error's name, the first that fits.
_WHAT_TO_DO = {
    "QualityError": "Nothing was published. Look at the batch's quarantine and data docs; mend the source, or the limits "
    "REVIEWCLF_QUALITY__*; then clear the task.",
    "DataContractError": "Mend the file, row or column that is named, or the settings REVIEWCLF_INGEST__*; clear the task.",
    "SettingsError": "Mend the variable that is named in the workers' environment, restart them, then clear the task.",
    "LeakError": "Do not train on this set. The message names the reviews; `reviewclf dataset show` shows the set.",
    "AnnotatorUnavailableError": "See that the labelling server (REVIEWCLF_LLM__BASE_URL) answers, then clear the task: votes "
    "so far are kept.",
    "ConflictError": "Others published first, again and again. See who else writes to this store, then clear the task.",
    "StoreError": "See that the store (REVIEWCLF_STORE) answers and has room, then clear the task.",
    "RegistryUnavailableError": "See that MLflow (MLFLOW_TRACKING_URI) answers and has room, then clear the task.",
    "RegistryError": "Mend in MLflow (MLFLOW_TRACKING_URI) what the message names, then clear the task.",
    "AirflowTaskTimeout": "It took longer than the task may. See in its log how far it came; clear it to go on from there.",
}
_ADVICE = {
    "gate": "production keeps its champion. The gate's report in MLflow lists each rule with value and limit.",
    "budget": "nothing if you want this limit, the next run goes on where this one ended; else raise REVIEWCLF_LLM__MAX_*.",
    "promotion": "nothing if you expected it; else trigger the DAG reviews_rollback with a reason.",
    "drift": "see in the report what moved; a retrain has been asked for. Label some of the reviews if they are of a new kind.",
}
_RUN_REASONS = {
    "timed_out": "the run took longer than it may",
    "all_tasks_deadlocked": "no task can go on: what they wait for can never happen",
}


def failure_summary(context: Mapping[str, Any]) -> str:
    """One line on the failure, plus the address of the task where there is one."""
    exception = context.get("exception")
    if exception is None:
        dag_id, run_id = _run_of(context)
        return f"FAILED {dag_id}, run {run_id}: {context.get('reason', 'see its tasks')}"
    ti = _task_of(context)
    what = f"FAILED {_task_name(ti)}, run {ti.run_id}, attempt {ti.try_number}: {_error(exception)}"
    return _joined([what, _log_line(ti)])


def failure(context: Mapping[str, Any]) -> Message:
    """A task's last attempt, or a run as a whole, has failed."""
    exception = context.get("exception")
    if exception is None:
        dag_id, run_id = _run_of(context)
        reason = str(context.get("reason", "see its tasks"))
        error = f"Error: {_RUN_REASONS.get(reason, reason)} ({reason})"
        advice = "see which task was still going on and why, then clear the run; finished stages are not repeated."
        lines = [_run_lines(dag_id, run_id), error, _run_link(dag_id, run_id), f"What to do: {advice}"]
        return f"FAILED {dag_id}", _joined(lines)
    ti = _task_of(context)
    error = _error(exception)
    advice = next((text for name, text in _WHAT_TO_DO.items() if error.startswith(name)), _CLEAR)
    lines = [*_task_lines(ti), f"Attempt: {ti.try_number}", f"Error: {_short(error)}", _log_line(ti), f"What to do: {advice}"]
    return f"FAILED {_task_name(ti)}", _joined(lines)


def import_error(filename: str, stacktrace: str) -> Message:
    """A DAG file cannot be loaded."""
    last = stacktrace.strip().splitlines()[-1] if stacktrace.strip() else "no reason given"
    advice = "mend what is named, a setting or the file. Until then its DAGs do not run, and so do not fail."
    return f"DAG file {filename} cannot be loaded", f"Error: {_short(last)}\nWhat to do: {advice}"


def deadline(context: Mapping[str, Any], hours: float) -> Message:
    """A run is not done in time."""
    run = context.get("dag_run") or {}
    dag_id, run_id = str(run.get("dag_id", "DAG")), str(run.get("dag_run_id") or run.get("run_id") or "unknown")
    return f"LATE {dag_id}", _joined(
        [
            _run_lines(dag_id, run_id),
            f"Due: {hours:g} h after it was queued at {run.get('queued_at')}; it is {run.get('state', 'not done')}",
            _run_link(dag_id, run_id),
            "What to do: see which task is queued (workers, pools) or running (its log). The run goes on until its time limit.",
        ]
    )


def complete(kind: str, body: str, ti: Any) -> str:
    """Body of an alert from within a task: which one (None: from elsewhere), what there is to know, its log, what to do."""
    where = [*_task_lines(ti), body, _log_line(ti)] if ti is not None else [body]
    return _joined([*where, f"What to do: {_ADVICE[kind]}" if kind in _ADVICE else ""])


def listed(reasons: Sequence[str]) -> str:
    """Reasons as a list, each once."""
    return "\n".join(f"- {_short(reason)}" for reason in list(dict.fromkeys(reasons))[:_MAX_LINES])


def _run_of(context: Mapping[str, Any]) -> tuple[str, str]:
    run = context.get("dag_run")
    dag_id = getattr(run, "dag_id", None) or getattr(context.get("dag"), "dag_id", "DAG")
    return str(dag_id), str(getattr(run, "run_id", None) or context.get("run_id") or "unknown")


def _task_of(context: Mapping[str, Any]) -> Any:
    return context.get("ti") or context.get("task_instance")


def _task_name(ti: Any) -> str:
    mapped = getattr(ti, "map_index", None)
    return f"{ti.dag_id}.{ti.task_id}" + (f"[{mapped}]" if mapped is not None and mapped >= 0 else "")


def _task_lines(ti: Any) -> list[str]:
    mapped = _task_name(ti).removeprefix(f"{ti.dag_id}.")
    return [_run_lines(ti.dag_id, ti.run_id), f"Task: {mapped}"]


def _run_lines(dag_id: str, run_id: str) -> str:
    return f"DAG: {dag_id}\nRun: {run_id}"


def _log_line(ti: Any) -> str:
    url = getattr(ti, "log_url", None)
    return f"Log: {url}" if url else ""


def _run_link(dag_id: str, run_id: str) -> str:
    from airflow.sdk.configuration import conf

    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"Run page: {base}/dags/{quote(dag_id)}/runs/{quote(run_id)}" if base else ""


def _error(exception: object) -> str:
    # A stage's own error arrives wrapped, its type already in the message.
    text = str(exception).strip()
    kind = type(exception).__name__
    if isinstance(exception, str) or kind == "AirflowFailException":
        return text
    return f"{kind}: {text}" if text else kind


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ERROR else f"{text[:_MAX_ERROR]} …"


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(line for line in lines if line)
