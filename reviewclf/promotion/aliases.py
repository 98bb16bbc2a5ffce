"""Where the aliases move: `challenger`, `champion`, `previous`. See :mod:`reviewclf.promotion.history`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from reviewclf.errors import GateError, RegistryError, RegistryUnavailableError, StaleVerdictError
from reviewclf.promotion.history import Event, Ledger, State
from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS, REGISTERED_MODEL
from reviewclf.registry.faults import registry_error
from reviewclf.registry.model import aliases
from reviewclf.registry.tracking import Tracker

__all__ = [
    "Event",
    "Promotion",
    "barred",
    "challenge",
    "history",
    "promote",
    "refuse",
    "render",
    "rollback",
    "withdraw_challenger",
]

_ATTEMPTS = 50


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


class _Anyone:
    """Stands for "whoever is champion"."""


ANYONE = _Anyone()


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


def history(tracker: Tracker, newest: int = 50) -> list[Event]:
    """What happened to the registry, newest first."""
    return Ledger(tracker).events()[::-1][:newest]


def promote(
    tracker: Tracker,
    version: str,
    *,
    reason: str,
    who: str,
    force: bool = False,
    key: str = "",
    against: str | _Anyone | None = ANYONE,
) -> Promotion:
    """Make `version` the champion and the old champion `previous`.

    Of two calls at once the result is that of one after the other; a call that was killed at any point is finished by the
    next one, whoever makes it.

    Parameters
    ----------
    version : str
        Number of a version of the registered model.
    reason, who : str
        Recorded in the history and on the version.
    force : bool
        Promote a version that has not passed the gate.
    key : str
        Identity of this request: a second call with the same key moves nothing and answers like the first.
    against : str or None
        The champion that the verdict was made against (None: there was none). Default: whoever is champion.

    Raises
    ------
    GateError
        The version has not passed the gate, and `force` was not given.
    StaleVerdictError
        Somebody else than `against` is champion by now.
    RegistryError
        There is no such version, or it was retired.
    """
    ledger = Ledger(tracker)
    for _ in range(_ATTEMPTS):
        events, state = ledger.settled()
        if key and any(event.key == key and event.action == "promote" for event in events):
            return _answer(state, changed=True)
        found = _version(tracker, version, state)
        if state.champion == version:
            return _answer(state, changed=False)
        _check(found, force=force)
        if not isinstance(against, _Anyone) and state.champion != against:
            raise StaleVerdictError(
                f"version {version} was judged against {_named(against)}, but {_named(state.champion)} is champion by now: "
                "it needs a verdict against that one (the next retrain makes it), or `reviewclf promote` by hand"
            )
        event = Event(
            at=_now(),
            action="promote",
            version=version,
            from_version=state.champion,
            who=who,
            reason=reason,
            key=key,
            **ledger.data_of(state.champion),
        )
        if ledger.append(event, after=state.head):
            return _answer(ledger.follow(), changed=True)
    raise RegistryUnavailableError(f"version {version} was not promoted: others keep moving the champion; try again")


def rollback(tracker: Tracker, *, reason: str, who: str, key: str = "") -> Promotion:
    """Make `previous` the champion again; `previous` becomes the champion before that one, where there was one.

    Parameters
    ----------
    reason, who : str
        Recorded in the history and on the version that goes.
    key : str
        As in :func:`promote`.

    Raises
    ------
    RegistryError
        There is nothing to return to.
    """
    ledger = Ledger(tracker)
    for _ in range(_ATTEMPTS):
        events, state = ledger.settled()
        if key and any(event.key == key and event.action == "rollback" for event in events):
            return _answer(state, changed=True)
        target = aliases(tracker).get(PREVIOUS)
        if target is None or target == state.champion:
            raise RegistryError(
                f"there is nothing to roll back to: no other version of {REGISTERED_MODEL!r} carries the alias {PREVIOUS!r}; "
                "`reviewclf promote VERSION --reason ...` makes any version the champion"
            )
        event = Event(
            at=_now(),
            action="rollback",
            version=target,
            from_version=state.champion,
            who=who,
            reason=reason,
            key=key,
            **ledger.data_of(state.champion),
        )
        if ledger.append(event, after=state.head):
            return _answer(ledger.follow(), changed=True)
    raise RegistryUnavailableError("nothing was rolled back: others keep moving the champion; try again")


def refuse(
    tracker: Tracker, version: str, *, reason: str, who: str, action: Literal["reject", "expire"] = "reject", key: str = ""
) -> None:
    """Record that a person said no to the challenger, or (``expire``) that nobody answered in time; no alias moves."""
    ledger = Ledger(tracker)
    for _ in range(_ATTEMPTS):
        events, state = ledger.settled()
        if key and any(event.key == key and event.action == action for event in events):
            return
        event = Event(at=_now(), action=action, version=version, who=who, reason=reason, key=key, **ledger.data_of(version))
        if ledger.append(event, after=state.head):
            ledger.follow()
            return
    raise RegistryUnavailableError(
        f"the answer about version {version} was not recorded: others keep moving the champion; try again"
    )


def barred(tracker: Tracker, version: str) -> str | None:
    """Why a version must not become champion by itself, or None.

    People (or a better candidate) have decided about it, and on the data it was judged by nothing has changed since: what
    was replaced or rejected does not come back with the same dataset and gold, and what was trained on the same dataset as
    a version that was rolled back does not take its place the night after.
    """
    ledger = Ledger(tracker)
    data = ledger.data_of(version)
    events = ledger.events()
    left = [event for event in events if event.from_version == version and event.version != version]
    refused = [event for event in events if event.action == "reject" and event.version == version]
    taken_back = [event for event in events if event.action in ("rollback", "move") and event.from_version and event.dataset]
    for event in sorted({*left, *refused, *taken_back}, key=lambda event: -event.number):
        if {"dataset": event.dataset, "gold": event.gold} == data:
            return _why_barred(event, version)
    return None


def _why_barred(event: Event, version: str) -> str:
    gone = event.version if event.action == "reject" else event.from_version
    did = {"reject": "was rejected", "rollback": "was rolled back"}.get(event.action, "was replaced as champion")
    by = f" by {event.who}" if event.who else ""
    why = f": {event.reason}" if event.reason else ""
    same = "it" if gone == version else "a version of the same dataset"
    return (
        f"{same} (version {gone}) {did}{by} on {event.at:%Y-%m-%d}{why}; neither dataset nor gold has changed since. "
        f"`reviewclf promote {version} --reason ...` promotes it all the same"
    )


def render(events: Sequence[Event]) -> Table:
    """The history as a table for the terminal."""
    table = Table(title=f"History of {REGISTERED_MODEL}" if events else "Nothing has been promoted yet")
    for name in ("when (UTC)", "what", "version", "from", "who", "why"):
        table.add_column(name, no_wrap=name not in ("who", "why"))
    for event in events:
        when = f"{event.at:%Y-%m-%d %H:%M:%S}"
        cells = (event.version or "none", event.from_version or "", escape(event.who), escape(event.reason))
        table.add_row(when, event.action, *cells)
    return table


def _version(tracker: Tracker, version: str, state: State) -> ModelVersion:
    if version in state.retired:
        raise RegistryError(f"version {version} was retired: its files are gone")
    try:
        return tracker.client.get_model_version(REGISTERED_MODEL, version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RegistryError(
                f"there is no version {version!r} of {REGISTERED_MODEL!r} at {tracker.tracking_uri}; "
                "`reviewclf leaderboard` shows those of the newest retrain"
            ) from error
        raise registry_error(error, tracker.tracking_uri, f"show version {version}") from error


def _check(found: ModelVersion, *, force: bool) -> None:
    verdict = found.tags.get("reviewclf.gate")
    if verdict == "passed" or force:
        return
    reason = found.tags.get("reviewclf.gate_reason") or "the gate has not judged it"
    raise GateError(f"version {found.version} has not passed the gate ({reason}); `--force` promotes it all the same")


def _answer(state: State, *, changed: bool) -> Promotion:
    return Promotion(champion=state.champion, previous=state.previous, changed=changed)


def _named(version: str | None) -> str:
    return "nobody" if version is None else f"version {version}"


def _now() -> datetime:
    return datetime.now(UTC)
