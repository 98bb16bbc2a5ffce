"""What a night has to say at its end: as one JSON object, or as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_STYLES = {"done": "green", "skipped": "yellow", "failed": "red"}


class TaskReport(BaseModel):
    """A stage that was called: its task's name in the DAG, how long it took, and what it counted."""

    task: str
    seconds: float
    counts: dict[str, int] = {}


class StepReport(BaseModel):
    """A DAG's part of the night.

    Attributes
    ----------
    outcome : str
        ``done``; ``skipped`` where there was nothing to do; ``failed`` where the DAG would fail.
    reason : str
        Why it was skipped or has failed.
    """

    step: str
    outcome: Literal["done", "skipped", "failed"] = "done"
    reason: str = ""
    seconds: float = 0.0
    tasks: list[TaskReport] = []


class RowsReport(BaseModel):
    """What came in. ``rows_in`` = ``known`` + ``clean`` + ``quarantined`` + ``duplicates``, once it is published.

    Attributes
    ----------
    counts : dict of str to int
        Rows by what became of them.
    sources : dict of str to dict of str to int
        The same for each source that was read.
    quarantine : dict of str to dict of str to int
        Refused rows by source and reason.
    published : bool
        False: the batch was refused or the step failed, and nothing of it is visible.
    """

    counts: dict[str, int] = {}
    sources: dict[str, dict[str, int]] = {}
    quarantine: dict[str, dict[str, int]] = {}
    published: bool = False


class VotesReport(BaseModel):
    """What annotators were asked.

    Attributes
    ----------
    reviews_asked, new_votes, without_label : int
        Reviews that lacked a vote, votes that came, and how many of those name no category.
    spent : dict of str to float
        Tokens, seconds and money of the new votes; empty where they cost nothing.
    stopped : list of str
        Limits of the budget that ended the asking.
    """

    reviews_asked: int = 0
    new_votes: int = 0
    without_label: int = 0
    spent: dict[str, float] = {}
    stopped: list[str] = []


class LabelsReport(BaseModel):
    """Labels after the night, and how they agree with people on gold."""

    labels: int = 0
    changed: int = 0
    by_class: dict[str, int] = {}
    agreement_with_gold: dict[str, float] = {}


class CandidateReport(BaseModel):
    """A candidate on gold with its 95% interval, and the gate's verdict; null where it was not measured."""

    candidate: str
    weighted_f1: float | None = None
    weighted_f1_low: float | None = None
    weighted_f1_high: float | None = None
    gold_rows: int = 0
    seconds_per_example: float | None = None
    gate: str = ""
    reason: str = ""
    version: str | None = None


class ChampionReport(BaseModel):
    """The version that production follows, before the night and after it."""

    before: str | None = None
    after: str | None = None


class ScoredReport(BaseModel):
    """What the champion has answered, and how production is."""

    reviews: int = 0
    abstained: int = 0
    verdict: str = ""
    headline: str = ""


class NightReport(BaseModel):
    """Everything a night has to say; parts of steps that did not get so far are null.

    Attributes
    ----------
    failed : bool
        One of the DAGs would have failed.
    not_written : dict of str to str
        Thin classes for which no synthetic reviews could be written, and why.
    """

    failed: bool = False
    steps: list[StepReport] = []
    rows: RowsReport | None = None
    votes: VotesReport | None = None
    labels: LabelsReport | None = None
    not_written: dict[str, str] = {}
    candidates: list[CandidateReport] = []
    champion: ChampionReport | None = None
    scored: ScoredReport | None = None


def render(report: NightReport) -> RenderableType:
    """The report as tables and lines for a terminal or a log."""
    return Group(*_parts(report))


def _parts(report: NightReport) -> Iterator[RenderableType]:
    if report.rows is not None:
        yield from _rows(report.rows)
    if report.votes is not None:
        yield Text("votes     " + _votes(report.votes))
    if report.labels is not None:
        yield Text("labels    " + _labels(report.labels))
    for category, reason in report.not_written.items():
        yield Text(f"synthetic {category}: none written: {reason}")
    if report.candidates:
        yield _candidates(report.candidates)
    if report.champion is not None:
        before, after = (f"version {name}" if name else "none" for name in (report.champion.before, report.champion.after))
        yield Text(f"champion  {after}" + (f", was {before}" if before != after else ", as before"))
    if report.scored is not None:
        yield Text(f"scored    {report.scored.reviews} reviews, {report.scored.abstained} of them doubtful")
        if report.scored.headline:
            yield Text(f"health    {report.scored.headline}")
    yield _steps(report.steps)


def _rows(rows: RowsReport) -> Iterator[RenderableType]:
    listed = ", ".join(f"{value} {_words(name)}" for name, value in rows.counts.items())
    yield Text("rows      " + (listed or "none") + ("" if rows.published else "; nothing was published"))
    if rows.sources:
        columns = list(dict.fromkeys(name for counts in rows.sources.values() for name in counts))
        table = _table("Rows by source", "source", *map(_words, columns))
        for source, counts in sorted(rows.sources.items()):
            table.add_row(Text(source), *(str(counts.get(name, 0)) for name in columns))
        yield table
    if rows.quarantine:
        table = _table("Quarantine", "source", "refused because of", "rows")
        for source, reasons in sorted(rows.quarantine.items()):
            for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
                table.add_row(Text(source), Text(reason), str(count))
        yield table


def _votes(votes: VotesReport) -> str:
    said = f"{votes.new_votes} new on {votes.reviews_asked} reviews, {votes.without_label} of them without a category"
    if votes.spent:
        tokens = int(votes.spent.get("tokens_in", 0) + votes.spent.get("tokens_out", 0))
        said += f"; {tokens} tokens, {votes.spent.get('seconds', 0):.1f} s, cost {votes.spent.get('cost', 0):g}"
    return "; ".join([said, *votes.stopped])


def _labels(labels: LabelsReport) -> str:
    said = f"{labels.labels}, {labels.changed} changed"
    share, compared = (labels.agreement_with_gold.get(name) for name in ("share", "n"))
    return said if share is None else f"{said}; agreement with people on gold {share:.3f} (n={compared:g})"


def _candidates(candidates: list[CandidateReport]) -> Table:
    table = _table("Candidates", "candidate", "weighted F1 on gold [95%]", "s/example p95", "gate", "version")
    for row in candidates:
        figure = "-"
        if row.weighted_f1 is not None:
            figure = f"{row.weighted_f1:.3f} [{row.weighted_f1_low:.3f}, {row.weighted_f1_high:.3f}], n={row.gold_rows}"
        seconds = "-" if row.seconds_per_example is None else f"{row.seconds_per_example:.4f}"
        table.add_row(row.candidate, Text(figure), seconds, Text(row.reason or row.gate), row.version or "-")
    return table


def _steps(steps: list[StepReport]) -> Table:
    table = _table("The night", "step", "outcome", "seconds", "reason")
    for step in steps:
        table.add_row(step.step, Text(step.outcome, _STYLES[step.outcome]), f"{step.seconds:.1f}", Text(step.reason))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left")


def _words(name: str) -> str:
    return name.replace("_", " ")
