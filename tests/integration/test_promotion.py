"""Aliases and history on a real MLflow database: promotion, rollback, at once, killed between any two steps, by hand."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from reviewclf.errors import GateError, RegistryError, StaleVerdictError
from reviewclf.promotion.aliases import barred, challenge, history, promote, refuse, rollback
from reviewclf.promotion.history import Event, fold
from reviewclf.promotion.retention import retire
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import Tracker

VERSIONS = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with six versions; the last has not passed the gate. Promotion never looks at a model's files."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db")
    tracker.client.create_registered_model(REGISTERED_MODEL)
    for number in range(1, VERSIONS + 1):
        tags = {
            "reviewclf.gate": "passed" if number < VERSIONS else "failed",
            "reviewclf.gate_reason": "passed" if number < VERSIONS else "failed: weighted_f1 0.5 (needs >= 0.74)",
            "reviewclf.dataset": f"dataset-{number}",
            "reviewclf.gold": "gold-1",
        }
        tracker.client.create_model_version(REGISTERED_MODEL, source=f"{folder}/none", tags=tags)
    return folder / "mlflow.db"


@pytest.fixture
def tracker(template: Path, tmp_path: Path) -> Tracker:
    shutil.copy(template, tmp_path / "mlflow.db")
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db")


def tags_of(tracker: Tracker, version: str) -> dict[str, str]:
    return dict(tracker.client.get_model_version(REGISTERED_MODEL, version).tags)


def told(tracker: Tracker) -> list[tuple[str, str, str | None]]:
    """Action, version and version before it, oldest first."""
    return [(event.action, event.version, event.from_version) for event in reversed(history(tracker))]


def test_promotions_leave_a_way_back_and_say_who_and_why(tracker: Tracker) -> None:
    challenge(tracker, "1")
    first = promote(tracker, "1", reason="the first", who="anna")
    assert (first.champion, first.previous, first.changed) == ("1", None, True)
    second = promote(tracker, "2", reason="better", who="boris")
    assert (second.champion, second.previous, second.changed) == ("2", "1", True)
    assert aliases(tracker) == {"champion": "2", "previous": "1"}
    newest = history(tracker, newest=1)
    assert [(event.version, event.from_version, event.who, event.reason) for event in newest] == [("2", "1", "boris", "better")]
    assert abs(newest[0].at - datetime.now(UTC)) < timedelta(minutes=5)
    tags = tags_of(tracker, "2")
    assert (tags["reviewclf.promoted_by"], tags["reviewclf.promotion_reason"]) == ("boris", "better")
    assert tags["reviewclf.promoted_at"] == newest[0].at.isoformat(timespec="seconds")


def test_promoting_the_champion_changes_nothing(tracker: Tracker) -> None:
    promote(tracker, "1", reason="", who="anna")
    assert promote(tracker, "1", reason="again", who="boris").changed is False
    assert len(history(tracker)) == 1


def test_repeated_request_answers_like_the_first_and_moves_nothing(tracker: Tracker) -> None:
    promote(tracker, "1", reason="", who="anna")
    assert promote(tracker, "2", reason="", who="run", key="run 7").changed
    rollback(tracker, reason="bad", who="anna")
    again = promote(tracker, "2", reason="", who="run", key="run 7")
    assert (again.changed, again.champion) == (True, "1")
    assert aliases(tracker)["champion"] == "1"


def test_version_that_failed_the_gate_needs_force(tracker: Tracker) -> None:
    with pytest.raises(GateError, match=r"version 6 has not passed the gate \(failed: weighted_f1 0.5.*--force"):
        promote(tracker, "6", reason="", who="anna")
    assert history(tracker) == []
    assert promote(tracker, "6", reason="", who="anna", force=True).champion == "6"


@pytest.mark.parametrize("version", ["99", "newest"])
def test_unknown_version_is_named(tracker: Tracker, version: str) -> None:
    with pytest.raises(RegistryError, match=f"no version '{version}'"):
        promote(tracker, version, reason="", who="anna")


def test_verdict_against_somebody_who_is_champion_no_more_is_refused(tracker: Tracker) -> None:
    promote(tracker, "1", reason="", who="anna", against=None)
    promote(tracker, "2", reason="", who="anna", against="1")
    with pytest.raises(StaleVerdictError, match="judged against version 1, but version 2 is champion by now"):
        promote(tracker, "3", reason="", who="anna", against="1")
    assert aliases(tracker)["champion"] == "2"


def test_rollbacks_walk_back_through_the_champions(tracker: Tracker) -> None:
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback(tracker, reason="", who="anna")
    for version in "123":
        promote(tracker, version, reason="", who="anna")
    back = rollback(tracker, reason="sweaters under посуда", who="boris")
    assert (back.champion, back.previous, back.changed) == ("2", "1", True)
    tags = tags_of(tracker, "3")
    assert (tags["reviewclf.rolled_back_by"], tags["reviewclf.rollback_reason"]) == ("boris", "sweaters under посуда")
    assert rollback(tracker, reason="", who="boris").champion == "1"
    assert aliases(tracker) == {"champion": "1"}
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback(tracker, reason="", who="boris")
    # Promoted again, it is no longer one that was rolled back.
    promote(tracker, "3", reason="mended", who="anna", force=True)
    assert "reviewclf.rolled_back_by" not in tags_of(tracker, "3")


def test_what_was_rolled_back_or_rejected_stays_barred_until_the_data_change(tracker: Tracker) -> None:
    promote(tracker, "1", reason="", who="anna")
    promote(tracker, "2", reason="", who="anna")
    assert barred(tracker, "2") is None
    rollback(tracker, reason="wrong", who="boris")
    assert "rolled back by boris" in (barred(tracker, "2") or "")
    assert barred(tracker, "3") is None
    # Another candidate of the same dataset does not slip in instead of it.
    tracker.client.set_model_version_tag(REGISTERED_MODEL, "4", "reviewclf.dataset", "dataset-2")
    assert "a version of the same dataset (version 2) was rolled back" in (barred(tracker, "4") or "")
    tracker.client.set_model_version_tag(REGISTERED_MODEL, "2", "reviewclf.gold", "gold-2")
    assert barred(tracker, "2") is None
    refuse(tracker, "3", reason="not in December", who="vera")
    assert "rejected by vera" in (barred(tracker, "3") or "")
    refuse(tracker, "5", reason="nobody answered", who="", action="expire")
    assert barred(tracker, "5") is None
    assert aliases(tracker) == {"champion": "1"}


def test_alias_moved_in_mlflow_is_respected_and_recorded(tracker: Tracker) -> None:
    promote(tracker, "1", reason="", who="anna")
    promote(tracker, "2", reason="", who="anna")
    tracker.client.set_registered_model_alias(REGISTERED_MODEL, "champion", "4")
    assert promote(tracker, "5", reason="", who="anna").previous == "4"
    assert told(tracker)[-2:] == [("move", "4", "2"), ("promote", "5", "4")]
    assert rollback(tracker, reason="", who="anna").champion == "4"


def test_registry_without_a_history_gets_one(tracker: Tracker) -> None:
    tracker.client.set_registered_model_alias(REGISTERED_MODEL, "champion", "2")
    tracker.client.set_registered_model_alias(REGISTERED_MODEL, "previous", "1")
    assert promote(tracker, "3", reason="", who="anna").previous == "2"
    assert [rollback(tracker, reason="", who="anna").champion for _ in range(2)] == ["2", "1"]


def test_history_that_somebody_deleted_in_the_ui_is_restored(tracker: Tracker) -> None:
    promote(tracker, "1", reason="", who="anna")
    (run,) = tracker.find_runs({"reviewclf.kind": "promotions"})
    tracker.client.delete_run(run.info.run_id)
    promote(tracker, "2", reason="", who="anna")
    assert [event.version for event in history(tracker)] == ["2", "1"]


def _promote(uri: str, version: str, barrier: Any) -> None:
    tracker = Tracker(uri)
    barrier.wait()
    promote(tracker, version, reason="at once", who=f"process {version}")


def test_promotions_at_once_end_like_one_after_the_other(tracker: Tracker) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_promote, args=(tracker.tracking_uri, version, barrier)) for version in "1234"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    events = list(reversed(history(tracker)))
    assert sorted(event.version for event in events) == list("1234")
    # A chain: each followed the one before it, and none was overlooked.
    assert [event.from_version for event in events] == [None, *(event.version for event in events[:-1])]
    assert aliases(tracker) == {"champion": events[-1].version, "previous": events[-2].version}
    assert len(tracker.find_runs({"reviewclf.kind": "promotions"})) == 1
    for event in events:
        assert tags_of(tracker, event.version)["reviewclf.promoted_by"] == f"process {event.version}"


class Killed(BaseException):
    """What kills a process: no handler for errors sees it."""


WRITES = (
    "create_run",
    "set_terminated",
    "create_experiment",
    "log_param",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


def killed_at(tracker: Tracker, write: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
    """Do `action` until its `write`-th write, which does not happen any more; False where it ends before."""
    count = 0

    def dying(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > write:
                raise Killed
            return method(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(tracker.client, name, dying(getattr(tracker.client, name)))
        try:
            action()
        except Killed:
            return True
    return False


def fresh(template: Path, folder: Path) -> Iterator[tuple[int, Tracker]]:
    for write in range(100):
        path = folder / f"{write}.db"
        shutil.copy(template, path)
        yield write, Tracker(f"sqlite:///{path}")


def visible(tracker: Tracker) -> tuple[Any, ...]:
    tags = [{name: value for name, value in tags_of(tracker, v).items() if not name.endswith("_at")} for v in "123"]
    return aliases(tracker), told(tracker), tags


def test_promotion_killed_between_any_two_writes_is_finished_by_the_next_attempt(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def night(tracker: Tracker) -> object:
        challenge(tracker, "2")
        return promote(tracker, "2", reason="better", who="run", key="run 1")

    undisturbed = None
    kills = 0
    for write, tracker in fresh(template, tmp_path):
        if undisturbed is None:
            promote(tracker, "1", reason="", who="anna")
            night(tracker)
            undisturbed = visible(tracker)
            continue
        promote(tracker, "1", reason="", who="anna")
        if not killed_at(tracker, write - 1, monkeypatch, lambda tracker=tracker: night(tracker)):
            break
        kills += 1
        named = aliases(tracker)
        assert named["champion"] == "1" or named["previous"] == "1", "a new champion without a way back"
        night(tracker)
        assert visible(tracker) == undisturbed, write
    assert kills >= 7


def test_rollback_killed_between_any_two_writes_is_finished_by_whoever_comes_next(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 0
    for write, tracker in fresh(template, tmp_path):
        for version in "123":
            promote(tracker, version, reason="", who="anna")
        before = told(tracker)
        if not killed_at(tracker, write, monkeypatch, lambda tracker=tracker: rollback(tracker, reason="bad", who="boris")):
            break
        kills += 1
        done = promote(tracker, "4", reason="", who="vera")
        after = told(tracker)[len(before) :]
        # Either it happened, before the promotion, or it never did; nothing in between.
        assert after in ([("rollback", "2", "3"), ("promote", "4", "2")], [("promote", "4", "3")]), write
        assert done.previous == after[-1][2]
        assert aliases(tracker) == {"champion": "4", "previous": after[-1][2]}
    assert kills >= 5


def test_first_promotion_killed_anywhere_leaves_one_history(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write, tracker in fresh(template, tmp_path):
        if not killed_at(
            tracker, write, monkeypatch, lambda tracker=tracker: promote(tracker, "1", reason="", who="a", key="k")
        ):
            break
        promote(tracker, "1", reason="", who="a", key="k")
        assert told(tracker) == [("promote", "1", None)]
        assert aliases(tracker) == {"champion": "1"}


def test_sleeper_that_moves_the_aliases_late_puts_them_right(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(tracker, "1", reason="", who="anna")
    other = Tracker(tracker.tracking_uri)
    move, slept = tracker.client.set_registered_model_alias, []

    def sleepy(name: str, alias: str, version: str) -> None:
        if alias == "champion" and not slept:
            slept.append(version)
            promote(other, "3", reason="", who="boris")
        move(name, alias, version)

    monkeypatch.setattr(tracker.client, "set_registered_model_alias", sleepy)
    promote(tracker, "2", reason="", who="anna")
    assert slept == ["2"]
    assert told(tracker)[1:] == [("promote", "2", "1"), ("promote", "3", "2")]
    assert aliases(tracker) == {"champion": "3", "previous": "2"}


def test_old_versions_are_retired_but_never_one_that_is_needed(tracker: Tracker) -> None:
    for version in "123":
        promote(tracker, version, reason="", who="anna")
    challenge(tracker, "5")
    later = datetime.now(UTC) + timedelta(days=100)
    limits = {"keep_versions": 1, "keep_days": 90.0, "who": "night"}
    assert retire(tracker, **limits, dry_run=True, now=later) == ["4"]
    assert len(versions(tracker)) == VERSIONS
    assert retire(tracker, **limits) == [], "nothing is that old today"
    # 6 is the newest, 5 the challenger, 3 champion, 2 previous, and 1 where a second rollback goes.
    assert retire(tracker, **limits, now=later) == ["4"]
    assert [str(version.version) for version in versions(tracker)] == ["6", "5", "3", "2", "1"]
    assert retire(tracker, **limits, now=later) == []
    with pytest.raises(RegistryError, match="version 4 was retired"):
        promote(tracker, "4", reason="", who="anna", force=True)
    promote(tracker, "5", reason="", who="anna")
    assert retire(tracker, **limits, now=later) == ["1"]
    assert [rollback(tracker, reason="", who="anna").champion for _ in range(2)] == ["3", "2"]


def test_killed_retirement_is_finished_by_the_next_one(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(tracker, "6", reason="", who="anna", force=True)
    later = datetime.now(UTC) + timedelta(days=100)

    def dying(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "delete_model_version", dying)
        with pytest.raises(Killed):
            retire(tracker, keep_versions=1, keep_days=90, who="night", now=later)
    assert len(versions(tracker)) == VERSIONS
    assert retire(tracker, keep_versions=VERSIONS, keep_days=1000, who="night") == ["1"]


def test_state_is_what_the_events_add_up_to() -> None:
    def event(number: int, action: Any, version: str, **more: Any) -> Event:
        return Event(at=datetime.now(UTC), action=action, version=version, number=number, **more)

    events = [
        event(1, "promote", "1"),
        event(2, "promote", "2"),
        event(3, "reject", "7"),
        event(4, "promote", "1"),
        event(5, "move", "", previous="2"),
        event(6, "promote", "3"),
    ]
    below = [fold(events[:n]).below for n in range(1, 7)]
    assert below == [(), ("1",), ("1",), ("2",), ("2",), ("2",)]
    assert fold(events).kept == {"3", "2"}
    assert fold([*events, event(7, "retire", "2")]).previous is None
