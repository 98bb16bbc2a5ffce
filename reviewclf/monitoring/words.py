"""A health report in words: for the command line, for alerts, for MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from reviewclf.monitoring.report import HealthReport, Signal


def headline(report: HealthReport) -> str:
    """One line: the verdict, and what moved or why nothing could be said."""
    if report.verdict == "drift":
        said = "drift: " + ", ".join(signal.name for signal in report.alarms)
    else:
        said = report.verdict + (f": {report.note}" if report.note else "")
    return f"{said} (version {report.model_version}, {report.n} reviews)"


def report_text(report: HealthReport) -> str:
    """The whole report as plain text, a line a signal."""
    lines = [f"{report.at:%Y-%m-%d %H:%M} UTC  {headline(report)}", ""]
    lines += [f"{name:<22} {said}" for name, said in _figures(report)]
    if report.signals:
        lines += ["", f"{'signal':<26} {'change':>8} {'limit':>7} {'p':>8}"]
    for signal in report.signals:
        change, limit, p_value = (_number(value) for value in (signal.value, signal.limit, signal.p_value))
        mark = "  ALARM" if signal.alarmed else ""
        lines.append(f"{signal.name:<26} {change:>8} {limit:>7} {p_value:>8}{mark}  {signal.note}")
        lines += [f"    «{example}»" for example in signal.examples]
    return "\n".join(lines)


def alarm_text(signals: Sequence[Signal]) -> str:
    """What moved, by how much, with examples."""
    blocks = []
    for signal in signals:
        lines = [
            f"{signal.name}: {signal.note}",
            f"  {signal.description}: {_number(signal.value)} (limit {_number(signal.limit)}), p {_number(signal.p_value)}, "
            f"{signal.n} reviews against {signal.reference_n}",
            *(f"  «{example}»" for example in signal.examples),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _figures(report: HealthReport) -> list[tuple[str, str]]:
    figures = []
    if report.estimated_f1 is not None:
        said = f"{report.estimated_f1:.3f} (95% interval {report.estimated_f1_low:.3f} to {report.estimated_f1_high:.3f})"
        if report.estimate_error is not None:
            said += f"; off by {report.estimate_error:.3f} on average on {report.estimate_nights} past night(s)"
        figures.append(("estimated weighted F1", said + ", against votes"))
    if report.abstained_share is not None:
        figures.append(("abstained", f"{report.abstained_share:.1%}"))
    if report.disagreement_share is not None:
        figures.append(("challenger disagrees", f"{report.disagreement_share:.1%} (version {report.challenger})"))
    return figures


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.0e}"
