"""What a person needs to decide on a promotion, read from MLflow: the aliased versions, the newest retrain, the history."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel, ValidationError

from reviewclf.evaluation import Difference, Evaluation, paired_bootstrap
from reviewclf.evaluation.base import Result
from reviewclf.promotion.history import Event, History
from reviewclf.promotion.rules import GateReport
from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS
from reviewclf.registry.deployment import Version
from reviewclf.registry.faults import if_found
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import CANDIDATE_TAG, KIND_TAG, OUTCOME_TAG, PARENT_TAG, SKIPPED_TAG, Tracker

logger = logging.getLogger(__name__)

_HISTORY = 50
Winner = Literal["champion", "other", "neither"]
_WINNERS = ("champion", "other", "neither")


@dataclass(frozen=True)
class Retrain:
    """One retrain: the runs of its candidates, newest first, why it went on without others, and how it ended in words."""

    name: str
    run_id: str
    at: datetime
    runs: tuple[Run, ...]
    skipped: dict[str, str]
    outcome: str


class JudgedVersion(Version):
    """A version with its aliases and the metrics of its run (``gold/weighted_f1``, ``latency/p95_seconds``, ...)."""

    aliases: tuple[str, ...]
    metrics: dict[str, float]

    def __hash__(self) -> int:
        """Equal versions are equal in tags and metrics too, so that what is kept for one is read anew when it changes."""
        return hash((self.version, self.run_id))

    @property
    def candidate(self) -> str:
        """Name of the candidate."""
        return self.tag("candidate") or "?"

    @property
    def gate(self) -> str:
        """``passed``, ``failed`` or ``not judged``."""
        return self.tag("gate") or "not judged"

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Bounds of the 95% interval of a metric, where it has one."""
        low, high = (self.metrics.get(f"{metric}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Overview:
    """State of the registry; `candidates` are the versions of the newest retrain, the best weighted F1 on gold first."""

    at: datetime
    experiment_id: str
    champion: JudgedVersion | None = None
    challenger: JudgedVersion | None = None
    previous: JudgedVersion | None = None
    retrain: Retrain | None = None
    candidates: tuple[JudgedVersion, ...] = ()
    history: tuple[Event, ...] = ()

    @property
    def shown(self) -> dict[str, JudgedVersion]:
        """Every version in it by its number: those with an alias first."""
        named = [version for version in (self.challenger, self.champion, self.previous) if version is not None]
        return {version.version: version for version in (*named, *self.candidates)}


class GoldAnswer(BaseModel):
    """What a version said about one gold review; the confidence is a probability, 0 to 1."""

    review_id: str
    text_hash: str = ""
    label: str
    predicted: str
    confidence: float


class AnswerPair(NamedTuple):
    """What the champion and the other version said about the same gold review."""

    champion: GoldAnswer
    other: GoldAnswer

    @property
    def winner(self) -> Winner:
        """Who was right."""
        label = self.champion.label
        return "champion" if self.champion.predicted == label else "other" if self.other.predicted == label else "neither"


class Comparison(Result):
    """A version beside the champion.

    Attributes
    ----------
    gate : GateReport or None
        Of the version.
    champion_evaluation, evaluation : Evaluation or None
        On gold; None where there was no gold or the artifact is gone.
    difference : Difference or None
        Weighted F1 of the version minus the champion's on the reviews that both answered, paired bootstrap.
    common : int
        Reviews that both answered, with the same label in gold.
    answers : tuple of AnswerPair
        Those on which they differ: what would get worse first, then what would get better, then where both are wrong.
    same_gold : bool
        Whether both were judged on the same gold reviews, as far as is noted.
    """

    gate: GateReport | None
    champion_evaluation: Evaluation | None
    evaluation: Evaluation | None
    difference: Difference | None
    common: int
    answers: tuple[AnswerPair, ...]
    same_gold: bool


def read_overview(history: History) -> Overview:
    """Ask MLflow for the state of the registry, and the store for its history.

    Raises
    ------
    RegistryError
        MLflow does not answer.
    """
    tracker = history.tracker
    named = aliases(tracker)
    known = {str(version.version): version for version in versions(tracker)}
    by_run = {str(version.run_id): version for version in known.values()}
    retrain = newest_retrain(tracker, lambda run: run.info.run_id in by_run)
    runs = {} if retrain is None else {str(run.info.run_id): run for run in retrain.runs}
    candidates = [_judged(tracker, by_run[run_id], named, run) for run_id, run in runs.items()]
    candidates.sort(key=lambda version: (-version.metrics.get("gold/weighted_f1", -1.0), version.candidate))
    with_alias = {
        alias: _judged(tracker, known[named[alias]], named, runs.get(str(known[named[alias]].run_id)))
        for alias in (CHAMPION, CHALLENGER, PREVIOUS)
        if named.get(alias) in known
    }
    return Overview(
        at=datetime.now(UTC),
        experiment_id=tracker.experiment_id,
        retrain=retrain,
        candidates=tuple(candidates),
        history=tuple(history.events()[::-1][:_HISTORY]),
        **with_alias,
    )


def newest_retrain(tracker: Tracker, is_shown: Callable[[Run], bool]) -> Retrain | None:
    """The newest retrain with candidates whose runs are to be shown; None before the first one."""
    for parent in tracker.find_runs({KIND_TAG: "retrain"}):
        runs = tuple(run for run in tracker.find_runs({PARENT_TAG: parent.info.run_id}) if is_shown(run))
        if runs:
            trained = {run.data.tags.get(CANDIDATE_TAG) for run in runs}
            tags = {name: said for name, said in sorted(parent.data.tags.items()) if name.startswith(SKIPPED_TAG)}
            skipped = {name.removeprefix(SKIPPED_TAG): said for name, said in tags.items()}
            return Retrain(
                name=str(parent.info.run_name),
                run_id=str(parent.info.run_id),
                at=datetime.fromtimestamp(parent.info.start_time / 1000, UTC),
                runs=runs,
                skipped={name: said for name, said in skipped.items() if name not in trained},
                outcome=parent.data.tags.get(OUTCOME_TAG, ""),
            )
    return None


def compare(tracker: Tracker, champion: JudgedVersion, other: JudgedVersion) -> Comparison:
    """Hold a version against the champion by what their runs keep of their answers on gold."""
    ours, theirs = (
        {str(row["review_id"]): GoldAnswer.model_validate({**row, "review_id": str(row["review_id"])}) for row in rows}
        for rows in (_artifact(tracker, version.run_id, "evaluation/gold_answers.json") or [] for version in (champion, other))
    )
    evaluations = [_model(tracker, version.run_id, "evaluation/gold.json", Evaluation) for version in (champion, other)]
    pairs = [AnswerPair(row, theirs[key]) for key, row in ours.items() if key in theirs and theirs[key].label == row.label]
    differing = [pair for pair in pairs if pair.champion.predicted != pair.other.predicted]
    # Within each kind the surest answers first: they are the most telling.
    differing.sort(key=lambda pair: (_WINNERS.index(pair.winner), -max(answer.confidence for answer in pair)))
    difference = None
    if pairs and evaluations[1] is not None:
        difference = paired_bootstrap(
            [pair.champion.label for pair in pairs],
            [pair.other.predicted for pair in pairs],
            [pair.champion.predicted for pair in pairs],
            evaluations[1].labels,
        )
    return Comparison(
        gate=_model(tracker, other.run_id, "gate/report.json", GateReport),
        champion_evaluation=evaluations[0],
        evaluation=evaluations[1],
        difference=difference,
        common=len(pairs),
        answers=tuple(differing),
        same_gold=champion.tag("gold") == other.tag("gold"),
    )


def gate_report(tracker: Tracker, number: str) -> str | None:
    """The gate report of a version as a page; None where there is no such version, or it has none."""
    run_ids = (str(version.run_id) for version in versions(tracker) if str(version.version) == number)
    return next((tracker.read_text(run, "gate/report.html") for run in run_ids if _has(tracker, run, "gate/report.html")), None)


def _judged(tracker: Tracker, version: ModelVersion, named: Mapping[str, str], run: Run | None) -> JudgedVersion:
    """A version with its aliases and metrics; it has none where somebody has deleted its run for good."""
    if run is None:
        with tracker.errors(f"show run {version.run_id}"):
            run = if_found(lambda: tracker.client.get_run(str(version.run_id)))
    return JudgedVersion(
        **Version.of(version).model_dump(),
        aliases=tuple(sorted(alias for alias, number in named.items() if number == str(version.version))),
        metrics={} if run is None else dict(run.data.metrics),
    )


def _model(tracker: Tracker, run_id: str, path: str, kind: type[Any]) -> Any:
    """A JSON artifact as the value it was made from; None where it is missing or was written by another version."""
    content = _artifact(tracker, run_id, path)
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError as error:
        logger.warning("%s of run %s cannot be read: %s", path, run_id, error)
        return None


def _artifact(tracker: Tracker, run_id: str, path: str) -> Any:
    return tracker.read_json(run_id, path) if _has(tracker, run_id, path) else None


def _has(tracker: Tracker, run_id: str, path: str) -> bool:
    with tracker.errors(f"list the artifacts of run {run_id}"):
        return any(item.path == path for item in tracker.client.list_artifacts(run_id, path.rpartition("/")[0]))
