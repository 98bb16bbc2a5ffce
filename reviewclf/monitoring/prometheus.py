"""A health report as Prometheus metrics: as text, and as a file for node-exporter's textfile collector."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest, write_to_textfile

from reviewclf.errors import StoreError
from reviewclf.monitoring.report import HealthReport
from reviewclf.outages import space_hint

_VERDICTS = ("healthy", "drift", "unknown")


def exposition(report: HealthReport) -> str:
    """The report in Prometheus' text format; figures that are not known are left out."""
    return generate_latest(_registry(report)).decode()


def write_exposition(report: HealthReport, path: Path) -> None:
    """Write :func:`exposition` to `path`, whole or not at all; the folder is created."""
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
    figures = {
        "abstained_share": (report.abstained_share, "Share of answers below the champion's thresholds."),
        "disagreement_share": (report.disagreement_share, "Share of reviews that the challenger answers otherwise."),
        "estimated_f1": (report.estimated_f1, "Weighted F1 against votes, estimated from confidence."),
        "estimated_f1_low": (report.estimated_f1_low, "Lower bound of its 95% interval."),
        "estimated_f1_high": (report.estimated_f1_high, "Upper bound of its 95% interval."),
        "estimate_error": (report.estimate_error, "Mean absolute error of the estimate on past nights."),
    }
    for name, (value, description) in figures.items():
        if value is not None:
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
