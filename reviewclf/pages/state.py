"""What the pages read and change: the registry (:class:`reviewclf.promotion.overview.Reader`), gold, the health report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reviewclf.errors import ReviewclfError
from reviewclf.monitoring.report import HealthReport
from reviewclf.settings import Settings

if TYPE_CHECKING:
    from reviewclf.promotion.aliases import Promotion
    from reviewclf.promotion.overview import Comparison, Overview, Reader, Version

logger = logging.getLogger(__name__)

# Gold is a file that people edit now and then.
_GOLD_SECONDS = 120.0
_HEALTH_SECONDS = 30.0


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
    mlflow_url : str or None
        Address of MLflow for people; None where there is none.
    """

    overview: Overview
    other: Version | None
    comparison: Comparison | None
    challenged: Comparison | None
    health: HealthReport | None
    gold: Mapping[str, str]
    mlflow_url: str | None


class State:
    """One per server process; MLflow is imported and asked at the first look only.

    Parameters
    ----------
    settings : Settings
        Where MLflow, the store, gold and the data docs are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._gold: tuple[float, Mapping[str, str]] | None = None
        self._health: tuple[float, HealthReport | None] | None = None

    @property
    def docs(self) -> Path:
        """Folder of the data docs' pages."""
        home = self._settings.home.expanduser().resolve()
        return home / "data_docs" / "gx" / "uncommitted" / "data_docs" / "local_site"

    @property
    def reader(self) -> Reader:
        """Reads the registry."""
        with self._lock:
            if self._reader is None:
                from reviewclf.promotion.overview import Reader

                self._reader = Reader(self._settings.tracking_uri)
            return self._reader

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
        from reviewclf.pages.view import choose_other

        overview = self.reader.overview()
        champion, challenger = overview.champion, overview.challenger
        other = choose_other(overview, wanted)
        # Without a champion a version stands alone: held against itself it shows its own report and matrix.
        comparison = None if other is None else self.reader.compare(champion or other, other)
        challenged = None if champion is None or challenger is None else self.reader.compare(champion, challenger)
        return Look(
            overview=overview,
            other=other,
            comparison=comparison,
            challenged=challenged,
            health=self._newest_health(),
            gold=self._gold_texts(),
            mlflow_url=self._settings.mlflow_address,
        )

    def champion(self) -> str | None:
        """Version that production follows at this very moment."""
        from reviewclf.registry import CHAMPION
        from reviewclf.registry.model import version_of_alias

        return version_of_alias(self.reader.tracker, CHAMPION)

    def promote(self, version: str, *, reason: str, who: str, against: str | None) -> Promotion:
        """Make a version that passed the gate the champion, if that is still the one the person saw (`against`).

        Raises
        ------
        GateError
            It did not pass, or somebody else is champion by now.
        RegistryError
            There is no such version, or MLflow does not answer.
        """
        from reviewclf.promotion import aliases as promotion

        try:
            return promotion.promote(self.reader.tracker, version, reason=reason, who=who, against=against)
        finally:
            self.reader.forget()

    def roll_back(self, *, reason: str, who: str) -> Promotion:
        """Make the previous version the champion again.

        Raises
        ------
        RegistryError
            There is no previous version, or MLflow does not answer.
        """
        from reviewclf.promotion import aliases as promotion

        try:
            return promotion.rollback(self.reader.tracker, reason=reason, who=who)
        finally:
            self.reader.forget()

    def gate_report(self, version: str) -> str | None:
        """The gate report of a version as a page; None where there is none."""
        from reviewclf.promotion.overview import find_version

        found = find_version(self.reader.tracker, version)
        return None if found is None else self.reader.report_page(found)

    def run_of_key(self, key: str) -> str | None:
        """Run in MLflow that was made for a manifest's digest."""
        from reviewclf.promotion.overview import run_of_key

        return run_of_key(self.reader.tracker, key)

    def run_address(self, run_id: str) -> str:
        """Where people see a run."""
        tracker = self.reader.tracker
        return f"{self._settings.mlflow_address or ''}/#/experiments/{tracker.experiment_id}/runs/{run_id}"

    def _gold_texts(self) -> Mapping[str, str]:
        with self._lock:
            if self._gold is None or time.monotonic() - self._gold[0] > _GOLD_SECONDS:
                self._gold = (time.monotonic(), _read_gold(self._settings))
            return self._gold[1]

    def _newest_health(self) -> HealthReport | None:
        with self._lock:
            if self._health is None or time.monotonic() - self._health[0] > _HEALTH_SECONDS:
                self._health = (time.monotonic(), _read_health(self._settings))
            return self._health[1]


def _read_gold(settings: Settings) -> Mapping[str, str]:
    from reviewclf.data.gold import load_gold
    from reviewclf.taxonomy import Taxonomy

    try:
        gold = load_gold(settings, Taxonomy.load(settings.taxonomy))
    except ReviewclfError as error:
        # The page is for deciding; a gold file that somebody is editing right now must not take it away.
        logger.warning("gold texts cannot be shown: %s", error)
        return {}
    if gold is None:
        return {}
    texts = gold.frame["text"].tolist()
    by_id = dict(zip(gold.frame["review_id"].astype(str), texts, strict=True))
    return {**by_id, **dict(zip(gold.frame["text_hash"], texts, strict=True))}


def _read_health(settings: Settings) -> HealthReport | None:
    from reviewclf.stages.score import latest_report

    try:
        return latest_report(settings)
    except ReviewclfError as error:
        logger.warning("the newest health report cannot be read: %s", error)
        return None
