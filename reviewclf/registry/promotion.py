"""Where the aliases move: `challenger`, `champion`, `previous`."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel

from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS, REGISTERED_MODEL
from reviewclf.registry.model import aliases
from reviewclf.registry.tracking import Tracker


class Promotion(BaseModel):
    """What a promotion did.

    Attributes
    ----------
    champion : str or None
        Version that production follows now.
    previous : str or None
        Version that a rollback would return to.
    changed : bool
        Whether the champion is another version than before.
    """

    champion: str | None
    previous: str | None
    changed: bool


def challenge(tracker: Tracker, version: str) -> None:
    """Point `challenger` at a version that passed the gate; the champion itself is no challenger."""
    if aliases(tracker).get(CHAMPION) == version:
        return
    with tracker.errors("move the alias challenger"):
        tracker.client.set_registered_model_alias(REGISTERED_MODEL, CHALLENGER, version)


def withdraw_challenger(tracker: Tracker) -> None:
    """Take the alias `challenger` away, where it is set."""
    if CHALLENGER in aliases(tracker):
        with tracker.errors("remove the alias challenger"):
            tracker.client.delete_registered_model_alias(REGISTERED_MODEL, CHALLENGER)


def promote(tracker: Tracker, version: str, *, reason: str, who: str) -> Promotion:
    """Make `version` the champion and the old champion `previous`.

    Repeating it moves nothing, and where the same `who` repeats it (a retried task) the answer is that of the first time,
    also after a kill between two of its steps: `previous` moves first, so that at no
    moment is there a champion without a way back, and a version that is champion already is left alone.
    """
    known = aliases(tracker)
    old = known.get(CHAMPION)
    changed = old != version
    with tracker.errors(f"promote version {version}"):
        if not changed:
            tags = tracker.client.get_model_version(REGISTERED_MODEL, version).tags
            changed = who != "" and tags.get("reviewclf.promoted_by") == who
        if old != version:
            if old is not None:
                tracker.client.set_registered_model_alias(REGISTERED_MODEL, PREVIOUS, old)
            for name, value in (
                ("promoted_at", datetime.now(UTC).isoformat(timespec="seconds")),
                ("promoted_by", who),
                ("promotion_reason", reason),
            ):
                tracker.client.set_model_version_tag(REGISTERED_MODEL, version, f"reviewclf.{name}", value)
            tracker.client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    if known.get(CHALLENGER) == version:
        withdraw_challenger(tracker)
    return Promotion(champion=version, previous=aliases(tracker).get(PREVIOUS), changed=changed)
