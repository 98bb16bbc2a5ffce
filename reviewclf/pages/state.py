"""What the pages read and change: the registry, gold, the health report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from reviewclf.data.gold import load_gold
from reviewclf.errors import ReviewclfError
from reviewclf.monitoring.report import HealthReport
from reviewclf.pages.view import choose_other
from reviewclf.promotion import aliases, overview
from reviewclf.promotion.history import History, Promotion
from reviewclf.promotion.overview import Comparison, JudgedVersion, Overview
from reviewclf.registry import CHAMPION
from reviewclf.registry.model import aliases as aliases_of
from reviewclf.registry.tracking import KEY_TAG
from reviewclf.settings import Settings
from reviewclf.stages.score import latest_report
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

T = TypeVar("T")

# People who reload want to see what changed; a server that is asked by ten of them at once asks MLflow once.
_REGISTRY_SECONDS = 10.0
_HEALTH_SECONDS = 30.0
# Gold is a file that people edit now and then.
_GOLD_SECONDS = 120.0
_KEPT_COMPARISONS = 64


@dataclass(frozen=True)
class Look:
    """Everything on the page at one moment.

    Attributes
    ----------
    other, comparison
        The version beside the champion; None where there is no second one.
    challenged : Comparison or None
        The challenger beside the champion.
    gold : mapping
        Text of the gold reviews by text hash and by review id.
    mlflow : str or None
        Address of MLflow for people; None where there is none.
    """

    overview: Overview
    other: JudgedVersion | None
    comparison: Comparison | None
    challenged: Comparison | None
    health: HealthReport | None
    gold: Mapping[str, str]
    mlflow: str | None


class State:
    """One per server process; MLflow is asked at the first look. Safe to use from many threads.

    Parameters
    ----------
    settings : Settings
        Where MLflow, the store, gold and the data docs are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._overview = _Fresh(lambda: overview.read_overview(self.history), _REGISTRY_SECONDS)
        self._health = _Fresh(lambda: _newest_health(settings), _HEALTH_SECONDS)
        self._gold = _Fresh(lambda: _gold_texts(settings), _GOLD_SECONDS)
        self._compare = lru_cache(_KEPT_COMPARISONS)(
            lambda champion, other: overview.compare(self.history.tracker, champion, other)
        )

    @property
    def docs(self) -> Path:
        """Folder of the data docs' pages."""
        home = self._settings.home.expanduser().resolve()
        return home / "data_docs" / "gx" / "uncommitted" / "data_docs" / "local_site"

    @cached_property
    def history(self) -> History:
        """The connection to MLflow and the history of promotions; opened anew where MLflow did not answer."""
        return History.of(self._settings)

    def look(self, wanted: str | None) -> Look:
        """Gather what the page shows.

        Parameters
        ----------
        wanted : str or None
            Version to show beside the champion.

        Raises
        ------
        RegistryError
            MLflow does not answer.
        """
        seen = self._overview.value()
        champion, challenger = seen.champion, seen.challenger
        other = choose_other(seen, wanted)
        return Look(
            overview=seen,
            other=other,
            # Without a champion a version stands alone: held against itself it shows its own report and matrix.
            comparison=None if other is None else self._compare(champion or other, other),
            challenged=None if champion is None or challenger is None else self._compare(champion, challenger),
            health=self._health.value(),
            gold=self._gold.value(),
            mlflow=self._settings.mlflow_address,
        )

    def champion(self) -> str | None:
        """Version that production follows at this very moment."""
        return aliases_of(self.history.tracker).get(CHAMPION)

    def promote(self, version: str, *, reason: str, who: str, against: str | None) -> Promotion:
        """Make a version that passed the gate the champion, if that is still the one the person saw (`against`).

        Raises
        ------
        GateError
            It did not pass, or somebody else is champion by now.
        RegistryError
            There is no such version, or MLflow does not answer.
        """
        try:
            return aliases.promote(self.history, version, reason=reason, who=who, against=against)
        finally:
            self._overview.forget()

    def roll_back(self, *, reason: str, who: str) -> Promotion:
        """Make the previous version the champion again.

        Raises
        ------
        RegistryError
            There is no previous version, or MLflow does not answer.
        """
        try:
            return aliases.rollback(self.history, reason=reason, who=who)
        finally:
            self._overview.forget()

    def gate_report(self, version: str) -> str | None:
        """The gate report of a version as a page; None where there is none."""
        return overview.gate_report(self.history.tracker, version)

    def run_of_key(self, key: str) -> str | None:
        """Newest run in MLflow that was made for a manifest's digest."""
        runs = self.history.tracker.find_runs({KEY_TAG: key}, newest=1)
        return str(runs[0].info.run_id) if runs else None

    def run_address(self, run_id: str) -> str:
        """Where people see a run."""
        experiment = self.history.tracker.experiment_id
        return f"{self._settings.mlflow_address or ''}/#/experiments/{experiment}/runs/{run_id}"


class _Fresh(Generic[T]):
    """A value that is read anew once it is older than some seconds, by one thread while the others wait for it."""

    def __init__(self, read: Callable[[], T], seconds: float) -> None:
        self._read = read
        self._seconds = seconds
        self._lock = threading.Lock()
        self._kept: tuple[float, T] | None = None

    def value(self) -> T:
        with self._lock:
            if self._kept is None or time.monotonic() - self._kept[0] > self._seconds:
                self._kept = (time.monotonic(), self._read())
            return self._kept[1]

    def forget(self) -> None:
        self._kept = None


def _gold_texts(settings: Settings) -> Mapping[str, str]:
    try:
        gold = load_gold(settings, Taxonomy.load(settings.taxonomy))
    except ReviewclfError as error:
        # The page is for deciding; a gold file that somebody is editing right now must not take it away.
        logger.warning("gold texts cannot be shown: %s", error)
        return {}
    frame = None if gold is None else gold.frame.astype({"review_id": str})
    return {} if frame is None else {**frame.set_index("review_id")["text"], **frame.set_index("text_hash")["text"]}


def _newest_health(settings: Settings) -> HealthReport | None:
    try:
        return latest_report(settings)
    except ReviewclfError as error:
        logger.warning("the newest health report cannot be read: %s", error)
        return None
