"""Drive the DAGs one after the other and tell what happens, one line per finished task."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from reviewclf.local.airflow import AirflowApi
from reviewclf.local.processes import LocalError

# States that a task instance ends in (or rests in, before the next attempt), and how they are shown.
SHOWN = {
    "success": ("done", "green"),
    "skipped": ("skipped", "yellow"),
    "failed": ("failed", "red"),
    "upstream_failed": ("not run", "dim"),
    "up_for_retry": ("retry", "yellow"),
    "removed": ("removed", "dim"),
}
# A run that follows from an asset is created by the scheduler's next loops; later than this it will not come.
ASSET_RUN_SECONDS = 60.0


@dataclass(frozen=True)
class Step:
    """A DAG of the flow and the task that publishes its asset; the task is skipped when nothing is new."""

    dag_id: str
    publisher: str


FLOW = (
    Step("reviews_ingest", "publish"),
    Step("reviews_label", "aggregate"),
    Step("reviews_retrain", "promote"),
    Step("reviews_score", "publish"),
)


class Driver:
    """Takes reviews through the flow, as the night would.

    Parameters
    ----------
    api : AirflowApi
    logs : Path
        Airflow's folder of task logs.
    console : Console
        Where lines go; on a terminal the running tasks are shown below them.
    check : callable
        Raises when a server has died; called while waiting.
    poll_seconds : float
        Pause between two looks.
    """

    def __init__(
        self, api: AirflowApi, *, logs: Path, console: Console, check: Callable[[], None], poll_seconds: float = 0.7
    ) -> None:
        self._api = api
        self._logs = logs
        self._console = console
        self._check = check
        self._poll_seconds = poll_seconds

    def drive(self) -> bool:
        """Run ingest, label, retrain, score; return False as soon as one of them failed, having said why.

        A DAG that follows from new data is started by Airflow itself, through the asset. When a step found nothing new,
        the next one is triggered here all the same: its settings, rules or candidates may have changed.
        """
        cause: tuple[str, str] | None = None
        for step in FLOW:
            run_id = self._run_caused_by(step.dag_id, cause) if cause else None
            states = self._follow(step.dag_id, run_id or self._api.trigger(step.dag_id))
            if states is None:
                return False
            run_id, tasks = states
            cause = (step.dag_id, run_id) if tasks.get(step.publisher) == "success" else None
        return True

    def settle_old_runs(self) -> int:
        """Mark runs that a killed Airflow left unfinished as failed, lest they hold back new ones; return how many."""
        note = "Airflow was stopped while this run was going on."
        count = 0
        for step in FLOW:
            for run in self._api.runs(step.dag_id, state=["running", "queued"]):
                self._api.fail_run(step.dag_id, run["dag_run_id"], note=note)
                count += 1
        return count

    def _run_caused_by(self, dag_id: str, cause: tuple[str, str]) -> str | None:
        deadline = time.monotonic() + ASSET_RUN_SECONDS
        while True:
            self._check()
            runs = self._api.runs(dag_id, run_type="asset_triggered")
            for run in runs:
                if cause in self._api.upstream_runs(dag_id, run["dag_run_id"]):
                    return str(run["dag_run_id"])
            busy = self._api.runs(dag_id, state=["running", "queued"])
            if time.monotonic() > deadline and not busy:
                return None
            time.sleep(self._poll_seconds)

    def _follow(self, dag_id: str, run_id: str) -> tuple[str, dict[str, str]] | None:
        told: set[tuple[str, int, int, str]] = set()
        with self._console.status(Text(f"{dag_id} …")) as status:
            while True:
                self._check()
                # The run's state is read before its tasks', so that no task ends between the last look and the end.
                state = self._api.run(dag_id, run_id)["state"]
                tasks = self._api.tasks(dag_id, run_id)
                running = [_name(task) for task in tasks if task["state"] == "running"]
                status.update(Text(f"{dag_id} {', '.join(running)} …"))
                for task in sorted(tasks, key=lambda task: task["end_date"] or "9"):
                    key = (task["task_id"], task["map_index"], task["try_number"], task["state"] or "")
                    if key not in told and task["state"] in SHOWN:
                        told.add(key)
                        self._tell(task)
                if state == "success":
                    return run_id, {task["task_id"]: task["state"] for task in tasks}
                if state == "failed":
                    self._tell_failure(dag_id, run_id, tasks)
                    return None
                time.sleep(self._poll_seconds)

    def _tell(self, task: Mapping[str, Any]) -> None:
        state = task["state"]
        word, style = SHOWN.get(state, (state, "yellow"))
        said = ""
        if state in ("success", "skipped"):
            said = summary(self._api.result(task))
        elif state == "up_for_retry":
            said = f"attempt {task['try_number']} failed, will be tried again: {log_lines(self._log(task), 1)}"
        line = Text(f"{task['dag_id']:<15} {_name(task):<26} ")
        line.append(f"{word:<8}", style)
        line.append(f" {_seconds(task):>8}  {said}")
        line.rstrip()
        self._console.print(line, soft_wrap=True)

    def _tell_failure(self, dag_id: str, run_id: str, tasks: list[dict[str, Any]]) -> None:
        failed = [task for task in tasks if task["state"] == "failed"]
        for task in failed:
            log = self._log(task)
            lines = (
                f"{dag_id}.{_name(task)} failed. The end of its log:",
                log_lines(log),
                f"Log file:   {log}",
                f"In Airflow: {self._api.task_address(task)}",
            )
            self._console.print(Text("\n" + "\n".join(lines)), soft_wrap=True)
        if not failed:
            address = f"{self._api.address}/dags/{dag_id}/runs/{run_id}"
            line = f"\n{dag_id} failed as a whole, perhaps by its time limit: {address}"
            self._console.print(Text(line), soft_wrap=True)

    def _log(self, task: Mapping[str, Any]) -> Path:
        folder = self._logs / f"dag_id={task['dag_id']}" / f"run_id={task['dag_run_id']}" / f"task_id={task['task_id']}"
        if task["map_index"] >= 0:
            folder /= f"map_index={task['map_index']}"
        return folder / f"attempt={task['try_number']}.log"


def wait_until_ready(api: AirflowApi, *, since: datetime, check: Callable[[], None], timeout: float) -> None:
    """Wait until Airflow is healthy and has read the DAG files as they are now.

    Parameters
    ----------
    api : AirflowApi
    since : datetime
        When the DAG processor was started, with time zone; DAGs parsed before are those of an earlier start.
    check : callable
        Raises when a server has died.
    timeout : float
        Seconds.

    Raises
    ------
    LocalError
        When a DAG file cannot be loaded, or when it takes longer than `timeout`.
    """
    deadline = time.monotonic() + timeout
    while not api.healthy():
        _pause(check, deadline, "Airflow does not report that it is healthy")
    waiting = [step.dag_id for step in FLOW]
    while waiting:
        waiting = [dag_id for dag_id in waiting if not _parsed_since(api.dag(dag_id), since)]
        if waiting:
            if errors := api.import_errors():
                raise LocalError("Airflow cannot load a DAG file. " + "\n".join(errors))
            _pause(check, deadline, f"Airflow has not read {', '.join(waiting)}")


def _parsed_since(dag: Mapping[str, Any] | None, since: datetime) -> bool:
    parsed = (dag or {}).get("last_parsed_time")
    return bool(parsed) and datetime.fromisoformat(str(parsed)) >= since


def _pause(check: Callable[[], None], deadline: float, what: str) -> None:
    check()
    if time.monotonic() > deadline:
        raise LocalError(f"{what} in time; see the logs under REVIEWCLF_HOME/logs.")
    time.sleep(0.3)


def summary(result: Any) -> str:
    """Say a task's result in one line: a manifest's counts, else its short details; how many parts of a list."""
    if isinstance(result, list):
        parts = [item for item in result if isinstance(item, str)]
        return ", ".join(parts) if len(parts) == len(result) else f"{len(result)} parts"
    if not isinstance(result, dict):
        return ""
    skipped = (result.get("details") or {}).get("skipped")
    if isinstance(skipped, str):  # in full in the task's log and on the leaderboard
        return textwrap.shorten(skipped, 110, placeholder=" …")
    shown = result.get("counts") or {
        name: value for name, value in (result.get("details") or {}).items() if isinstance(value, str | int | float)
    }
    return " ".join(f"{name}={value}" for name, value in shown.items() if len(str(value)) <= 60)


def log_lines(path: Path, count: int = 8) -> str:
    """Read the last lines of a task's log that say something: without Airflow's own messages and stack frames.

    Parameters
    ----------
    path : Path
        A log file of Airflow 3: one JSON object per line; other lines are taken as they are.
    count : int
        How many lines at most.
    """
    try:
        raw = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"(no log at {path})"
    lines: list[str] = []
    for line in raw:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {"event": line}
        if not isinstance(entry, dict):
            continue
        errors = [f"{error.get('exc_type')}: {error.get('exc_value')}" for error in entry.get("error_detail") or []]
        logger = str(entry.get("logger", ""))
        if errors:
            lines += errors
        elif not logger.startswith("airflow.") and logger not in ("task", "reviewclf.alerts"):
            lines.append(str(entry.get("event", "")))
    return "\n".join(lines[-count:])


def _name(task: Mapping[str, Any]) -> str:
    if task["map_index"] < 0:
        return str(task["task_id"])
    return f"{task['task_id']} [{task.get('rendered_map_index') or task['map_index']}]"


def _seconds(task: Mapping[str, Any]) -> str:
    return f"{task['duration']:.1f} s" if task.get("duration") is not None else ""
