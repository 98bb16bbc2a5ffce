"""Old versions go: which ones, and how, so that a killed attempt is finished by the next one."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime
from functools import partial

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
    needed = {*_needed(tracker, state), *list(known)[:keep_versions]}
    # What a killed attempt has left is finished.
    left_over = state.retired & known.keys()
    too_old = [number for number in known if number not in needed and days[number] > keep_days]
    chosen = sorted({*too_old, *left_over}, key=int)
    if dry_run:
        return chosen
    done = []
    for number in chosen:
        # The history says first that a version is gone: from then on nobody can promote it.
        choose = partial(lambda number, state: None if number in _needed(tracker, state) else number, number)
        reason = f"{days[number]:.0f} days old, no alias"
        if number in left_over or history.record("retire", choose, who=who, reason=reason).changed:
            _remove(tracker, known[number])
            logger.info("version %s retired", number)
            done.append(number)
    return done


def _needed(tracker: Tracker, state: State) -> set[str]:
    return {*state.kept, *aliases(tracker).values()}


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
