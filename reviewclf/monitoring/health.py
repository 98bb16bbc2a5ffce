"""What a scoring found, as an MLflow run; and what the registry knows of the version that was looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reviewclf.monitoring.report import HealthReport
from reviewclf.monitoring.words import headline, report_text
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.tracking import Tracker

_KIND = "scoring"


def dataset_of(tracker: Tracker, version: str) -> str | None:
    """Digest of the dataset that a version was trained on; None where its tags do not say."""
    with tracker.errors(f"show version {version}"):
        tags = tracker.client.get_model_version(REGISTERED_MODEL, version).tags
    return tags.get("reviewclf.dataset")


def log_health(
    tracker: Tracker,
    report: HealthReport,
    *,
    key: str,
    counts: Mapping[str, int],
    disagreements: Mapping[str, Any] | None = None,
) -> str:
    """The run of one scoring, made at the first call.

    Parameters
    ----------
    report : HealthReport
    key : str
        Digest of the scoring.
    counts : mapping of str to int
        Reviews scored, abstained, compared, ...
    disagreements : mapping, optional
        Where champion and challenger differ; stored as an artifact.

    Returns
    -------
    str
        Id of the run.
    """
    if known := tracker.finished_run(key, _KIND):
        return known
    run_id = tracker.open_run(key, kind=_KIND, name=f"scoring-{key[:8]}", description=headline(report))
    tags = {"reviewclf.verdict": report.verdict, "reviewclf.champion": report.model_version}
    params = {"champion": report.model_version, "challenger": report.challenger or "none"}
    tracker.log(run_id, params=params, metrics=_metrics(report, counts), tags=tags)
    tracker.log_json(run_id, report.model_dump(mode="json"), "health/report.json")
    tracker.log_text(run_id, report_text(report), "health/report.txt")
    if disagreements:
        tracker.log_json(run_id, disagreements, "shadow/disagreements.json")
    tracker.finish(run_id)
    return run_id


def _metrics(report: HealthReport, counts: Mapping[str, int]) -> dict[str, float]:
    figures: dict[str, float | None] = {f"scoring/{name}": float(count) for name, count in counts.items()}
    figures.update(
        {
            "health/abstained_share": report.abstained_share,
            "health/estimated_f1": report.estimated_f1,
            "health/estimated_f1_low": report.estimated_f1_low,
            "health/estimated_f1_high": report.estimated_f1_high,
            "health/estimate_error": report.estimate_error,
            "health/alarms": float(len(report.alarms)),
            "shadow/disagreement_share": report.disagreement_share,
        }
    )
    for signal in report.signals:
        figures[f"drift/{signal.name}"] = signal.value
        figures[f"drift/{signal.name}/p_value"] = signal.p_value
    return {name: value for name, value in figures.items() if value is not None}
