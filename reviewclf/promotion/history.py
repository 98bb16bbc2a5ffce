"""The history of promotions: an append-only list of events in MLflow, of which the aliases are the visible end.

MLflow moves an alias without asking what it was, so two promotions at once could each believe that the other never was. A
parameter of a run, though, is written once: whoever writes `event/000007` first has decided what the seventh event is, and
everybody else learns of it (optimistic concurrency, as in Delta Lake's log). So an event is appended first, and the aliases
follow it; whoever comes next finishes what a killed process had begun. A process that slept through somebody else's event
looks again after it has moved the aliases, and moves them to where the newest event wants them.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

from reviewclf.errors import RegistryError, RegistryUnavailableError
from reviewclf.outages import is_full
from reviewclf.registry import CHALLENGER, CHAMPION, EXPERIMENT, PREVIOUS, REGISTERED_MODEL
from reviewclf.registry.faults import registry_error
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import KIND_TAG, Tracker

logger = logging.getLogger(__name__)

Action = Literal["promote", "rollback", "move", "reject", "expire", "retire"]

_LEDGER_TAG = "reviewclf.promotions"
_KIND = "promotions"
_EVENT, _DONE = "event/", "done/"
_MAX_REASON = 2000
_ATTEMPTS = 50
_FAILURES = 8
_GRACE_SECONDS = 0.5
_RESTLESS = f"the aliases of {REGISTERED_MODEL!r} keep moving; try again when nobody else moves them"


class Event(BaseModel):
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

    model_config = ConfigDict(frozen=True)

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


class State(BaseModel):
    """What the events add up to: the champion, those below it (the last is where a rollback goes), and who is gone."""

    model_config = ConfigDict(frozen=True)

    champion: str | None = None
    below: tuple[str, ...] = ()
    retired: frozenset[str] = frozenset()
    head: int = 0

    @property
    def previous(self) -> str | None:
        """Where a rollback goes."""
        return self.below[-1] if self.below else None

    @property
    def kept(self) -> set[str]:
        """Versions that must not be retired: the champion, `previous`, and what `previous` would be after a rollback."""
        return {version for version in (self.champion, *self.below[-2:]) if version}


def fold(events: Sequence[Event]) -> State:
    """State after `events`, oldest first."""
    state = State()
    for event in events:
        champion, below = state.champion, list(state.below)
        if event.action == "promote":
            below = [*_without(below, event.version, champion), *([champion] if champion else [])]
            champion = event.version
        elif event.action == "rollback":
            below = _without(below, event.version, champion)
            champion = event.version
        elif event.action == "move":
            below = _without(below, event.version, event.previous)
            if event.previous and event.previous != event.version:
                below.append(event.previous)
            champion = event.version or None
        elif event.action == "retire":
            below = _without(below, event.version)
        gone = state.retired | {event.version} if event.action == "retire" else state.retired
        state = State(champion=champion, below=tuple(below), retired=gone, head=event.number)
    return state


class Ledger:
    """The events of one tracking server; the aliases follow them.

    Raises
    ------
    RegistryError
        The server cannot be reached or refuses.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._run_id: str | None = None

    # -- reading -----------------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """All events, oldest first; empty before the first one."""
        return self._read()[0]

    def settled(self) -> tuple[list[Event], State]:
        """Events and state, after the aliases were brought to where the newest event wants them.

        An alias that somebody moved by other means since then stays where it is, and is recorded as a ``move``.
        """
        waited = False
        for _ in range(_ATTEMPTS):
            events, done = self._read()
            state = fold(events)
            if state.head and state.head not in done:
                self.follow()
                continue
            named = aliases(self._tracker)
            if named.get(CHAMPION) == state.champion:
                return events, state
            if events and not waited:
                # A process that has just woken up may be about to put its late move right.
                waited = True
                time.sleep(_GRACE_SECONDS)
                continue
            moved = Event(
                at=datetime.now(UTC),
                action="move",
                version=named.get(CHAMPION) or "",
                from_version=state.champion,
                previous=named.get(PREVIOUS),
                reason="the alias was moved outside of reviewclf" if events else "was champion before this history began",
                **self.data_of(state.champion),
            )
            if self._has_grown(state):
                continue
            if self.append(moved, after=state.head):
                self._mark_done(state.head + 1)
        raise RegistryUnavailableError(
            f"the aliases of {REGISTERED_MODEL!r} keep moving; try again when nobody else moves them"
        )

    def data_of(self, version: str | None) -> dict[str, str]:
        """Digests of the dataset and the gold behind the newest verdict on a version; empty ones where it is gone."""
        if version is None:
            return {}
        try:
            tags = self._client.get_model_version(REGISTERED_MODEL, version).tags
        except MlflowException:
            return {}
        return {"dataset": tags.get("reviewclf.dataset", ""), "gold": tags.get("reviewclf.gold", "")}

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, event: Event, *, after: int) -> bool:
        """Make `event` the one after number `after`; False, and nothing happened, when somebody else was quicker."""
        number = after + 1
        name = f"{_EVENT}{number:06d}"
        # The token makes two events differ that look alike: MLflow takes a value written twice for one.
        short = event.model_copy(update={"reason": event.reason[:_MAX_REASON], "who": event.who[:200]})
        value = f"{uuid.uuid4().hex[:12]} {short.model_dump_json(exclude={'number'}, exclude_defaults=True)}"
        run_id = self._run(create=True)
        for attempt in range(_ATTEMPTS):
            try:
                self._client.log_param(str(run_id), name, value)
            except MlflowException as error:
                found = self._params().get(name)
                if found is not None:
                    return found == value
                # Nothing was written: the database was busy, or the server away for a moment. A full disk stays full.
                if attempt == _ATTEMPTS - 1 or is_full(error):
                    raise registry_error(error, self._tracker.tracking_uri, "take an event") from error
                time.sleep(0.1)
            else:
                return True
        return False

    def follow(self) -> State:
        """Move the aliases to where the newest event wants them; also when a killed process had begun it."""
        moved, failures = False, 0
        for _ in range(_ATTEMPTS):
            events, done = self._read()
            state = fold(events)
            if not events or (state.head in done and not moved):
                return state
            try:
                self._move(state, events[-1])
            except RegistryError:
                # Two processes that write the same new tag at once: MLflow refuses one of them.
                failures += 1
                if failures == _FAILURES:
                    raise
                time.sleep(0.05 * failures)
                continue
            finally:
                moved = True
            if len(self._read()[0]) == state.head:
                self._mark_done(state.head)
                return state
        raise RegistryUnavailableError(
            f"the aliases of {REGISTERED_MODEL!r} keep moving; try again when nobody else moves them"
        )

    def _move(self, state: State, event: Event) -> None:
        """Tags, then `previous`, then `champion`: at no moment is there a new champion without a way back."""
        client = self._client
        named = aliases(self._tracker)
        with self._tracker.errors(f"{event.action} version {event.version}"):
            # Somebody may have deleted versions in MLflow, and with them their aliases: nothing can be said of them there.
            known = {str(version.version) for version in versions(self._tracker)}
            _tag(self._tracker, event, known)
            if event.action in ("reject", "expire", "retire") and named.get(CHAMPION) == state.champion:
                return
            previous = next((version for version in reversed(state.below) if version in known), None)
            if previous is not None and named.get(PREVIOUS) != previous:
                client.set_registered_model_alias(REGISTERED_MODEL, PREVIOUS, previous)
            if self._has_grown(state):
                return
            if state.champion in known:
                client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, str(state.champion))
            if previous is None and PREVIOUS in named:
                client.delete_registered_model_alias(REGISTERED_MODEL, PREVIOUS)
            if state.champion is not None and named.get(CHALLENGER) == state.champion:
                client.delete_registered_model_alias(REGISTERED_MODEL, CHALLENGER)

    def _mark_done(self, number: int) -> None:
        with self._tracker.errors("record that the aliases have moved"):
            self._client.log_param(str(self._run(create=True)), f"{_DONE}{number:06d}", "yes")

    # -- the run that holds the events -------------------------------------------------------------------------------

    def _has_grown(self, state: State) -> bool:
        # Somebody may have appended an event, and moved the aliases, since the events were read.
        return len(self._read()[0]) != state.head

    def _read(self) -> tuple[list[Event], set[int]]:
        params = self._params()
        events = []
        for name in sorted(name for name in params if name.startswith(_EVENT)):
            number = int(name.removeprefix(_EVENT))
            event = Event.model_validate_json(params[name].partition(" ")[2])
            events.append(event.model_copy(update={"number": number}))
        return events, {int(name.removeprefix(_DONE)) for name in params if name.startswith(_DONE)}

    def _params(self) -> dict[str, str]:
        run_id = self._run(create=False)
        if run_id is None:
            return {}
        with self._tracker.errors("show the history of promotions"):
            return dict(self._client.get_run(run_id).data.params)

    def _run(self, *, create: bool) -> str | None:
        """Id of the run that holds the events.

        Names of experiments are unique, names of runs are not: an experiment without runs of its own, made in one step with
        a tag that names the run, says which run it is, however many were made at once.
        """
        if self._run_id is not None:
            return self._run_id
        with self._tracker.errors("find the history of promotions"):
            for generation in range(100):
                name = f"{EXPERIMENT}-promotions" + (f"-{generation}" if generation else "")
                run = self._named_by(name, create=create)
                if run == "":
                    return None
                if run is not None:
                    self._run_id = run
                    return run
        raise RegistryError("the runs that held the history of promotions were all removed from MLflow for good")

    def _named_by(self, name: str, *, create: bool) -> str | None:
        """Run that the experiment `name` names; None where that run is gone for good, empty where there is no experiment."""
        marker = self._client.get_experiment_by_name(name)
        if marker is None:
            if not create:
                return ""
            made = self._make(name)
            if made is not None:
                return made
            marker = self._client.get_experiment_by_name(name)
        run_id = "" if marker is None else str(marker.tags.get(_LEDGER_TAG, ""))
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            # Somebody tidied up in the UI; what happened to the registry is not his to forget.
            self._client.restore_run(run_id)
        return run_id

    def _make(self, name: str) -> str | None:
        run: Run = self._client.create_run(
            self._tracker.experiment_id,
            run_name="promotions",
            tags={
                KIND_TAG: _KIND,
                "mlflow.note.content": "History of promotions: one parameter an event. The aliases of the registered model "
                "follow it; do not delete this run.",
            },
        )
        run_id = str(run.info.run_id)
        self._client.set_terminated(run_id, "FINISHED")
        note = "Names the run that holds the history of promotions, by its tag; it has no runs of its own."
        try:
            self._client.create_experiment(name, tags={_LEDGER_TAG: run_id, "mlflow.note.content": note})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            self._client.delete_run(run_id)
            return None
        return run_id


# What an event writes on a version, and on which: name of the time and of who, name of the reason.
_TAGGED = {"promote": ("promoted", "promotion"), "rollback": ("rolled_back", "rollback"), "reject": ("rejected", "rejection")}


def _tag(tracker: Tracker, event: Event, known: Collection[str]) -> None:
    """What the version's page in MLflow says about the event."""
    version = (event.from_version or "") if event.action == "rollback" else event.version
    if event.action not in _TAGGED or version not in known:
        return
    past, noun = _TAGGED[event.action]
    said = {f"{past}_at": event.at.isoformat(timespec="seconds"), f"{past}_by": event.who, f"{noun}_reason": event.reason}
    for name, value in said.items():
        tracker.client.set_model_version_tag(REGISTERED_MODEL, version, f"reviewclf.{name}", value)
    if event.action != "promote":
        return
    # It is champion again: what was said against it before is in the history.
    tags = tracker.client.get_model_version(REGISTERED_MODEL, version).tags
    for past, noun in (_TAGGED["rollback"], _TAGGED["reject"]):
        for name in (f"reviewclf.{past}_at", f"reviewclf.{past}_by", f"reviewclf.{noun}_reason"):
            if name in tags:
                tracker.client.delete_model_version_tag(REGISTERED_MODEL, version, name)


def _without(versions: Sequence[str], *left_out: str | None) -> list[str]:
    return [version for version in versions if version not in left_out]
