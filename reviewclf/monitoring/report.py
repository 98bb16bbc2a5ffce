"""The health of production after a scoring: one value that pages, metrics and alerts are made from, and its words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel


class Signal(BaseModel, frozen=True, extra="forbid"):
    """One thing that is watched.

    Attributes
    ----------
    name : str
        Stable id, such as ``input/length`` or ``prediction/class_shares``.
    group : str
        What it says something about: the input, the predictions, the confidence, or the labels.
    description : str
        What is measured, in words.
    value, limit : float or None
        Size of the change and the size from which it matters, in the signal's own unit; None where it cannot be measured.
    p_value : float or None
        Of the test behind it, after correction for looking at many things; None where there is no test.
    n, reference_n : int
        Reviews compared, and reviews they were compared with.
    alarmed : bool
        Whether it is worth waking somebody.
    examples : tuple of str
        Reviews (personal data removed) that show what moved; empty unless alarmed.
    """

    name: str
    group: Literal["input", "prediction", "confidence", "label"]
    description: str
    value: float | None
    limit: float | None = None
    p_value: float | None = None
    n: int
    reference_n: int
    alarmed: bool = False
    note: str = ""
    examples: tuple[str, ...] = ()


class HealthReport(BaseModel, frozen=True, extra="forbid"):
    """Health of production after one scoring.

    Attributes
    ----------
    at : datetime
        When it was made, UTC.
    model_version : str
        Version of the champion that was looked at.
    n : int
        Reviews scored.
    verdict : str
        ``healthy``; ``drift`` when a signal alarmed; ``unknown`` where there was too little to compare.
    abstained_share : float or None
        Share of the answers below the champion's thresholds.
    disagreement_share : float or None
        Share of the reviews on which the challenger answers otherwise; None without a challenger.
    estimated_f1, estimated_f1_low, estimated_f1_high : float or None
        Weighted F1 estimated from confidence alone, and its interval.
    estimate_error : float or None
        Mean absolute error of such estimates on past nights whose labels came in later.
    estimate_nights : int
        How many nights that error was measured on.
    challenger : str or None
        Version that answered in the champion's shadow.
    note : str
        Why nothing was compared, or else what to know.
    """

    at: datetime
    model_version: str
    n: int
    verdict: Literal["healthy", "drift", "unknown"]
    signals: tuple[Signal, ...]
    abstained_share: float | None = None
    disagreement_share: float | None = None
    estimated_f1: float | None = None
    estimated_f1_low: float | None = None
    estimated_f1_high: float | None = None
    estimate_error: float | None = None
    estimate_nights: int = 0
    challenger: str | None = None
    note: str = ""

    @property
    def alarms(self) -> tuple[Signal, ...]:
        """The signals that alarmed."""
        return tuple(signal for signal in self.signals if signal.alarmed)


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
    lines += ["", f"{'signal':<26} {'change':>8} {'limit':>7} {'p':>8}"] if report.signals else []
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
