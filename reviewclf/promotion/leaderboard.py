"""The candidates of the newest retrain side by side, read from MLflow alone."""

from __future__ import annotations

import textwrap
from typing import Any

from mlflow.entities import Run
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from reviewclf.promotion.overview import newest_retrain
from reviewclf.registry import CHAMPION, PREVIOUS
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.runs import METRIC_OF
from reviewclf.registry.tracking import CANDIDATE_TAG, FAILED, Tracker


class Row(BaseModel, frozen=True):
    """One candidate. Figures are None where they were not measured; seconds are per review, one at a time."""

    candidate: str
    weighted_f1: float | None
    weighted_f1_low: float | None
    weighted_f1_high: float | None
    macro_f1: float | None
    gold_rows: int
    seconds_per_example_p50: float | None
    seconds_per_example_p95: float | None
    gate: str
    gate_reason: str
    version: str | None
    aliases: tuple[str, ...]
    run_id: str


class Leaderboard(BaseModel, frozen=True):
    """Candidates of one retrain, best weighted F1 on gold first, why others are missing, and what production follows."""

    retrain: str | None = None
    champion: str | None
    previous: str | None
    rows: tuple[Row, ...] = ()
    skipped: dict[str, str] = {}
    outcome: str = ""


def leaderboard(tracker: Tracker) -> Leaderboard:
    """Read the newest retrain that has evaluated candidates; empty before the first one."""
    named = aliases(tracker)
    by_run = {str(version.run_id): str(version.version) for version in versions(tracker)}
    now = {"champion": named.get(CHAMPION), "previous": named.get(PREVIOUS)}
    retrain = newest_retrain(tracker, lambda run: run.info.status == "FINISHED" and "latency/p95_seconds" in run.data.metrics)
    if retrain is None:
        return Leaderboard(**now)
    rows = [_row(run, by_run.get(run.info.run_id), named) for run in retrain.runs]
    rows.sort(key=lambda row: (-(row.weighted_f1 if row.weighted_f1 is not None else -1.0), row.candidate))
    return Leaderboard(**now, retrain=retrain.name, rows=tuple(rows), skipped=retrain.skipped, outcome=retrain.outcome)


def _row(run: Run, version: str | None, named: dict[str, str]) -> Row:
    metrics, tags = run.data.metrics, run.data.tags
    figures: dict[str, Any] = {name: metrics.get(metric) for name, metric in METRIC_OF.items() if name in Row.model_fields}
    return Row(
        **figures,
        candidate=tags.get(CANDIDATE_TAG, run.info.run_name),
        gold_rows=int(metrics.get("gold/rows", 0)),
        gate=tags.get("reviewclf.gate", "not judged"),
        gate_reason=tags.get("reviewclf.gate_reason", ""),
        version=version,
        aliases=tuple(sorted(alias for alias, number in named.items() if number == version)),
        run_id=run.info.run_id,
    )


def render(board: Leaderboard) -> Table:
    """The leaderboard as a table for the terminal."""
    n = board.rows[0].gold_rows if board.rows else 0
    judged = f"measured on {n} gold reviews, 95% bootstrap interval" if n else "no gold reviews: nothing was judged"
    caption = f"{judged}\n{escape(board.outcome)}" if board.outcome else judged
    table = Table(title=f"Leaderboard of {board.retrain or 'no retrain yet'}", caption=caption)
    for name in ("candidate", "weighted F1", "macro F1", "seconds/example p95", "gate", "version", "alias"):
        table.add_column(name, justify="left" if name in ("candidate", "gate", "alias") else "right", no_wrap=name != "gate")
    for row in board.rows:
        table.add_row(
            row.candidate,
            _interval(row),
            "" if row.macro_f1 is None else f"{row.macro_f1:.3f}",
            "" if row.seconds_per_example_p95 is None else f"{row.seconds_per_example_p95:.4f}",
            _verdict(row, board),
            row.version or "",
            ", ".join(row.aliases),
        )
    for name, reason in board.skipped.items():
        # In full in the JSON, in the task's log, and from `reviewclf doctor`.
        word = "failed" if reason.startswith(FAILED) else "skipped"
        said = textwrap.shorten(reason.removeprefix(FAILED), 110, placeholder=" …")
        table.add_row(name, word, "", "", escape(said), "", "")
    return table


def _interval(row: Row) -> str:
    if row.weighted_f1 is None:
        return "not measured"
    return escape(f"{row.weighted_f1:.3f} [{row.weighted_f1_low:.3f}, {row.weighted_f1_high:.3f}]")


def _verdict(row: Row, board: Leaderboard) -> str:
    """The rules that it failed; or, where it passed, that another candidate is champion."""
    said = row.gate_reason or row.gate
    if row.gate == "passed" and not row.aliases and any(CHAMPION in other.aliases for other in board.rows):
        said += "; another candidate is champion"
    return escape(said)
