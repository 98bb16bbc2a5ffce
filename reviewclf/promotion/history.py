"""The history of promotions: numbered events in the store, of which the aliases in MLflow are the visible end.

MLflow moves an alias without asking where it was, so two promotions at once could each believe that the other never was. A
manifest of the store, though, is written once: whoever commits number 7 first has decided what the seventh event is, and
everybody else learns of it. So an event is committed first, and the aliases follow it; whoever comes next finishes what a
killed process had begun. A process that slept through somebody else's event looks again after it has moved the aliases, and
moves them to where the newest event wants them. The same is done where MLflow was restored to a state of before the event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from mlflow.entities import ViewType

from reviewclf.errors import RegistryError, RegistryUnavailableError
from reviewclf.manifest import Manifest
from reviewclf.promotion.events import Action, Event, Promotion, State, fold
from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS, REGISTERED_MODEL
from reviewclf.registry.model import aliases, find_version, versions
from reviewclf.registry.tracking import KIND_TAG, Tracker
from reviewclf.settings import Settings
from reviewclf.store import Store

__all__ = ["Event", "History", "Promotion", "State", "fold"]

_ATTEMPTS = 50
_FAILURES = 8
_GRACE_SECONDS = 0.5
_RESTLESS = f"the aliases of {REGISTERED_MODEL!r} keep moving; try again when nobody else moves them"

# What an event writes on a version: when, who and why. A rollback writes it on the version that goes.
_TAGS = {
    "promote": ("reviewclf.promoted_at", "reviewclf.promoted_by", "reviewclf.promotion_reason"),
    "rollback": ("reviewclf.rolled_back_at", "reviewclf.rolled_back_by", "reviewclf.rollback_reason"),
    "reject": ("reviewclf.rejected_at", "reviewclf.rejected_by", "reviewclf.rejection_reason"),
}


class History:
    """What happened to the registered model of one MLflow server.

    Parameters
    ----------
    tracker : Tracker
        Where the aliases are.
    store : Store
        Where the events are.

    Raises
    ------
    RegistryError, StoreError
        From every method: the server or the store cannot be reached or refuses.
    """

    def __init__(self, tracker: Tracker, store: Store) -> None:
        self.tracker = tracker
        self._store = store
        self._stage = f"promotions/{tracker.identity.replace(':', '-')}"
        # By number. Events never change: only those that are new are read.
        self._events: dict[int, Event] = {}

    @classmethod
    def of(cls, settings: Settings) -> History:
        """The history that the settings lead to."""
        return cls(Tracker(settings.tracking_uri), Store(settings.store_uri))

    def events(self) -> list[Event]:
        """All events, oldest first; empty before the first one."""
        number = len(self._events)
        if not number and self._read(1) is None:
            self._import_from_mlflow()
        while (event := self._read(number := number + 1)) is not None:
            self._events[number] = event
        return list(self._events.values())

    def settle(self) -> list[Event]:
        """All events, after the aliases were brought to where the newest one wants them.

        An alias that somebody moved by other means since then stays where it is, and is recorded as a ``move``.
        """
        waited = False
        for _ in range(_ATTEMPTS):
            events = self.events()
            if events and not self._is_done(len(events)):
                self._follow()
                continue
            champion, named = fold(events).champion, aliases(self.tracker)
            if named.get(CHAMPION) == champion:
                return events
            if events and not waited:
                # A process that has just woken up may be about to put its late move right.
                waited = True
                time.sleep(_GRACE_SECONDS)
                continue
            if self._is_unheard_of(events):
                self._follow()
                continue
            moved = Event(
                at=datetime.now(UTC),
                action="move",
                version=named.get(CHAMPION) or "",
                from_version=champion,
                previous=named.get(PREVIOUS),
                reason=self._why_moved(champion) if events else "was champion before this history began",
                **self.data_of(champion),
            )
            if self._append(moved, len(events) + 1):
                self._mark_done(len(events) + 1)
        raise RegistryUnavailableError(_RESTLESS)

    def record(
        self, action: Action, choose: Callable[[State], str | None], *, who: str, reason: str, key: str = ""
    ) -> Promotion:
        """Commit one event, and move the aliases to where it wants them.

        Parameters
        ----------
        action : str
            What happens.
        choose : callable
            Takes the state of the moment and returns the version that it happens to, or None: nothing happens. It is called
            again where somebody else was quicker, and raises what makes the action impossible.
        key : str
            Identity of this request: a second call with the same key records nothing and answers like the first.
        """
        for _ in range(_ATTEMPTS):
            events = self.settle()
            state = fold(events)
            if key and any((event.key, event.action) == (key, action) for event in events):
                return Promotion(champion=state.champion, previous=state.previous, changed=True)
            if (version := choose(state)) is None:
                return Promotion(champion=state.champion, previous=state.previous, changed=False)
            moves = action in ("promote", "rollback")
            event = Event(
                at=datetime.now(UTC),
                action=action,
                version=version,
                from_version=state.champion if moves else None,
                # What MLflow and its databases take as a tag.
                who=who.replace("\0", "")[:200],
                reason=reason.replace("\0", "")[:2000],
                key=key,
                **self.data_of(state.champion if moves else version),
            )
            if self._append(event, len(events) + 1):
                state = self._follow()
                return Promotion(champion=state.champion, previous=state.previous, changed=True)
        raise RegistryUnavailableError(f"{action} was not recorded: {_RESTLESS}")

    def data_of(self, version: str | None) -> dict[str, str]:
        """Digests of the dataset and the gold behind the newest verdict on a version; empty ones where it is gone."""
        found = find_version(self.tracker, version) if version else None
        return {} if found is None else {"dataset": found.tag("dataset"), "gold": found.tag("gold")}

    def _is_unheard_of(self, events: Sequence[Event]) -> bool:
        """Whether MLflow was restored to a state of before the newest promotion or rollback, whose tags it then lacks."""
        event = next((event for event in reversed(events) if event.action not in ("reject", "expire", "retire")), None)
        if event is None or event.action not in _TAGS:
            return False
        champion, tagged = (find_version(self.tracker, number) for number in (event.version, _version_told_on(event)))
        # A version that was registered since then has got the number of one that was lost.
        if champion is None or tagged is None or max(champion.registered_at, tagged.registered_at) > event.at:
            return False
        return tagged.tags.get(_TAGS[event.action][0]) != _values(event)[0]

    def _why_moved(self, champion: str | None) -> str:
        if champion is None or find_version(self.tracker, champion) is not None:
            return "the alias was moved outside of reviewclf"
        return f"MLflow has no version {champion}: it was deleted, or MLflow was restored to an earlier state"

    # -- the events in the store -----------------------------------------------------------------------------------------

    def _read(self, number: int) -> Event | None:
        manifest = self._store.manifest(self._stage, f"{number:06d}")
        return None if manifest is None else Event.model_validate({**manifest.details, "number": number})

    def _append(self, event: Event, number: int) -> bool:
        """Make `event` the one with this number; False, and nothing happened, where somebody else was quicker."""
        details = event.model_dump(mode="json", exclude={"number"}, exclude_defaults=True)
        manifest = Manifest(stage=self._stage, digest=f"{number:06d}", details=details)
        return self._store.commit_manifest(manifest) == manifest

    def _is_done(self, number: int) -> bool:
        """Whether the aliases have followed an event."""
        return self._store.manifest(self._stage, f"{number:06d}-done") is not None

    def _mark_done(self, number: int) -> None:
        self._store.commit_manifest(Manifest(stage=self._stage, digest=f"{number:06d}-done"))

    def _import_from_mlflow(self) -> None:
        """Copy the events that earlier releases kept as parameters of a run; event 1 comes last: all or none count."""
        with self.tracker.errors("show the history of promotions"):
            runs = self.tracker.client.search_runs(
                [self.tracker.experiment_id], f"tags.`{KIND_TAG}` = 'promotions'", run_view_type=ViewType.ALL
            )
        params = {tuple(name.split("/")): value for run in runs for name, value in run.data.params.items()}
        for kind, number in sorted(params, key=lambda name: (name[0] == "done", name[1]), reverse=True):
            if kind == "done":
                self._mark_done(int(number))
            else:
                self._append(Event.model_validate_json(params[kind, number].partition(" ")[2]), int(number))

    # -- the aliases in MLflow -------------------------------------------------------------------------------------------

    def _follow(self) -> State:
        """Move the aliases to where the newest event wants them; also when a killed process had begun it."""
        failures = 0
        for _ in range(_ATTEMPTS):
            events = self.events()
            state = fold(events)
            try:
                self._move(state, events)
            except RegistryError:
                # Two processes that write the same new tag at once: MLflow refuses one of them.
                failures += 1
                if failures == _FAILURES:
                    raise
                time.sleep(0.05 * failures)
                continue
            if len(self.events()) == len(events):
                self._mark_done(len(events))
                return state
        raise RegistryUnavailableError(_RESTLESS)

    def _move(self, state: State, events: Sequence[Event]) -> None:
        """Tags, then `previous`, then `champion`: at no moment is there a new champion without a way back."""
        client, event = self.tracker.client, events[-1]
        named = aliases(self.tracker)
        with self.tracker.errors(f"{event.action} version {event.version}"):
            # Somebody may have deleted versions in MLflow, and with them their aliases: nothing can be said of them there.
            known = {str(version.version) for version in versions(self.tracker)}
            self._tag(event, known)
            if event.action in ("reject", "expire", "retire") and named.get(CHAMPION) == state.champion:
                return
            if state.champion is not None and state.champion not in known:
                return  # the aliases stay where they are, and so does the way back
            previous = next((version for version in reversed(state.below) if version in known), None)
            if previous is not None and named.get(PREVIOUS) != previous:
                client.set_registered_model_alias(REGISTERED_MODEL, PREVIOUS, previous)
            if self._read(len(events) + 1) is not None:
                return  # somebody else has decided since: what comes next looks again
            if state.champion is not None:
                client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, state.champion)
            if previous is None and PREVIOUS in named:
                client.delete_registered_model_alias(REGISTERED_MODEL, PREVIOUS)
            if state.champion is not None and named.get(CHALLENGER) == state.champion:
                client.delete_registered_model_alias(REGISTERED_MODEL, CHALLENGER)

    def _tag(self, event: Event, known: Collection[str]) -> None:
        """Say on the version's page in MLflow what happened to it, by whom and why."""
        version = _version_told_on(event)
        if event.action not in _TAGS or version not in known:
            return
        client = self.tracker.client
        for name, value in zip(_TAGS[event.action], _values(event), strict=True):
            client.set_model_version_tag(REGISTERED_MODEL, version, name, value)
        if event.action == "promote":
            # It is champion again: what was said against it before is in the history.
            tags = client.get_model_version(REGISTERED_MODEL, version).tags
            for name in (*_TAGS["rollback"], *_TAGS["reject"]):
                if name in tags:
                    client.delete_model_version_tag(REGISTERED_MODEL, version, name)


def _version_told_on(event: Event) -> str:
    """The version whose tags tell of an event."""
    return (event.from_version or "") if event.action == "rollback" else event.version


def _values(event: Event) -> tuple[str, str, str]:
    """When, who and why, as tags tell it."""
    return event.at.isoformat(timespec="seconds"), event.who, event.reason
