"""From figures to what stands on the page: rows, shades, bars and sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from reviewclf.evaluation import Evaluation
from reviewclf.monitoring.report import HealthReport
from reviewclf.pages.texts import Texts
from reviewclf.promotion.overview import Answer, Comparison, Figure, Overview, Version
from reviewclf.promotion.rules import GateReport, RuleResult

Kind = Literal["share", "milliseconds", "count", "seconds"]
Winner = Literal["champion", "other", "neither"]

PAGE_ROWS = 10
SHADES = 8

# Bar of an interval, in the units of its picture.
BAR_WIDTH, BAR_HEIGHT = 104.0, 26.0
_NAMED_LEVEL = 0.005


@dataclass(frozen=True)
class _Metric:
    text: str
    name: str
    kind: Kind
    better: Literal["more", "less", "neither"]
    digits: int = 3


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


@dataclass(frozen=True)
class Bar:
    """One interval in a picture of :data:`BAR_WIDTH` units: ends and value."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class MetricRow:
    """One metric of the champion and of the version beside it.

    Attributes
    ----------
    trend : str
        ``better``, ``worse`` or ``same`` for the version; empty where neither would be one.
    bars : tuple of Bar
        Both intervals on one scale; empty where there are none.
    """

    name: str
    champion: str
    champion_interval: str
    other: str
    other_interval: str
    difference: str
    trend: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class RuleRow:
    """One rule of the gate as it is shown."""

    name: str
    value: str
    limit: str
    n: str
    passed: bool
    note: str


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix; `shade` is 0 (nothing) to :data:`SHADES` (the whole row)."""

    count: int
    shade: int
    right: bool
    title: str


@dataclass(frozen=True)
class MatrixRow:
    """One class: its number in the matrix, how many reviews have it, where they went, and the share that was found."""

    number: int
    label: str
    support: int
    cells: tuple[Cell, ...]
    recall: str


@dataclass(frozen=True)
class AnswerRow:
    """A review on which two versions differ, with its text; None where gold does not hold it any more."""

    answer: Answer
    text: str | None
    champion_confidence: str
    other_confidence: str


@dataclass(frozen=True)
class AnswerPage:
    """One page of the reviews on which two versions differ, and how many there are by who is right."""

    rows: tuple[AnswerRow, ...]
    page: int
    pages: int
    winner: Winner | None
    counts: Mapping[str, int]


def percent(value: float | None, *, digits: int = 1) -> str:
    """A share as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, kind: Kind, texts: Texts, *, digits: int = 3) -> str:
    """A figure in its unit."""
    if value is None:
        return texts("not_measured")
    if kind == "milliseconds":
        return texts("milliseconds", value=f"{1000 * value:.1f}")
    if kind == "count":
        return f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")
    return f"{value:.1f}" if kind == "seconds" else f"{value:.{digits}f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    shown = f"{100 * value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "\N{MINUS SIGN}")


def metric_rows(champion: Version, other: Version, texts: Texts) -> list[MetricRow]:
    """The metrics side by side; those that neither version has are left out."""
    rows = []
    for metric in METRICS:
        ours, theirs = champion.figures.get(metric.name), other.figures.get(metric.name)
        if ours is None and theirs is None:
            continue
        rows.append(
            MetricRow(
                name=texts(metric.text),
                champion=number(_value(ours), metric.kind, texts),
                champion_interval=_interval(ours, texts),
                other=number(_value(theirs), metric.kind, texts),
                other_interval=_interval(theirs, texts),
                difference=_difference(metric, ours, theirs, texts),
                trend=_trend(metric, ours, theirs),
                bars=_bars(ours, theirs),
            )
        )
    return rows


def rule_rows(report: GateReport, texts: Texts) -> list[RuleRow]:
    """The gate's rules, failed ones first; a rule that the page has no words for keeps its own."""
    return [
        RuleRow(
            name=_rule_name(rule, texts),
            value=f"{rule.value:.4g}" if rule.value is not None else "–" if rule.passed else texts("unknown"),
            limit=f"{rule.comparison.replace('>=', '≥').replace('<=', '≤')} {rule.limit:g}",
            n=f"{rule.n}",
            passed=rule.passed,
            note=rule.note,
        )
        for rule in sorted(report.rules, key=lambda rule: rule.passed)
    ]


def _rule_name(rule: RuleResult, texts: Texts) -> str:
    measure, _, label = rule.rule.partition("/")
    if measure == "recall" and label:
        return texts("rule_recall", label=label)
    return texts.known(f"rule_{rule.rule}", rule.description)


def matrix_rows(evaluation: Evaluation, texts: Texts) -> list[MatrixRow]:
    """The confusion matrix, a row a class that occurs; shades are shares of the row."""
    rows = []
    for position, (label, counts) in enumerate(zip(evaluation.labels, evaluation.confusion, strict=True)):
        support = sum(counts)
        cells = tuple(
            Cell(
                count=count,
                shade=_shade(count, support),
                right=column == position,
                title=texts("matrix_cell", count=count, support=support, label=label, predicted=evaluation.labels[column]),
            )
            for column, count in enumerate(counts)
        )
        recall = percent(counts[position] / support, digits=0) if support else "–"
        rows.append(MatrixRow(number=position + 1, label=label, support=support, cells=cells, recall=recall))
    return rows


def answer_page(comparison: Comparison, gold: Mapping[str, str], *, winner: Winner | None, page: int) -> AnswerPage:
    """One page of the differing answers, joined with the gold texts.

    Parameters
    ----------
    gold : mapping
        Text by hash and by review id.
    winner : str, optional
        Only those on which this one is right.
    page : int
        From 1; one beyond the last is the last.
    """
    counts = {kind: sum(answer.winner == kind for answer in comparison.answers) for kind in ("champion", "other", "neither")}
    chosen = [answer for answer in comparison.answers if winner is None or answer.winner == winner]
    pages = max(1, -(-len(chosen) // PAGE_ROWS))
    page = min(max(page, 1), pages)
    rows = tuple(
        AnswerRow(
            answer=answer,
            text=gold.get(answer.text_hash, gold.get(answer.review_id)),
            champion_confidence=percent(answer.champion_confidence, digits=0),
            other_confidence=percent(answer.other_confidence, digits=0),
        )
        for answer in chosen[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    )
    return AnswerPage(rows=rows, page=page, pages=pages, winner=winner, counts=counts)


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


def choose_other(overview: Overview, wanted: str | None) -> Version | None:
    """The version beside the champion: the one asked for, else the challenger, the best other candidate, the previous one."""
    champion = overview.champion
    others = [version for version in overview.shown.values() if champion is None or version.version != champion.version]
    by_number = {version.version: version for version in others}
    if wanted in by_number:
        return by_number[wanted]
    if overview.challenger is not None:
        return by_number.get(overview.challenger.version)
    of_newest = [version for version in overview.candidates if version.version in by_number]
    return next(iter([*of_newest, *others]), None)


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _interval(figure: Figure | None, texts: Texts) -> str:
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return texts("interval", low=f"{figure.low:.3f}", high=f"{figure.high:.3f}")


def _difference(metric: _Metric, ours: Figure | None, theirs: Figure | None, texts: Texts) -> str:
    if ours is None or theirs is None:
        return ""
    change = theirs.value - ours.value
    if metric.kind == "milliseconds":
        return texts("milliseconds", value=_signed(1000 * change, 1))
    return _signed(change, {"share": 3, "seconds": 1}.get(metric.kind, 0))


def _signed(change: float, digits: int) -> str:
    shown = f"{change:+,.{digits}f}"
    if not float(shown.replace(",", "")):
        shown = shown[1:]
    return shown.replace(",", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def _trend(metric: _Metric, ours: Figure | None, theirs: Figure | None) -> str:
    if metric.better == "neither" or ours is None or theirs is None:
        return ""
    change = theirs.value - ours.value
    # What is rounded away in the cells is no difference; milliseconds vary by a tenth from one measurement to the next.
    least = 0.1 * ours.value if metric.kind == "milliseconds" else _NAMED_LEVEL / 10
    if abs(change) < least:
        return "same"
    return "better" if (change > 0) == (metric.better == "more") else "worse"


def _bars(ours: Figure | None, theirs: Figure | None) -> tuple[Bar, ...]:
    figures = [figure for figure in (ours, theirs) if figure is not None and figure.low is not None and figure.high is not None]
    if not figures:
        return ()
    low = min(figure.low for figure in figures if figure.low is not None)
    high = max(figure.high for figure in figures if figure.high is not None)
    room = max(high - low, 0.02)
    start, width = low - 0.1 * room, 1.2 * room

    def place(value: float | None) -> float:
        return round(BAR_WIDTH * ((value or 0.0) - start) / width, 1)

    return tuple(Bar(low=place(figure.low), value=place(figure.value), high=place(figure.high)) for figure in figures)


def _shade(count: int, support: int) -> int:
    if not count or not support:
        return 0
    return max(1, round(SHADES * count / support))


def pick_labels(evaluations: Sequence[Evaluation | None]) -> list[str]:
    """The classes of the first evaluation that there is."""
    return next((list(evaluation.labels) for evaluation in evaluations if evaluation is not None), [])
