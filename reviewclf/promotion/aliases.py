"""Where the aliases move: `challenger`, `champion`, `previous`. See :mod:`reviewclf.promotion.history`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.markup import escape
from rich.table import Table

from reviewclf.errors import GateError, RegistryError, StaleVerdictError
from reviewclf.promotion.history import Event, History, Promotion, State
from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS, REGISTERED_MODEL
from reviewclf.registry.model import aliases, find_version
from reviewclf.registry.tracking import Tracker

ANYONE = "anyone"
"""Stands for "whoever is champion"; numbers of versions are digits."""


def challenge(tracker: Tracker, version: str) -> None:
    """Point `challenger` at a version that passed the gate; the champion itself is no challenger."""
    if aliases(tracker).get(CHAMPION) != version:
        with tracker.errors("move the alias challenger"):
            tracker.client.set_registered_model_alias(REGISTERED_MODEL, CHALLENGER, version)


def promote(
    history: History,
    version: str,
    *,
    reason: str,
    who: str,
    force: bool = False,
    key: str = "",
    against: str | None = ANYONE,
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

    def choose(state: State) -> str | None:
        if version in state.retired:
            raise RegistryError(f"version {version} was retired: its files are gone")
        found = find_version(history.tracker, version)
        if found is None:
            raise RegistryError(
                f"there is no version {version!r} of {REGISTERED_MODEL!r} at {history.tracker.tracking_uri}; "
                "`reviewclf leaderboard` shows those of the newest retrain"
            )
        if state.champion == version:
            return None
        if found.tag("gate") != "passed" and not force:
            why = found.tag("gate_reason") or "the gate has not judged it"
            raise GateError(f"version {version} has not passed the gate ({why}); `--force` promotes it all the same")
        if against not in (ANYONE, state.champion):
            raise StaleVerdictError(
                f"version {version} was judged against {_named(against)}, but {_named(state.champion)} is champion by now: "
                "it needs a verdict against that one (the next retrain makes it), or `reviewclf promote` by hand"
            )
        return version

    return history.record("promote", choose, who=who, reason=reason, key=key)


def rollback(history: History, *, reason: str, who: str, key: str = "") -> Promotion:
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

    def choose(state: State) -> str:
        target = aliases(history.tracker).get(PREVIOUS)
        if target is None or target == state.champion:
            raise RegistryError(
                f"there is nothing to roll back to: no other version of {REGISTERED_MODEL!r} carries the alias {PREVIOUS!r}; "
                "`reviewclf promote VERSION --reason ...` makes any version the champion"
            )
        return target

    return history.record("rollback", choose, who=who, reason=reason, key=key)


def refuse(
    history: History, version: str, *, reason: str, who: str, action: Literal["reject", "expire"] = "reject", key: str = ""
) -> None:
    """Record that a person said no to the challenger, or (``expire``) that nobody answered in time; no alias moves."""
    history.record(action, lambda state: version, who=who, reason=reason, key=key)


def barred(history: History, version: str) -> str | None:
    """Why a version must not become champion by itself, or None.

    People (or a better candidate) have decided about it, and on the data it was judged by nothing has changed since: what
    was replaced or rejected does not come back with the same dataset and gold, and what was trained on the same dataset as
    a version that was rolled back does not take its place the night after.
    """
    data = history.data_of(version)
    for event in reversed(history.events()):
        is_about_it = (event.from_version == version != event.version) or (
            event.action == "reject" and event.version == version
        )
        was_taken_back = event.action in ("rollback", "move") and event.from_version and event.dataset
        if (is_about_it or was_taken_back) and {"dataset": event.dataset, "gold": event.gold} == data:
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
        cells = (event.version or "none", event.from_version or "", escape(event.who), escape(event.reason))
        table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S}", event.action, *cells)
    return table


def _named(version: str | None) -> str:
    return "nobody" if version is None else f"version {version}"
