"""The report of a night as tables and lines for a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reviewclf.monitoring.night import CandidateReport, NightReport, RowsReport, StepReport, figure, sentences, words

_STYLES = {"done": "green", "skipped": "yellow", "failed": "red"}


def render(report: NightReport) -> RenderableType:
    """What :func:`~reviewclf.monitoring.night.sentences` says, and tables."""
    return Group(*_parts(report))


def _parts(report: NightReport) -> Iterator[RenderableType]:
    for name, said in sentences(report):
        yield Text(f"{name:<12}  {said}")
    if report.rows is not None:
        yield from _rows(report.rows)
    if report.candidates:
        yield _candidates(report.candidates)
    yield _steps(report.steps)


def _rows(rows: RowsReport) -> Iterator[RenderableType]:
    if rows.sources:
        columns = list(dict.fromkeys(name for counts in rows.sources.values() for name in counts))
        table = _table("Rows by source", "source", *map(words, columns))
        for source, counts in sorted(rows.sources.items()):
            table.add_row(Text(source), *(str(counts.get(name, 0)) for name in columns))
        yield table
    if rows.quarantine:
        table = _table("Quarantine", "source", "refused because of", "rows")
        for source, reasons in sorted(rows.quarantine.items()):
            for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
                table.add_row(Text(source), Text(reason), str(count))
        yield table


def _candidates(candidates: list[CandidateReport]) -> Table:
    table = _table("Candidates", "candidate", "on gold [95%]", "s/example p95", "gate", "version")
    for row in candidates:
        seconds = "-" if row.seconds_per_example is None else f"{row.seconds_per_example:.4f}"
        table.add_row(row.candidate, figure(row), seconds, Text(row.reason or row.gate), row.version or "-")
    return table


def _steps(steps: list[StepReport]) -> Table:
    table = _table("The night", "step", "outcome", "seconds", "reason")
    for step in steps:
        table.add_row(step.step, Text(step.outcome, _STYLES[step.outcome]), f"{step.seconds:.1f}", Text(step.reason))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left")
