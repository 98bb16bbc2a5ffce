"""What can happen to the registry, and what it adds up to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

Action = Literal["promote", "rollback", "move", "reject", "expire", "retire"]


class Event(BaseModel, frozen=True):
    """One thing that happened to the registry.

    Attributes
    ----------
    at : datetime
        UTC.
    action : str
        ``promote``; ``rollback``; ``move``: somebody moved the alias `champion` outside of this package; ``reject``,
        ``expire``: a person said no to the challenger, or nothing in time; ``retire``: the version was removed for its age.
    version : str
        Champion after it (empty: none), or the version rejected or retired.
    from_version : str or None
        Champion before it.
    who, reason : str
        As they were given.
    previous : str or None
        Of a ``move``: where the alias `previous` pointed.
    dataset, gold : str
        Digests behind the verdict on the version that left or was rejected: it does not come back by itself on the same data.
    key : str
        Identity of the request, where it has one: a retried task does not act twice.
    number : int
        Position in the history, from 1.
    """

    at: datetime
    action: Action
    version: str
    from_version: str | None = None
    who: str = ""
    reason: str = ""
    previous: str | None = None
    dataset: str = ""
    gold: str = ""
    key: str = ""
    number: int = 0


class State(BaseModel, frozen=True):
    """What the events add up to: the champion, those below it (the last is where a rollback goes), and who is gone."""

    champion: str | None = None
    below: tuple[str, ...] = ()
    retired: frozenset[str] = frozenset()

    @property
    def previous(self) -> str | None:
        """Where a rollback goes."""
        return self.below[-1] if self.below else None

    @property
    def kept(self) -> set[str]:
        """Versions that must not be retired: the champion, `previous`, and what `previous` would be after a rollback."""
        return {version for version in (self.champion, *self.below[-2:]) if version}


class Promotion(BaseModel):
    """What a promotion or a rollback did.

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


def fold(events: Sequence[Event]) -> State:
    """State after `events`, oldest first."""
    champion: str | None = None
    below: list[str] = []
    for event in events:
        if event.action in ("reject", "expire"):
            continue
        if event.action == "promote" and champion:
            below = [*_without(below, champion), champion]
        elif event.action == "rollback":
            below = _without(below, champion)
        elif event.action == "move" and event.previous:
            below = [*_without(below, event.previous), event.previous]
        below = _without(below, event.version)
        if event.action != "retire":
            champion = event.version or None
    retired = frozenset(event.version for event in events if event.action == "retire")
    return State(champion=champion, below=tuple(below), retired=retired)


def _without(versions: Sequence[str], left_out: str | None) -> list[str]:
    return [version for version in versions if version != left_out]
