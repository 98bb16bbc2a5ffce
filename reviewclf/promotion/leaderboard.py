"""The candidates of the newest retrain side by side, read from MLflow alone."""

from __future__ import annotations

import textwrap

from pydantic import BaseModel, ConfigDict
from rich.markup import escape
from rich.table import Table

from reviewclf.registry import CHAMPION
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import CANDIDATE_TAG, FAILED, KIND_TAG, OUTCOME_TAG, PARENT_TAG, SKIPPED_TAG, Tracker


class Row(BaseModel):
    """One candidate. Figures are None where they were not measured; seconds are per review, one at a time."""

    model_config = ConfigDict(frozen=True)

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


class Leaderboard(BaseModel):
    """Candidates of one retrain, best weighted F1 on gold first, why others are missing, and what production follows."""

    model_config = ConfigDict(frozen=True)

    retrain: str | None
    champion: str | None
    previous: str | None
    rows: tuple[Row, ...]
    skipped: dict[str, str] = {}
    outcome: str = ""


def leaderboard(tracker: Tracker) -> Leaderboard:
    """Read the newest retrain that has evaluated candidates; empty before the first one."""
    named = aliases(tracker)
    by_run = {str(version.run_id): str(version.version) for version in versions(tracker)}
    retrain, rows, skipped, outcome = None, [], {}, ""
    for parent in tracker.find_runs({KIND_TAG: "retrain"}):
        children = tracker.find_runs({PARENT_TAG: parent.info.run_id})
        rows = [
            _row(run, by_run, named)
            for run in children
            if run.info.status == "FINISHED" and "latency/p95_seconds" in run.data.metrics
        ]
        if rows:
            retrain = str(parent.info.run_name)
            outcome = str(parent.data.tags.get(OUTCOME_TAG, ""))
            trained = {row.candidate for row in rows}
            reasons = {
                name.removeprefix(SKIPPED_TAG): text for name, text in parent.data.tags.items() if name.startswith(SKIPPED_TAG)
            }
            skipped = {name: text for name, text in sorted(reasons.items()) if name not in trained}
            break
    rows.sort(key=lambda row: (-(row.weighted_f1 if row.weighted_f1 is not None else -1.0), row.candidate))
    return Leaderboard(
        retrain=retrain,
        champion=named.get(CHAMPION),
        previous=named.get("previous"),
        rows=tuple(rows),
        skipped=skipped,
        outcome=outcome,
    )


def render(board: Leaderboard) -> Table:
    """The leaderboard as a table for the terminal."""
    n = board.rows[0].gold_rows if board.rows else 0
    judged = f"measured on {n} gold reviews, 95% bootstrap interval" if n else "no gold reviews: nothing was judged"
    caption = f"{judged}\n{escape(board.outcome)}" if board.outcome else judged
    table = Table(title=f"Leaderboard of {board.retrain or 'no retrain yet'}", caption=caption)
    for name, justify in (
        ("candidate", "left"),
        ("weighted F1", "right"),
        ("macro F1", "right"),
        ("seconds/example p95", "right"),
        ("gate", "left"),
        ("version", "right"),
        ("alias", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "gate")  # type: ignore[arg-type]
    for row in board.rows:
        interval = (
            f"{row.weighted_f1:.3f} [{row.weighted_f1_low:.3f}, {row.weighted_f1_high:.3f}]"
            if row.weighted_f1 is not None and row.weighted_f1_low is not None and row.weighted_f1_high is not None
            else "not measured"
        )
        table.add_row(
            row.candidate,
            interval.replace("[", r"\["),
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


def _verdict(row: Row, board: Leaderboard) -> str:
    """The rules that it failed; or, where it passed, that another candidate is champion."""
    said = row.gate_reason or row.gate
    if row.gate != "passed" or row.aliases or not any(CHAMPION in other.aliases for other in board.rows):
        return escape(said)
    return f"{escape(said)}; another candidate is champion"


def _row(run: object, by_run: dict[str, str], named: dict[str, str]) -> Row:
    info, data = run.info, run.data  # type: ignore[attr-defined]
    version = by_run.get(info.run_id)
    return Row(
        candidate=data.tags.get(CANDIDATE_TAG, info.run_name),
        weighted_f1=data.metrics.get("gold/weighted_f1"),
        weighted_f1_low=data.metrics.get("gold/weighted_f1_low"),
        weighted_f1_high=data.metrics.get("gold/weighted_f1_high"),
        macro_f1=data.metrics.get("gold/macro_f1"),
        gold_rows=int(data.metrics.get("gold/rows", 0)),
        seconds_per_example_p50=data.metrics.get("latency/p50_seconds"),
        seconds_per_example_p95=data.metrics.get("latency/p95_seconds"),
        gate=data.tags.get("reviewclf.gate", "not judged"),
        gate_reason=data.tags.get("reviewclf.gate_reason", ""),
        version=version,
        aliases=tuple(sorted(alias for alias, number in named.items() if number == version)),
        run_id=info.run_id,
    )
