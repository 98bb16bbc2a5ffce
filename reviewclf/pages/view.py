"""From figures to what stands on the page: rows, shades, bars and sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from reviewclf.evaluation import Evaluation
from reviewclf.monitoring.report import HealthReport
from reviewclf.pages.texts import Texts
from reviewclf.promotion.overview import Comparison, JudgedVersion, Overview, Winner
from reviewclf.promotion.rules import GateReport, RuleResult

Kind = Literal["share", "milliseconds", "count", "seconds"]
# What a template shows, by name.
Row = dict[str, Any]

PAGE_ROWS = 10
SHADES = 8

# Bar of an interval, in the units of its picture.
BAR_WIDTH, BAR_HEIGHT = 104.0, 26.0
_LEAST_CHANGE = 0.0005


class _Metric(NamedTuple):
    text: str
    name: str
    kind: Kind
    better: Literal["more", "less", "neither"]


METRICS = (
    _Metric("gold_weighted_f1", "gold/weighted_f1", "share", "more"),
    _Metric("gold_macro_f1", "gold/macro_f1", "share", "more"),
    _Metric("gold_accuracy", "gold/accuracy", "share", "more"),
    _Metric("gold_precision", "gold/precision", "share", "more"),
    _Metric("gold_ece", "gold/ece", "share", "less"),
    _Metric("latency_p50", "latency/p50_seconds", "milliseconds", "less"),
    _Metric("latency_p95", "latency/p95_seconds", "milliseconds", "less"),
    _Metric("gold_rows", "gold/rows", "count", "neither"),
    _Metric("validation_f1", "validation/weighted_f1", "share", "more"),
    _Metric("train_rows", "train/rows", "count", "neither"),
    _Metric("train_seconds", "train/seconds", "seconds", "neither"),
)


def percent(value: float | None, *, digits: int = 1) -> str:
    """A share as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, kind: Kind, texts: Texts) -> str:
    """A figure in its unit."""
    if value is None:
        return texts("not_measured")
    if kind == "milliseconds":
        return texts("milliseconds", value=f"{1000 * value:.1f}")
    if kind == "count":
        return f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")
    return f"{value:.1f}" if kind == "seconds" else f"{value:.3f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _signed(100 * value, 1)


def metric_rows(champion: JudgedVersion, other: JudgedVersion, texts: Texts) -> list[Row]:
    """The metrics side by side, as they are shown; those that neither version has are left out.

    Each row has a ``name``; ``champion`` and ``other`` with their ``..._interval``; the ``difference``; its ``trend``
    (``better``, ``worse`` or ``same`` for the other, empty where neither would be one); and ``bars``, both intervals on one
    scale of :data:`BAR_WIDTH` units.
    """
    rows: list[Row] = []
    for metric in METRICS:
        ours, theirs = champion.metrics.get(metric.name), other.metrics.get(metric.name)
        if ours is None and theirs is None:
            continue
        row = {"name": texts(metric.text), "difference": "", "trend": "", "bars": _bars(metric, champion, other)}
        for role, version, value in (("champion", champion, ours), ("other", other, theirs)):
            row |= {role: number(value, metric.kind, texts), f"{role}_interval": _interval(version, metric, texts)}
        if ours is not None and theirs is not None:
            row |= {"difference": _difference(metric, theirs - ours, texts), "trend": _trend(metric, ours, theirs)}
        rows.append(row)
    return rows


def rule_rows(report: GateReport, texts: Texts) -> list[Row]:
    """The gate's rules, failed ones first; a rule that the page has no words for keeps its own."""
    return [
        {
            "name": _rule_name(rule, texts),
            "value": f"{rule.value:.4g}" if rule.value is not None else "–" if rule.passed else texts("unknown"),
            "limit": f"{rule.comparison.replace('>=', '≥').replace('<=', '≤')} {rule.limit:g}",
            "passed": rule.passed,
            "note": rule.note,
        }
        for rule in sorted(report.rules, key=lambda rule: rule.passed)
    ]


def _rule_name(rule: RuleResult, texts: Texts) -> str:
    measure, _, label = rule.rule.partition("/")
    if measure == "recall" and label:
        return texts("rule_recall", label=label)
    return texts.known(f"rule_{rule.rule}", rule.description)


def matrix_rows(evaluation: Evaluation, texts: Texts) -> list[Row]:
    """The confusion matrix, a row a class: its ``number``, ``label``, ``cells``, and ``recall``, the share that was found.

    The ``shade`` of a cell is 0 (nothing) to :data:`SHADES` (the whole row).
    """
    rows: list[Row] = []
    for position, (label, counts) in enumerate(zip(evaluation.labels, evaluation.confusion, strict=True)):
        support = sum(counts)
        cells = [
            {
                "count": count,
                "shade": max(1, round(SHADES * count / support)) if count else 0,
                "right": column == position,
                "title": texts("matrix_cell", count=count, support=support, label=label, predicted=evaluation.labels[column]),
            }
            for column, count in enumerate(counts)
        ]
        recall = percent(counts[position] / support if support else None, digits=0)
        rows.append({"number": position + 1, "label": label, "cells": cells, "recall": recall})
    return rows


def answer_page(comparison: Comparison, gold: Mapping[str, str], *, winner: Winner | None, page: int) -> Row:
    """One page of the differing answers, joined with the gold texts.

    Parameters
    ----------
    gold : mapping
        Text by hash and by review id.
    winner : str, optional
        Only those on which this one is right.
    page : int
        From 1; one beyond the last is the last.

    Returns
    -------
    dict
        ``rows`` of the page, each an ``answer`` and its ``text`` (None where gold does not hold it any more); ``page`` of
        ``pages``; ``winner``; ``counts`` of answers by who is right.
    """
    counts = {kind: sum(answer.winner == kind for answer in comparison.answers) for kind in ("champion", "other", "neither")}
    chosen = [answer for answer in comparison.answers if winner is None or answer.winner == winner]
    pages = max(1, -(-len(chosen) // PAGE_ROWS))
    page = min(max(page, 1), pages)
    rows = [
        {"answer": answer, "text": gold.get(answer.champion.text_hash, gold.get(answer.champion.review_id))}
        for answer in chosen[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    ]
    return {"rows": rows, "page": page, "pages": pages, "winner": winner, "counts": counts}


def headline(overview: Overview, challenged: Comparison | None, health: HealthReport | None, texts: Texts) -> str:
    """The state of things in one breath.

    Parameters
    ----------
    challenged : Comparison, optional
        The challenger beside the champion.
    """
    if overview.champion is None and not overview.shown:
        return texts("head_empty")
    champion, challenger = overview.champion, overview.challenger
    said = [
        texts("head_none")
        if champion is None
        else texts("head_champion", version=champion.version, candidate=champion.candidate)
    ]
    if challenger is None:
        said.append(texts("head_quiet"))
    else:
        waits = texts("head_waiting", version=challenger.version, candidate=challenger.candidate)
        difference = challenged.difference if challenged else None
        if difference is None:
            said.append(f"{waits}: {texts('head_alone')}" if champion else f"{waits}.")
        else:
            bounds = {"low": points(difference.low), "high": points(difference.high)}
            said.append(f"{waits}: {texts('head_difference', difference=points(difference.value), **bounds)}")
    if health is not None and health.verdict == "drift":
        said.append(texts("head_drift"))
    return " ".join(said)


def choose_other(overview: Overview, wanted: str | None) -> JudgedVersion | None:
    """The version beside the champion: the one asked for, else the challenger, the best other candidate, the previous one."""
    champion, challenger = overview.champion, overview.challenger
    others = {number: version for number, version in overview.shown.items() if champion is None or number != champion.version}
    if wanted in others:
        return others[wanted]
    if challenger is not None:
        return others.get(challenger.version)
    of_newest = [version for version in overview.candidates if version.version in others]
    return next(iter([*of_newest, *others.values()]), None)


def _interval(version: JudgedVersion, metric: _Metric, texts: Texts) -> str:
    bounds = version.interval(metric.name)
    return "" if bounds is None else texts("interval", low=f"{bounds[0]:.3f}", high=f"{bounds[1]:.3f}")


def _difference(metric: _Metric, change: float, texts: Texts) -> str:
    if metric.kind == "milliseconds":
        return texts("milliseconds", value=_signed(1000 * change, 1))
    return _signed(change, {"share": 3, "seconds": 1}.get(metric.kind, 0))


def _signed(change: float, digits: int) -> str:
    shown = f"{change:+,.{digits}f}"
    if not float(shown.replace(",", "")):
        shown = shown[1:]
    return shown.replace(",", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def _trend(metric: _Metric, ours: float, theirs: float) -> str:
    if metric.better == "neither":
        return ""
    change = theirs - ours
    # What is rounded away in the cells is no difference; milliseconds vary by a tenth from one measurement to the next.
    least = 0.1 * ours if metric.kind == "milliseconds" else _LEAST_CHANGE
    if abs(change) < least:
        return "same"
    return "better" if (change > 0) == (metric.better == "more") else "worse"


def _bars(metric: _Metric, *versions: JudgedVersion) -> list[Row]:
    """The intervals that there are, each with its ``low`` and ``high`` end and its ``value``."""
    found = [(version.interval(metric.name), version.metrics.get(metric.name)) for version in versions]
    bars = [
        {"low": bounds[0], "value": value, "high": bounds[1]}
        for bounds, value in found
        if bounds is not None and value is not None
    ]
    low = min((bar["low"] for bar in bars), default=0.0)
    room = max(max((bar["high"] for bar in bars), default=0.0) - low, 0.02)
    return [{name: round(BAR_WIDTH * (end - low + 0.1 * room) / (1.2 * room), 1) for name, end in bar.items()} for bar in bars]
