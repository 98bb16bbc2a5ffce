"""One night on the platform: ingest, label, retrain through Airflow, with faults at exact points, and what it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import psycopg2
import pytest

from reviewclf.local.processes import LocalError
from reviewclf.local.progress import log_lines
from reviewclf.store import Store
from tests.team.platform import NIGHT, Platform

AWAY_SECONDS = 30.0
_POLL_SECONDS = 0.5
_ENDED = ("success", "skipped")


@dataclass
class Fault:
    """Something that goes wrong once a task has come to a point of its work.

    Attributes
    ----------
    point : str
        Where the task is stopped; see ``hooks/sitecustomize.py``.
    task : str
        ``dag_id.task_id`` of the task that is struck.
    kind : str
        ``worker``: the worker is killed with the task in hand; ``scheduler``: killed, and the task goes on; otherwise the
        service of that name goes away for half a minute, and the task goes on into it.
    """

    point: str
    task: str
    kind: Literal["worker", "scheduler", "postgres", "redis", "s3", "mlflow"] = "worker"
    struck: datetime | None = None
    seconds: float | None = None
    outcome: str = ""
    _back: float = field(default=0.0, repr=False)

    def watch(self, platform: Platform) -> None:
        """Strike when the task has come to the point; bring back what has been away for long enough."""
        if self.struck is None:
            pid = platform.held(self.point)
            if pid is not None:
                self._strike(platform, pid)
        elif self._back and time.monotonic() >= self._back:
            self._back = 0.0
            platform.servers[self.kind].start()

    def _strike(self, platform: Platform, pid: int) -> None:
        self.struck = datetime.now(UTC)
        if self.kind == "worker":
            platform.worker_of(pid).kill()
        elif self.kind == "scheduler":
            platform.servers["scheduler"].kill()
        else:
            server = platform.servers[self.kind]
            server.wanted = False
            server.kill()
            self._back = time.monotonic() + AWAY_SECONDS
        platform.release(self.point)

    def settle(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Note how long it took until the struck task was done, and in which attempt."""
        assert self.struck is not None
        mine = [task for task in tasks if f"{task['dag_id']}.{task['task_id']}" == self.task]
        ends = [datetime.fromisoformat(task["end_date"]) for task in mine]
        self.seconds = (max(ends) - self.struck).total_seconds()
        attempts = max(task["try_number"] for task in mine)
        self.outcome = f"done in attempt {attempts}" if attempts > 1 else "done without another attempt"


@dataclass(frozen=True)
class Night:
    """A night that went through.

    Attributes
    ----------
    runs : dict of str to str
        Run id by DAG.
    tasks : list of dict
        Task instances of all runs, as Airflow's API shows them.
    since : datetime
        When it began.
    seconds : float
    """

    runs: dict[str, str]
    tasks: list[dict[str, Any]]
    since: datetime
    seconds: float

    def states(self, task: str) -> list[str]:
        """States of the instances of ``dag_id.task_id``."""
        return [item["state"] for item in self.tasks if f"{item['dag_id']}.{item['task_id']}" == task]


def run_night(
    platform: Platform,
    *,
    faults: Sequence[Fault] = (),
    start: Callable[[], str] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    timeout: float = 900.0,
) -> Night:
    """Trigger the ingest and wait until the retrain that follows from it has ended.

    Parameters
    ----------
    faults : sequence of Fault
        Struck as their points come by; every one has to be.
    start : callable, optional
        Starts the ingest and returns the run's id; default: a trigger.
    meanwhile : callable
        Called again and again while waiting.
    timeout : float
        Seconds without any fault; each fault adds its own time.
    """
    for fault in faults:
        platform.arm(fault.point)
    since, begun = datetime.now(UTC), time.monotonic()
    limit = begun + timeout + 150 * len(faults)
    runs = {NIGHT[0].dag_id: (start or (lambda: platform.api.trigger(NIGHT[0].dag_id)))()}
    try:
        for step, following in zip(NIGHT, [*NIGHT[1:], None], strict=True):
            while (state := _state(platform, step.dag_id, runs)) != "success":
                _pause(platform, faults, meanwhile, limit, f"{step.dag_id} is {state}", failed=state == "failed")
            while following is not None and following.dag_id not in runs:
                if fresh := _patiently(partial(_following, platform, following.dag_id, since), []):
                    runs[following.dag_id] = fresh[-1]["dag_run_id"]
                else:
                    _pause(platform, faults, meanwhile, limit, f"no run of {following.dag_id}")
        tasks = [task for dag_id, run_id in runs.items() for task in platform.api.tasks(dag_id, run_id)]
        night = Night(runs, tasks, since, time.monotonic() - begun)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_told(platform, runs)}") from None
    finally:
        for fault in faults:
            platform.release(fault.point)
    for fault in faults:
        assert fault.struck is not None, f"no task came by {fault.point}"
        fault.settle(night.tasks)
    return night


def _following(platform: Platform, dag_id: str, since: datetime) -> list[dict[str, Any]]:
    """Runs that an asset has started since then, the latest first."""
    found = platform.api.runs(dag_id, run_type="asset_triggered")
    return [run for run in found if datetime.fromisoformat(run["run_after"]) >= since]


def _state(platform: Platform, dag_id: str, runs: Mapping[str, str]) -> str:
    return str(_patiently(lambda: platform.api.run(dag_id, runs[dag_id])["state"], "not known"))


def _patiently(ask: Callable[[], Any], otherwise: Any) -> Any:
    """An answer of Airflow; the API server may be without its database for the moment."""
    try:
        return ask()
    except LocalError:
        return otherwise


def _pause(
    platform: Platform,
    faults: Sequence[Fault],
    meanwhile: Callable[[], None],
    limit: float,
    what: str,
    *,
    failed: bool = False,
) -> None:
    for fault in faults:
        fault.watch(platform)
    meanwhile()
    if failed or time.monotonic() > limit:
        raise AssertionError(f"the night did not end: {what}")
    time.sleep(_POLL_SECONDS)


def _told(platform: Platform, runs: Mapping[str, str]) -> str:
    lines = []
    for dag_id, run_id in runs.items():
        for task in _patiently(lambda dag_id=dag_id, run_id=run_id: platform.api.tasks(dag_id, run_id), []):
            lines.append(f"{dag_id}.{task['task_id']}[{task['map_index']}] {task['state']}, attempt {task['try_number']}")
            if task["state"] in ("failed", "up_for_retry"):
                folder = platform.folder / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
                for log in sorted(folder.glob(f"task_id={task['task_id']}/**/*.log")):
                    lines.append(f"{log}:\n{log_lines(log)}")
    return "\n".join([*lines, platform.tails()])


# -- what a night leaves behind ----------------------------------------------------------------------------------------


@contextmanager
def as_pipeline(platform: Platform) -> Iterator[None]:
    """Speak to store and MLflow with the pipeline's credentials."""
    env = platform.worker_environment("observer")
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", *platform.s3.variables)
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, env[name])
        yield


def left_behind(platform: Platform, store: str, night: Night) -> dict[str, Any]:
    """Everything about a night that a fault must not change: tables, runs, figures, versions, aliases, events."""
    with as_pipeline(platform):
        return {**_in_store(store), **_in_mlflow(platform), "events": _events(platform, night), "runs": _runs(platform, night)}


def _in_store(uri: str) -> dict[str, Any]:
    store = Store(uri)
    snapshot = store.snapshot()
    rows = {table: sum(part.num_rows for part in store.iter_tables(snapshot.keys(table))) for table in snapshot.tables}
    datasets = [manifest.digest for _, manifest in store.manifests("dataset")]
    unseen = ("train", "evaluate", "gate", "promote")
    stages = {stage: len(store.manifests(stage)) for stage in unseen}
    return {"snapshot": snapshot.model_dump(), "rows": rows, "datasets": datasets, "stages": stages}


def _in_mlflow(platform: Platform) -> dict[str, Any]:
    from reviewclf.registry.model import aliases, versions
    from reviewclf.registry.tracking import KIND_TAG, Tracker

    tracker = Tracker(platform.tracking_uri)
    runs = tracker.find_runs({})
    # What is measured in seconds differs from one run to the next.
    figures = {
        run.data.tags["reviewclf.candidate"]: {
            name: value for name, value in sorted(run.data.metrics.items()) if name.startswith(("gold/", "validation/"))
        }
        for run in runs
        if run.data.tags.get(KIND_TAG) == "candidate"
    }
    kinds = sorted((run.data.tags.get(KIND_TAG, ""), run.info.status) for run in runs)
    known = versions(tracker)
    named = {version: alias for alias, version in aliases(tracker).items()}
    registry = sorted(
        (version.tags["reviewclf.candidate"], version.tags["reviewclf.gate"], named.get(str(version.version), ""))
        for version in known
    )
    promoted = sum("reviewclf.promoted_at" in version.tags for version in known)
    return {"mlflow": kinds, "figures": figures, "registry": registry, "promoted": promoted}


def _events(platform: Platform, night: Night) -> dict[str, int]:
    """How often each asset was announced."""
    question = (
        "SELECT asset.name, count(*) FROM asset_event JOIN asset ON asset.id = asset_event.asset_id "
        "WHERE asset_event.timestamp >= %s GROUP BY asset.name"
    )
    connection = psycopg2.connect(platform.postgres.address("airflow"))
    with connection.cursor() as cursor:
        cursor.execute(question, (night.since,))
        found = {str(name): int(count) for name, count in cursor.fetchall()}
    connection.close()
    return {name: found.get(name, 0) for name in ("reviews_clean", "reviews_labelled", "review_classifier")}


def _runs(platform: Platform, night: Night) -> dict[str, list[str]]:
    """States of the runs that followed from the night's assets."""
    return {step.dag_id: [run["state"] for run in _following(platform, step.dag_id, night.since)] for step in NIGHT[1:]}


def clear_mlflow(platform: Platform, name: str) -> None:
    """Put what is in MLflow aside under another name, so that the next night begins with nothing."""
    from reviewclf.registry import EXPERIMENT, REGISTERED_MODEL
    from reviewclf.registry.tracking import Tracker

    with as_pipeline(platform):
        client = Tracker(platform.tracking_uri).client
        client.rename_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id, f"{EXPERIMENT}-{name}")
        client.rename_registered_model(REGISTERED_MODEL, f"{REGISTERED_MODEL}-{name}")
