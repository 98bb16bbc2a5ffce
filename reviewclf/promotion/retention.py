"""Old versions go: which ones, and how, so that a killed attempt is finished by the next one."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from reviewclf.promotion.history import History, State, fold
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import RETIRED_TAG, Tracker

logger = logging.getLogger(__name__)


def retire(
    history: History, *, keep_versions: int, keep_days: float, who: str, dry_run: bool = False, now: datetime | None = None
) -> list[str]:
    """Remove old versions and their models' files; runs stay, with figures and reports.

    Versions with an alias stay whatever their age, and so does the one that a second rollback would return to.

    Parameters
    ----------
    keep_versions : int
        So many of the newest stay.
    keep_days : float
        Versions that are not older stay.
    dry_run : bool
        Only name them.
    now : datetime, optional
        For tests.

    Returns
    -------
    list of str
        Versions retired, oldest first.
    """
    now = now or datetime.now(UTC)
    tracker = history.tracker
    state = fold(history.settle())
    known = {str(version.version): version for version in versions(tracker)}
    days = {number: (now.timestamp() - version.creation_timestamp / 1000) / 86_400 for number, version in known.items()}
    needed = {*state.kept, *aliases(tracker).values(), *list(known)[:keep_versions]}
    too_old = [number for number in known if number not in needed and days[number] > keep_days]
    done = []
    # The history says first that a version is gone: from then on nobody can promote it, and a killed attempt is finished.
    for number in sorted({*too_old, *(state.retired & known.keys())}, key=int):

        def choose(state: State, number: str = number) -> str | None:
            return None if number in {*state.kept, *aliases(tracker).values()} else number

        is_gone = dry_run or number in state.retired
        reason = f"{days[number]:.0f} days old, no alias"
        if is_gone or history.record("retire", choose, who=who, reason=reason).changed:
            done.append(number)
            if not dry_run:
                _remove(tracker, known[number])
                logger.info("version %s retired", number)
    return done


def _remove(tracker: Tracker, version: ModelVersion) -> None:
    client = tracker.client
    number = str(version.version)
    with tracker.errors(f"retire version {number}"):
        if version.run_id:
            # Its run counts as trained no more: should the same dataset come back, it is trained anew.
            with contextlib.suppress(MlflowException):
                client.set_tag(version.run_id, RETIRED_TAG, datetime.now(UTC).isoformat(timespec="seconds"))
        # MLflow's databases do not keep `model_id`; the source that it was registered from names it.
        model_id = version.model_id or str(version.source).removeprefix("models:/")
        if model_id.startswith("m-"):
            tracker.remove_model(model_id)
        client.delete_model_version(REGISTERED_MODEL, number)
