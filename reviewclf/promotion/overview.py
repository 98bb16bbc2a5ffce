"""What a person needs to decide on a promotion, read from MLflow: the aliased versions, the newest retrain, the history.

A :class:`Reader` lives as long as a server process. Figures are read anew after a few seconds; reports and answers, which do
not change once their run has been judged, are kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, ValidationError

from reviewclf.evaluation import Difference, Evaluation, paired_bootstrap
from reviewclf.promotion.aliases import Event, history
from reviewclf.promotion.rules import GateReport
from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS
from reviewclf.registry.faults import registry_error
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import CANDIDATE_TAG, KEY_TAG, KIND_TAG, PARENT_TAG, SKIPPED_TAG, Tracker

logger = logging.getLogger(__name__)

# People who reload want to see what changed; a server that is asked by ten of them at once asks MLflow once.
FRESH_SECONDS = 10.0
_KEPT_REPORTS = 64

T = TypeVar("T")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figure(_Value):
    """A measured value, with the bounds of its 95% interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Version(_Value):
    """One version of the registered model, and what its run measured.

    Attributes
    ----------
    figures : dict
        By MLflow's metric name (``gold/weighted_f1``, ``latency/p95_seconds``, ...).
    gold : str
        Digest of the gold reviews it was judged on; empty where none is noted.
    promoted_at, promoted_by, promotion_reason : str
        Of its newest promotion; empty when there was none. Likewise for the rollback away from it.
    """

    version: str
    candidate: str
    run_id: str
    aliases: tuple[str, ...]
    created_at: datetime
    dataset: str = ""
    gold: str = ""
    gate: Literal["passed", "failed", "not judged"]
    gate_reason: str
    figures: dict[str, Figure]
    promoted_at: str = ""
    promoted_by: str = ""
    promotion_reason: str = ""
    rolled_back_at: str = ""
    rolled_back_by: str = ""
    rollback_reason: str = ""

    def value(self, name: str) -> float | None:
        """A figure's value, or None where it was not measured."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value


class Overview(_Value):
    """State of the registry.

    Attributes
    ----------
    retrain, retrain_at, retrain_run_id
        Name, time and run of the newest retrain that has judged candidates; None before the first.
    candidates : tuple of Version
        Versions of that retrain, the best weighted F1 on gold first.
    skipped : dict
        Candidates that it could not train, with the reason.
    """

    at: datetime
    experiment_id: str
    champion: Version | None
    challenger: Version | None
    previous: Version | None
    retrain: str | None = None
    retrain_at: datetime | None = None
    retrain_run_id: str | None = None
    candidates: tuple[Version, ...] = ()
    skipped: dict[str, str] = {}
    history: tuple[Event, ...] = ()

    @property
    def shown(self) -> dict[str, Version]:
        """Every version in it by its number: those with an alias first."""
        named = [version for version in (self.challenger, self.champion, self.previous) if version is not None]
        return {version.version: version for version in (*named, *self.candidates)}


class Answer(_Value):
    """What two versions said about one gold review; confidences are probabilities, 0 to 1."""

    review_id: str
    text_hash: str
    label: str
    champion: str
    champion_confidence: float
    other: str
    other_confidence: float

    @property
    def winner(self) -> Literal["champion", "other", "neither"]:
        """Who was right."""
        if self.champion == self.label:
            return "champion"
        return "other" if self.other == self.label else "neither"


class Comparison(_Value):
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
    answers : tuple of Answer
        Those on which they differ: what would get worse first, then what would get better, then where both are wrong.
    same_gold : bool
        Whether both were judged on the same gold reviews, as far as is noted.
    """

    version: str
    gate: GateReport | None
    champion_evaluation: Evaluation | None
    evaluation: Evaluation | None
    difference: Difference | None
    common: int
    answers: tuple[Answer, ...]
    same_gold: bool


class Reader:
    """Reads overviews and comparisons from one tracking server; safe to call from many threads.

    Parameters
    ----------
    tracking_uri : str
        What MLflow takes.
    clock : callable, optional
        Seconds that only grow.
    """

    def __init__(self, tracking_uri: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracking_uri = tracking_uri
        self._clock = clock
        self._lock = threading.Lock()
        self._tracker: Tracker | None = None
        self._overview: tuple[float, Overview] | None = None
        self._reports: dict[tuple[str, ...], Any] = {}

    @property
    def tracker(self) -> Tracker:
        """The connection to MLflow, opened at the first use.

        Raises
        ------
        RegistryError
            MLflow does not answer.
        """
        if self._tracker is None:
            self._tracker = Tracker(self._tracking_uri)
        return self._tracker

    def forget(self) -> None:
        """Read the registry anew next time: somebody has just changed it."""
        self._overview = None

    def overview(self) -> Overview:
        """The state of the registry, at most :data:`FRESH_SECONDS` old.

        Raises
        ------
        RegistryError
            MLflow does not answer.
        """
        with self._lock:
            if self._overview is None or self._clock() - self._overview[0] >= FRESH_SECONDS:
                self._overview = (self._clock(), read_overview(self.tracker))
            return self._overview[1]

    def compare(self, champion: Version, other: Version) -> Comparison:
        """Hold a version against the champion; reports are read once per run and verdict."""
        key = ("comparison", *_state(champion), *_state(other))
        return self._kept(key, lambda: self._compare(champion, other))

    def report_page(self, version: Version) -> str | None:
        """The gate report of a version as a page; None where it has none."""
        tracker = self.tracker
        return self._kept(("page", *_state(version)), lambda: _text(tracker, version.run_id, "gate/report.html"))

    def _compare(self, champion: Version, other: Version) -> Comparison:
        tracker = self.tracker
        ours, theirs = (_answers(tracker, version.run_id) for version in (champion, other))
        evaluations = [_model(tracker, version.run_id, "evaluation/gold.json", Evaluation) for version in (champion, other)]
        labels = evaluations[1].labels if evaluations[1] is not None else []
        pairs = [
            (first, theirs[key]) for key, first in ours.items() if key in theirs and theirs[key]["label"] == first["label"]
        ]
        return Comparison(
            version=other.version,
            gate=_model(tracker, other.run_id, "gate/report.json", GateReport),
            champion_evaluation=evaluations[0],
            evaluation=evaluations[1],
            difference=_difference(pairs, labels),
            common=len(pairs),
            answers=_differing(pairs),
            same_gold=champion.gold == other.gold,
        )

    def _kept(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        with self._lock:
            if key in self._reports:
                kept: T = self._reports[key]
                return kept
        value = read()
        with self._lock:
            while len(self._reports) >= _KEPT_REPORTS:
                self._reports.pop(next(iter(self._reports)))
            self._reports[key] = value
        return value


def read_overview(tracker: Tracker) -> Overview:
    """Ask MLflow for the state of the registry.

    Raises
    ------
    RegistryError
        MLflow does not answer.
    """
    named = aliases(tracker)
    known = {str(version.version): version for version in versions(tracker)}
    by_run = {str(version.run_id): version for version in known.values()}
    parent, runs = _newest_retrain(tracker, by_run)

    def of_alias(alias: str) -> Version | None:
        version = known.get(named.get(alias, ""))
        return None if version is None else _version(version, _run_of(tracker, version, runs), named)

    candidates = [_version(by_run[run_id], run, named) for run_id, run in runs.items() if run_id in by_run]
    candidates.sort(key=lambda version: (-(version.value("gold/weighted_f1") or -1.0), version.candidate))
    trained = {candidate.candidate for candidate in candidates}
    tags: dict[str, str] = {} if parent is None else parent.data.tags
    skipped = {name.removeprefix(SKIPPED_TAG): text for name, text in sorted(tags.items()) if name.startswith(SKIPPED_TAG)}
    return Overview(
        at=datetime.now(UTC),
        experiment_id=tracker.experiment_id,
        champion=of_alias(CHAMPION),
        challenger=of_alias(CHALLENGER),
        previous=of_alias(PREVIOUS),
        retrain=None if parent is None else str(parent.info.run_name),
        retrain_at=None if parent is None else _time(parent.info.start_time),
        retrain_run_id=None if parent is None else str(parent.info.run_id),
        candidates=tuple(candidates),
        skipped={name: text for name, text in skipped.items() if name not in trained},
        history=tuple(history(tracker, newest=50)),
    )


def find_version(tracker: Tracker, number: str) -> Version | None:
    """One version, whatever its alias; None where there is no such number."""
    known = {str(version.version): version for version in versions(tracker)}
    version = known.get(number)
    return None if version is None else _version(version, _run_of(tracker, version, {}), aliases(tracker))


def run_of_key(tracker: Tracker, key: str) -> str | None:
    """Id of the newest run that was made for a manifest's digest; None where there is none."""
    runs = tracker.find_runs({KEY_TAG: key}, newest=1)
    return str(runs[0].info.run_id) if runs else None


def _newest_retrain(tracker: Tracker, by_run: Mapping[str, ModelVersion]) -> tuple[Run | None, dict[str, Run]]:
    """The newest retrain that has registered candidates, and its child runs by id."""
    for parent in tracker.find_runs({KIND_TAG: "retrain"}, newest=20):
        children = {str(run.info.run_id): run for run in tracker.find_runs({PARENT_TAG: parent.info.run_id})}
        if children.keys() & by_run.keys():
            return parent, children
    return None, {}


def _run_of(tracker: Tracker, version: ModelVersion, known: Mapping[str, Run]) -> Run | None:
    """The run behind a version; None when somebody has deleted it for good."""
    run_id = str(version.run_id)
    if run_id in known:
        return known[run_id]
    try:
        return tracker.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise registry_error(error, tracker.tracking_uri, f"show run {run_id}") from error
        return None


def _version(version: ModelVersion, run: Run | None, named: Mapping[str, str]) -> Version:
    tags: dict[str, str] = dict(version.tags)
    metrics: dict[str, float] = {} if run is None else dict(run.data.metrics)
    number = str(version.version)
    gate = tags.get("reviewclf.gate", "")
    return Version(
        version=number,
        candidate=tags.get(CANDIDATE_TAG, "?"),
        run_id=str(version.run_id),
        aliases=tuple(sorted(alias for alias, of in named.items() if of == number)),
        created_at=_time(version.creation_timestamp),
        dataset=tags.get("reviewclf.dataset", ""),
        gold=tags.get("reviewclf.gold", ""),
        gate=gate if gate in ("passed", "failed") else "not judged",
        gate_reason=tags.get("reviewclf.gate_reason", ""),
        figures={
            name: Figure(value=value, low=metrics.get(f"{name}_low"), high=metrics.get(f"{name}_high"))
            for name, value in metrics.items()
            if not name.startswith("system/") and not name.endswith(("_low", "_high"))
        },
        **{
            name: tags.get(f"reviewclf.{name}", "")
            for name in (
                "promoted_at",
                "promoted_by",
                "promotion_reason",
                "rolled_back_at",
                "rolled_back_by",
                "rollback_reason",
            )
        },
    )


def _state(version: Version) -> tuple[str, ...]:
    # A version that is judged anew, on other gold, gets new reports under the same run.
    return (version.run_id, version.gold, version.gate_reason, str(version.value("gold/weighted_f1")))


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _answers(tracker: Tracker, run_id: str) -> dict[str, dict[str, Any]]:
    """Answers on gold by review; empty where the run holds none."""
    rows = _json(tracker, run_id, "evaluation/gold_answers.json") or []
    return {str(row["review_id"]): row for row in rows}


def _differing(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[Answer, ...]:
    answers = [
        Answer(
            review_id=str(first["review_id"]),
            text_hash=str(first.get("text_hash", "")),
            label=first["label"],
            champion=first["predicted"],
            champion_confidence=first["confidence"],
            other=second["predicted"],
            other_confidence=second["confidence"],
        )
        for first, second in pairs
        if first["predicted"] != second["predicted"]
    ]
    order = {"champion": 0, "other": 1, "neither": 2}
    # Within each kind the surest answers first: they are the most telling.
    return tuple(
        sorted(answers, key=lambda answer: (order[answer.winner], -max(answer.champion_confidence, answer.other_confidence)))
    )


def _difference(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], labels: Sequence[str]) -> Difference | None:
    if not pairs or not labels:
        return None
    return paired_bootstrap(
        [first["label"] for first, _ in pairs],
        [second["predicted"] for _, second in pairs],
        [first["predicted"] for first, _ in pairs],
        labels,
    )


def _model(tracker: Tracker, run_id: str, path: str, kind: type[Any]) -> Any:
    """A JSON artifact as the value it was made from; None where it is missing or was written by another version."""
    content = _json(tracker, run_id, path)
    if content is None:
        return None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        logger.warning("%s of run %s cannot be read: %s", path, run_id, error)
        return None


def _json(tracker: Tracker, run_id: str, path: str) -> Any:
    if not _has(tracker, run_id, path):
        return None
    return tracker.read_json(run_id, path)


def _text(tracker: Tracker, run_id: str, path: str) -> str | None:
    if not _has(tracker, run_id, path):
        return None
    return tracker.read_text(run_id, path)


def _has(tracker: Tracker, run_id: str, path: str) -> bool:
    folder = path.rpartition("/")[0]
    with tracker.errors(f"list the artifacts of run {run_id}"):
        return any(item.path == path for item in tracker.client.list_artifacts(run_id, folder))
