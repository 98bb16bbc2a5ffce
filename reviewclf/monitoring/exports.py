"""A health report as an MLflow run, and as a file for node-exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from reviewclf.errors import StoreError
from reviewclf.monitoring.report import HealthReport, headline, report_text
from reviewclf.outages import space_hint

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

_KIND = "scoring"
_VERDICTS = ("healthy", "drift", "unknown")
# Fields of a report that are metrics, and what they are.
_FIGURES = {
    "abstained_share": "Share of answers below the champion's thresholds.",
    "disagreement_share": "Share of reviews that the challenger answers otherwise.",
    "estimated_f1": "Weighted F1 against votes, estimated from confidence.",
    "estimated_f1_low": "Lower bound of its 95% interval.",
    "estimated_f1_high": "Upper bound of its 95% interval.",
    "estimate_error": "Mean absolute error of the estimate on past nights.",
}


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
    for name in _FIGURES:
        key = f"shadow/{name}" if name == "disagreement_share" else f"health/{name}"
        figures[key] = getattr(report, name)
    figures["health/alarms"] = float(len(report.alarms))
    for signal in report.signals:
        figures[f"drift/{signal.name}"] = signal.value
        figures[f"drift/{signal.name}/p_value"] = signal.p_value
    return {name: value for name, value in figures.items() if value is not None}


def write_prometheus(report: HealthReport, path: Path) -> None:
    """Write the report in Prometheus' text format, whole or not at all; figures that are not known are left out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), _registry(report))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}{space_hint(error)}") from error


def _registry(report: HealthReport) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"reviewclf_health_{name}", description, labels, registry=registry)

    gauge("timestamp_seconds", "When production was last looked at.").set(report.at.timestamp())
    gauge("reviews", "Reviews in the last scoring.").set(report.n)
    gauge("model_info", "Version of the champion that was looked at.", "version").labels(report.model_version).set(1)
    verdict = gauge("verdict", "1 for the verdict of the last look.", "verdict")
    for name in _VERDICTS:
        verdict.labels(name).set(float(name == report.verdict))
    for name, description in _FIGURES.items():
        if (value := getattr(report, name)) is not None:
            gauge(name, description).set(value)
    change = gauge("signal", "Size of a change, in the signal's own unit.", "signal")
    limit = gauge("signal_limit", "Size from which a change matters.", "signal")
    p_value = gauge("signal_p_value", "Its p-value, corrected for all looks of the night.", "signal")
    alarm = gauge("alarm", "1 where a signal alarmed.", "signal")
    for signal in report.signals:
        alarm.labels(signal.name).set(float(signal.alarmed))
        for metric, number in ((change, signal.value), (limit, signal.limit), (p_value, signal.p_value)):
            if number is not None:
                metric.labels(signal.name).set(number)
    return registry
