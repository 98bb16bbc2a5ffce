"""Old versions go: which ones, and how, so that a killed attempt is finished by the next one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from reviewclf.promotion.history import Event, Ledger
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import RETIRED_TAG, Tracker

logger = logging.getLogger(__name__)

_ATTEMPTS = 20


def too_old(
    known: Sequence[ModelVersion], *, keep: Collection[str], keep_versions: int, keep_days: float, now: datetime
) -> list[str]:
    """Versions to retire, oldest first.

    Parameters
    ----------
    known : sequence of ModelVersion
        All versions, newest first.
    keep : collection of str
        Versions that stay whatever their age: those with an alias, and where a rollback of a rollback goes.
    keep_versions : int
        So many of the newest stay.
    keep_days : float
        Versions that are not older stay.
    now : datetime
        With time zone.
    """
    border = (now - timedelta(days=keep_days)).timestamp() * 1000
    old = [str(version.version) for version in known[keep_versions:] if version.creation_timestamp < border]
    return [version for version in reversed(old) if version not in keep]


def retire(
    tracker: Tracker, *, keep_versions: int, keep_days: float, who: str, dry_run: bool = False, now: datetime | None = None
) -> list[str]:
    """Remove old versions and their models' files; runs stay, with figures and reports.

    Parameters
    ----------
    dry_run : bool
        Only name them.
    now : datetime, optional
        For tests.

    Returns
    -------
    list of str
        Versions retired, oldest first.
    """
    ledger = Ledger(tracker)
    now = now or datetime.now(UTC)
    _, state = ledger.settled()
    known = versions(tracker)
    left_over = [str(version.version) for version in known if str(version.version) in state.retired]
    keep = {*state.kept, *aliases(tracker).values()}
    chosen = too_old(known, keep=keep, keep_versions=keep_versions, keep_days=keep_days, now=now)
    chosen = [version for version in chosen if version not in left_over]
    if dry_run:
        return [*left_over, *chosen]
    by_number = {str(version.version): version for version in known}
    done = []
    for number in [*left_over, *chosen]:
        version = by_number[number]
        if number in left_over or _announce(tracker, ledger, version, who=who, now=now):
            _remove(tracker, version)
            logger.info("version %s retired", number)
            done.append(number)
    return done


def _announce(tracker: Tracker, ledger: Ledger, version: ModelVersion, *, who: str, now: datetime) -> bool:
    """Put it into the history first: from then on nobody can promote it. False where somebody just did."""
    number = str(version.version)
    for _ in range(_ATTEMPTS):
        _, state = ledger.settled()
        if number in state.kept or number in aliases(tracker).values():
            return False
        days = (now.timestamp() - version.creation_timestamp / 1000) / 86_400
        event = Event(at=now, action="retire", version=number, who=who, reason=f"{days:.0f} days old, no alias")
        if ledger.append(event, after=state.head):
            ledger.follow()
            return True
    return False


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
