"""What a night has to say: as one JSON object, in a few lines, and as a note on a run of Airflow. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from reviewclf.manifest import Manifest

# Airflow's notes end there.
MAX_CHARACTERS = 1000
_NAMED_REASON = 160


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
    training_set : dict of str to int
        Rows that candidates are trained on, and those that choose among settings.
    not_written : dict of str to str
        Thin classes for which no synthetic reviews could be written, and why.
    candidates : list of CandidateReport
        The best on gold first.
    """

    failed: bool = False
    steps: list[StepReport] = []
    rows: RowsReport | None = None
    votes: VotesReport | None = None
    labels: LabelsReport | None = None
    training_set: dict[str, int] = {}
    not_written: dict[str, str] = {}
    candidates: list[CandidateReport] = []
    champion: ChampionReport | None = None
    scored: ScoredReport | None = None

    @classmethod
    def of(cls, results: Mapping[str, Sequence[Manifest]], **more: Any) -> NightReport:
        """What the tasks of ingest, label and retrain have handed on, as far as they have come, and `more` attributes."""
        last = {task: manifests[-1] for task, manifests in results.items() if manifests}
        parts: dict[str, Any] = {}
        if rows := last.get("publish") or last.get("ingest"):
            counts = {name: count for name, count in rows.counts.items() if name != "new"}
            sources = rows.details.get("by_source") or {}
            parts["rows"] = {"counts": counts, "sources": sources, "published": "publish" in last}
        if asked := last.get("collect"):
            pending = last["select"].counts["pending"] if "select" in last else 0
            parts["votes"] = {
                **asked.counts,
                **asked.details,
                "reviews_asked": pending,
                "spent": asked.details.get("costs", {}),
            }
        if labelled := last.get("aggregate"):
            parts["labels"] = {**labelled.counts, **labelled.details, "by_class": labelled.details.get("labels_by_class", {})}
        if dataset := last.get("build_dataset"):
            parts["training_set"] = {name: dataset.counts.get(f"{name}_rows", 0) for name in ("train", "validation")}
            parts["not_written"] = dataset.details.get("not_written", {})
        trained = [*results.get("train", ()), *results.get("finetune", ())]
        parts["candidates"] = _candidates_of(trained, last.get("evaluate"), last.get("gate"))
        return cls.model_validate({**parts, **more})


def _candidates_of(trained: Sequence[Manifest], evaluated: Manifest | None, gated: Manifest | None) -> list[dict[str, Any]]:
    """Every candidate with its figures and its verdict, as far as the stages have come."""
    untrained = {str(manifest.details["candidate"]): _untrained(manifest) for manifest in trained}
    figures: Any = evaluated.details.get("candidates", []) if evaluated else []
    verdicts: Any = gated.details.get("verdicts", {}) if gated else {}
    measured = {row["candidate"]: row for row in figures}
    rows = []
    for name in dict.fromkeys([*untrained, *measured]):
        row, verdict = measured.get(name, {}), verdicts.get(name, {})
        told = {"gate": verdict.get("verdict", ""), "reason": str(verdict.get("reason") or untrained.get(name, ""))}
        seconds, gold_rows = row.get("seconds_per_example_p95"), evaluated.counts.get("gold_rows", 0) if evaluated else 0
        rows.append({**row, **verdict, **told, "candidate": name, "gold_rows": gold_rows, "seconds_per_example": seconds})
    return sorted(rows, key=lambda row: -(row.get("weighted_f1") or 0.0))


def _untrained(manifest: Manifest) -> str:
    """Why a candidate could not be trained; empty where it was."""
    what = "not trained, has failed" if manifest.details.get("failed") else "skipped"
    return f"{what}: {manifest.details['skipped']}" if manifest.details.get("skipped") else ""


def sentences(report: NightReport) -> Iterator[tuple[str, str]]:
    """What each part of the night says in one line, by name."""
    if report.rows is not None:
        listed = ", ".join(f"{count:,} {words(name)}" for name, count in report.rows.counts.items() if count)
        yield "rows", (listed or "none came in") + ("" if report.rows.published else "; nothing was published")
    if report.votes is not None:
        yield "votes", _votes(report.votes)
    if report.labels is not None:
        yield "labels", _labels(report.labels)
    if report.training_set:
        yield "training set", ", ".join(f"{count:,} {name}" for name, count in report.training_set.items())
    for category, reason in report.not_written.items():
        yield "synthetic", f"{category}: none written: {reason}"
    if report.champion is not None:
        before, after = (f"version {name}" if name else "none" for name in (report.champion.before, report.champion.after))
        yield "champion", after + (f", was {before}" if before != after else ", as before")
    if report.scored is not None:
        yield "scored", f"{report.scored.reviews:,} reviews, {report.scored.abstained:,} of them doubtful"
        if report.scored.headline:
            yield "health", report.scored.headline


def _votes(votes: VotesReport) -> str:
    said = f"{votes.new_votes:,} new on {votes.reviews_asked:,} reviews, {votes.without_label:,} of them without a category"
    if votes.spent:
        tokens = int(votes.spent.get("tokens_in", 0) + votes.spent.get("tokens_out", 0))
        said += f"; {tokens:,} tokens, {votes.spent.get('seconds', 0):.1f} s, cost {votes.spent.get('cost', 0):g}"
    return "; ".join([said, *votes.stopped])


def _labels(labels: LabelsReport) -> str:
    said = f"{labels.labels:,}, {labels.changed:,} changed"
    share, compared = (labels.agreement_with_gold.get(name) for name in ("share", "n"))
    return said if share is None else f"{said}; agreement with people on gold {share:.3f} (n={compared:g})"


def figure(row: CandidateReport) -> str:
    """How good a candidate is on gold, with its interval."""
    if row.weighted_f1 is None:
        return "not judged on gold"
    interval = "" if row.weighted_f1_low is None else f" ({row.weighted_f1_low:.3f} to {row.weighted_f1_high:.3f})"
    return f"weighted F1 {row.weighted_f1:.3f}{interval}, n={row.gold_rows}"


def words(name: str) -> str:
    """The name of a count, for people."""
    return name.replace("_", " ")


# -- as a note on a run ----------------------------------------------------------------------------------------------


def summarize(results: Mapping[str, Sequence[Any]], failed: Sequence[str] = ()) -> str:
    """Summary of the runs of one night, as Markdown.

    Parameters
    ----------
    results : mapping
        What the tasks handed on, by task: manifests as JSON, in the order of mapped tasks. Of all runs that led to this one;
        missing tasks (a run by hand, a night without new reviews) are left out of the summary.
    failed : sequence of str
        Tasks that failed.

    Returns
    -------
    str
        At most :data:`MAX_CHARACTERS`; empty when there is nothing to say.
    """
    manifests = {task: list(_manifests(values)) for task, values in results.items()}
    report = NightReport.of(manifests)
    lines = [f"**Failed**: {', '.join(failed)}" if failed else _verdict(manifests)]
    lines += [f"- {name.capitalize()}: {said}" for name, said in sentences(report)]
    lines += [f"- {row.candidate}: {figure(row)}{_shortened(row.reason)}" for row in report.candidates]
    text = "\n".join(line for line in lines if line)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 2].rstrip() + " …"


def _manifests(values: Sequence[Any]) -> Iterator[Manifest]:
    for value in values:
        with suppress(ValidationError):  # some tasks hand on something else
            yield Manifest.model_validate(value)


def _verdict(manifests: Mapping[str, Sequence[Manifest]]) -> str:
    if not manifests.get("gate"):
        return ""
    gated: Any = manifests["gate"][-1].details
    promoted: Any = manifests["promote"][-1].details if manifests.get("promote") else {}
    if promoted.get("promoted"):
        before = f"version {promoted['previous']}" if promoted.get("previous") else "none"
        return f"**Promoted**: version {promoted.get('champion')} ({promoted.get('candidate')}), before: {before}"
    if gated.get("challenger") is None:
        return f"**Not promoted**: {gated.get('barred') or 'no candidate passed the gate'}"
    version, candidate = (gated["challenger"][name] for name in ("version", "candidate"))
    return f"**Not promoted**: version {version} ({candidate}) passed the gate; {promoted.get('reason') or 'it waits'}"


def _shortened(reason: str) -> str:
    return f", {reason if len(reason) <= _NAMED_REASON else reason[: _NAMED_REASON - 1] + '…'}" if reason else ""
