"""What the DAGs of reviews share: the assets between them, their task defaults and how a task calls a stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

# Airflow's type stubs (3.3) lack these three.
from airflow.sdk import (  # type: ignore[attr-defined]
    Asset,
    AsyncCallback,
    BaseHook,
    CronTriggerTimetable,
    DeadlineAlert,
    DeadlineReference,
    get_current_context,
)
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException, AirflowSkipException
from pydantic import JsonValue

from reviewclf.errors import PASSING_ERRORS, ReviewclfError, SettingsError
from reviewclf.logs import quieten_libraries
from reviewclf.manifest import Manifest
from reviewclf.orchestration.alerts import report_deadline, report_failure, send_alert
from reviewclf.orchestration.messages import listed
from reviewclf.settings import Settings, load_settings

REVIEWS_CLEAN = Asset("reviews_clean")
REVIEWS_LABELLED = Asset("reviews_labelled")
REVIEW_CLASSIFIER = Asset("review_classifier")
REVIEWS_SCORED = Asset("reviews_scored")
REVIEWS_DRIFTED = Asset("reviews_drifted")

TIMEZONE = "Europe/Moscow"

# REVIEWCLF_SOURCE=airflow://reviews_db reads the database of the connection `reviews_db`.
AIRFLOW_CONNECTION = "airflow://"
INGEST_STAGES = "reviewclf.stages.ingest"

TASK_DEFAULTS: dict[str, Any] = {
    "owner": "reviewclf",
    # After 15 s, 45 s, 2, 7 and 15 minutes: a service that is away for a quarter of an hour does not cost the night.
    "retries": 5,
    "retry_delay": timedelta(seconds=15),
    "retry_exponential_backoff": 3,
    "max_retry_delay": timedelta(minutes=15),
    "execution_timeout": timedelta(hours=1),
    "on_failure_callback": report_failure,
}


def nightly(cron: str) -> CronTriggerTimetable:
    """Timetable in Moscow time that waits for the next night when Airflow sees the DAG for the first time.

    Airflow takes False, its default, for a tenth of the interval, and a DAG that is new at half past two would run at once.
    """
    return CronTriggerTimetable(cron, timezone=TIMEZONE, run_immediately=timedelta(seconds=1))


def done_within(hours: float | None) -> DeadlineAlert | None:
    """Deadline of a run: people are told when it is not done so many hours after it was queued. None: no deadline.

    Counted from the queue, not from the logical date: runs that an asset or a person started have none.
    """
    if hours is None:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=hours),
        callback=AsyncCallback(report_deadline, kwargs={"hours": hours}),
        name="done in time",
    )


def run_stage(stage: Callable[..., Manifest], /, *manifests: Any, **arguments: Any) -> Any:
    """Call a stage with the settings of this worker and the manifests of the stages before it.

    Parameters
    ----------
    stage : callable
        A function of :mod:`reviewclf.stages`; its first argument is the settings.
    *manifests : dict or sequence of dict
        Manifests as they came through XCom, or the results of a mapped task.
    **arguments
        Handed on as they are.

    Returns
    -------
    dict
        The stage's manifest as JSON: small enough for XCom, data stays in the store.

    Raises
    ------
    AirflowFailException
        On an error that trying again cannot mend (data, settings, labels, gate): the task fails at once.
    """
    log = logging.getLogger(stage.__module__)
    quieten_libraries()
    try:
        manifest = stage(_settings(stage), *(_rebuilt(value) for value in manifests), **arguments)
    except PASSING_ERRORS:
        raise
    except ReviewclfError as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from None
    counts = ", ".join(f"{name}={count}" for name, count in manifest.counts.items())
    log.info("%s %s: %s", manifest.stage, manifest.digest, counts or "done")
    return manifest.model_dump(mode="json")


def _settings(stage: Callable[..., Manifest]) -> Settings:
    """The settings of this worker; a source that names an Airflow connection becomes that connection's address.

    Raises
    ------
    SettingsError
        There is no such connection, or it is none of a database.
    """
    from reviewclf.data.sources.connections import connection_url

    settings = load_settings()
    # Only the stages that read the source need it: a connection that is not there is no reason to stop the others.
    if not settings.source.startswith(AIRFLOW_CONNECTION) or stage.__module__ != INGEST_STAGES:
        return settings
    conn_id = settings.source.removeprefix(AIRFLOW_CONNECTION).strip("/")
    name = f"REVIEWCLF_SOURCE={AIRFLOW_CONNECTION}{conn_id}"
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        how = f"make one in Airflow under Admin, Connections, or with `airflow connections add {conn_id or 'ID'}`"
        raise SettingsError(f"{name}: there is no such connection; {how}") from error
    parts = {part: getattr(connection, part) for part in ("host", "port", "login", "password", "schema")}
    extra = connection.extra_dejson
    url = connection_url(name, kind=connection.conn_type, **parts, extra=extra if isinstance(extra, dict) else None)
    return settings.model_copy(update={"source": url})


def announce(asset: Asset, manifest: Any, *, changed: bool, unchanged: str) -> JsonValue:
    """Let the DAGs that wait for an asset know that it is new; end as skipped when it is not.

    Parameters
    ----------
    asset : Asset
        One of the task's outlets.
    manifest : dict
        What the task hands on; the asset's event carries its digest and counts.
    changed : bool
        Whether there is anything new. If not, no event is emitted, so nothing downstream runs for nothing.
    unchanged : str
        Why the task ends as skipped, for its log.
    """
    context = get_current_context()
    if not changed:
        # A skipped task returns nothing, yet people (and `reviewclf up`) want to see its counts.
        context["ti"].xcom_push(key="return_value", value=manifest)
        raise AirflowSkipException(unchanged)
    context["outlet_events"][asset].extra = {"digest": manifest["digest"], **manifest["counts"]}
    return manifest  # type: ignore[no-any-return]


def announce_champion(promoted: Any) -> JsonValue:
    """Let everybody know of a new champion; end as skipped, with the reason, where there is none."""
    alert_of_promotion(promoted)
    details = promoted["details"]
    return announce(
        REVIEW_CLASSIFIER, promoted, changed=bool(details["promoted"]), unchanged=f"nothing promoted: {details['reason']}"
    )


def alert_of_promotion(promoted: Any) -> None:
    """Tell people that production follows another version now; nothing when it does not."""
    details = promoted["details"]
    if details["promoted"]:
        was = f", was {details['previous']}" if details["previous"] else ""
        send_alert("promotion", f"Version {details['champion']} is champion now{was}", f"Reason: {details['reason']}")


def alert_if_refused(gated: Any) -> None:
    """Tell people that no candidate passed the gate, or that what passed was decided against before, and why."""
    details = gated["details"]
    if details["challenger"] is not None:
        return
    verdicts = details["verdicts"]
    reasons = [f"{name} (version {verdict['version']}): {verdict['reason']}" for name, verdict in sorted(verdicts.items())]
    passed = any(verdict["verdict"] == "passed" for verdict in verdicts.values())
    subject = "No challenger from this retrain" if passed else "No candidate passed the gate"
    more = [details[name] for name in ("barred", "gate_report") if details.get(name)]
    send_alert("gate", subject, listed([*reasons, *more]))


def triggered_by(context: Any) -> str:
    """Who triggered this run by hand, and which run it is."""
    run = context["dag_run"]
    return f"{getattr(run, 'triggering_user_name', None) or 'unknown'} (airflow run {context['run_id']})"


def skip_if_told(manifest: Any) -> JsonValue:
    """Hand a stage's answer on; end as skipped where it says that its work could not be done here, as failed where it failed.

    Raises
    ------
    AirflowSkipException
        The manifest says why it was skipped.
    AirflowFailException
        It says that the work has failed; another attempt would not end otherwise.
    """
    reason = manifest["details"].get("skipped")
    if reason:
        get_current_context()["ti"].xcom_push(key="return_value", value=manifest)
        raise AirflowFailException(reason) if manifest["details"].get("failed") else AirflowSkipException(reason)
    return manifest  # type: ignore[no-any-return]


def has_attempts_left() -> bool:
    """Whether Airflow tries this task again when it fails now."""
    ti: Any = get_current_context()["ti"]
    return bool(ti.try_number <= ti.max_tries)


def alert_if_not_written(reasons: Sequence[str]) -> None:
    """Tell people that a retrain goes on without reviews written for thin classes; nothing when they were written."""
    if reasons:
        send_alert("failure", "Synthetic reviews could not be written; the retrain goes on without them", listed(reasons))


def _rebuilt(value: Any) -> Any:
    return Manifest.model_validate(value) if isinstance(value, dict) else [Manifest.model_validate(item) for item in value]
