"""Aliases and history on a real MLflow database: promotion, rollback, at once, killed between any two steps, by hand."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from reviewclf.errors import GateError, RegistryError, StaleVerdictError
from reviewclf.promotion.aliases import barred, challenge, promote, refuse, rollback
from reviewclf.promotion.history import Event, History, fold
from reviewclf.promotion.retention import retire
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import Tracker
from reviewclf.store import Store

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


def open_history(folder: Path) -> History:
    return History(Tracker(f"sqlite:///{folder}/mlflow.db"), Store(str(folder / "store")))


@pytest.fixture
def history(template: Path, tmp_path: Path) -> History:
    shutil.copy(template, tmp_path / "mlflow.db")
    return open_history(tmp_path)


def tags_of(history: History, version: str) -> dict[str, str]:
    return dict(history.tracker.client.get_model_version(REGISTERED_MODEL, version).tags)


def told(history: History) -> list[tuple[str, str, str | None]]:
    """Action, version and version before it, oldest first."""
    return [(event.action, event.version, event.from_version) for event in history.events()]


def test_promotions_leave_a_way_back_and_say_who_and_why(history: History) -> None:
    challenge(history.tracker, "1")
    first = promote(history, "1", reason="the first", who="anna")
    assert (first.champion, first.previous, first.changed) == ("1", None, True)
    second = promote(history, "2", reason="better", who="boris")
    assert (second.champion, second.previous, second.changed) == ("2", "1", True)
    assert aliases(history.tracker) == {"champion": "2", "previous": "1"}
    newest = history.events()[-1:]
    assert [(event.version, event.from_version, event.who, event.reason) for event in newest] == [("2", "1", "boris", "better")]
    assert abs(newest[0].at - datetime.now(UTC)) < timedelta(minutes=5)
    tags = tags_of(history, "2")
    assert (tags["reviewclf.promoted_by"], tags["reviewclf.promotion_reason"]) == ("boris", "better")
    assert tags["reviewclf.promoted_at"] == newest[0].at.isoformat(timespec="seconds")


def test_promoting_the_champion_changes_nothing(history: History) -> None:
    promote(history, "1", reason="", who="anna")
    assert promote(history, "1", reason="again", who="boris").changed is False
    assert len(history.events()) == 1


def test_repeated_request_answers_like_the_first_and_moves_nothing(history: History) -> None:
    promote(history, "1", reason="", who="anna")
    assert promote(history, "2", reason="", who="run", key="run 7").changed
    rollback(history, reason="bad", who="anna")
    again = promote(history, "2", reason="", who="run", key="run 7")
    assert (again.changed, again.champion) == (True, "1")
    assert aliases(history.tracker)["champion"] == "1"


def test_reason_longer_than_mlflow_keeps_stops_nobody_after_it(history: History) -> None:
    promote(history, "1", reason="why\0 " + "because " * 20_000, who="anna")
    assert tags_of(history, "1")["reviewclf.promotion_reason"].startswith("why because")
    assert promote(history, "2", reason="better", who="boris").champion == "2"


def test_version_that_failed_the_gate_needs_force(history: History) -> None:
    with pytest.raises(GateError, match=r"version 6 has not passed the gate \(failed: weighted_f1 0.5.*--force"):
        promote(history, "6", reason="", who="anna")
    assert history.events() == []
    assert promote(history, "6", reason="", who="anna", force=True).champion == "6"


@pytest.mark.parametrize("version", ["99", "newest"])
def test_unknown_version_is_named(history: History, version: str) -> None:
    with pytest.raises(RegistryError, match=f"no version '{version}'"):
        promote(history, version, reason="", who="anna")


def test_verdict_against_somebody_who_is_champion_no_more_is_refused(history: History) -> None:
    promote(history, "1", reason="", who="anna", against=None)
    promote(history, "2", reason="", who="anna", against="1")
    with pytest.raises(StaleVerdictError, match="judged against version 1, but version 2 is champion by now"):
        promote(history, "3", reason="", who="anna", against="1")
    assert aliases(history.tracker)["champion"] == "2"


def test_rollbacks_walk_back_through_the_champions(history: History) -> None:
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback(history, reason="", who="anna")
    for version in "123":
        promote(history, version, reason="", who="anna")
    back = rollback(history, reason="sweaters under посуда", who="boris")
    assert (back.champion, back.previous, back.changed) == ("2", "1", True)
    tags = tags_of(history, "3")
    assert (tags["reviewclf.rolled_back_by"], tags["reviewclf.rollback_reason"]) == ("boris", "sweaters under посуда")
    assert rollback(history, reason="", who="boris").champion == "1"
    assert aliases(history.tracker) == {"champion": "1"}
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback(history, reason="", who="boris")
    # Promoted again, it is no longer one that was rolled back.
    promote(history, "3", reason="mended", who="anna", force=True)
    assert "reviewclf.rolled_back_by" not in tags_of(history, "3")


def test_what_was_rolled_back_or_rejected_stays_barred_until_the_data_change(history: History) -> None:
    promote(history, "1", reason="", who="anna")
    promote(history, "2", reason="", who="anna")
    assert barred(history, "2") is None
    rollback(history, reason="wrong", who="boris")
    assert "rolled back by boris" in (barred(history, "2") or "")
    assert barred(history, "3") is None
    # Another candidate of the same dataset does not slip in instead of it.
    history.tracker.client.set_model_version_tag(REGISTERED_MODEL, "4", "reviewclf.dataset", "dataset-2")
    assert "a version of the same dataset (version 2) was rolled back" in (barred(history, "4") or "")
    history.tracker.client.set_model_version_tag(REGISTERED_MODEL, "2", "reviewclf.gold", "gold-2")
    assert barred(history, "2") is None
    refuse(history, "3", reason="not in December", who="vera")
    assert "rejected by vera" in (barred(history, "3") or "")
    refuse(history, "5", reason="nobody answered", who="", action="expire")
    assert barred(history, "5") is None
    assert aliases(history.tracker) == {"champion": "1"}


def test_alias_moved_in_mlflow_is_respected_and_recorded(history: History) -> None:
    promote(history, "1", reason="", who="anna")
    promote(history, "2", reason="", who="anna")
    history.tracker.client.set_registered_model_alias(REGISTERED_MODEL, "champion", "4")
    assert promote(history, "5", reason="", who="anna").previous == "4"
    assert told(history)[-2:] == [("move", "4", "2"), ("promote", "5", "4")]
    assert rollback(history, reason="", who="anna").champion == "4"


def restored(history: History, tmp_path: Path, before: Path) -> History:
    """The same history, over MLflow as it was before; a second process, for the first one knows too much."""
    with sqlite3.connect(before) as source, sqlite3.connect(tmp_path / "mlflow.db") as target:
        source.backup(target)
    return open_history(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda history: promote(history, "3", reason="better", who="boris"), id="promotion"),
        pytest.param(lambda history: rollback(history, reason="worse", who="boris"), id="rollback"),
    ],
)
def test_what_mlflow_forgot_because_it_was_restored_is_done_again(
    history: History, tmp_path: Path, change: Callable[[History], object]
) -> None:
    for version in "12":
        promote(history, version, reason="", who="anna")
    before = Path(shutil.copy(tmp_path / "mlflow.db", tmp_path / "before.db"))
    change(history)
    refuse(history, "4", reason="no", who="boris")
    events, named = history.events(), aliases(history.tracker)
    later = restored(history, tmp_path, before)
    assert aliases(later.tracker) != named
    assert later.settle() == events
    assert aliases(later.tracker) == named


def test_champion_that_mlflow_forgot_leaves_the_one_before_and_a_way_back(history: History, tmp_path: Path) -> None:
    for version in "12":
        promote(history, version, reason="", who="anna")
    before = Path(shutil.copy(tmp_path / "mlflow.db", tmp_path / "before.db"))
    client = history.tracker.client
    made = client.create_model_version(REGISTERED_MODEL, source="none", tags={"reviewclf.gate": "passed"})
    promote(history, str(made.version), reason="better", who="night")
    later = restored(history, tmp_path, before)
    # The next retrain gets the number of the version that was lost.
    again = client.create_model_version(REGISTERED_MODEL, source="none", tags={"reviewclf.gate": "failed"})
    assert again.version == made.version
    assert later.settle()[-1].action == "move"
    assert aliases(later.tracker) == {"champion": "2", "previous": "1"}
    assert rollback(later, reason="", who="anna").champion == "1"


def test_event_of_a_version_that_mlflow_forgot_leaves_the_aliases_alone(history: History, tmp_path: Path) -> None:
    for version in "12":
        promote(history, version, reason="", who="anna")
    before = Path(shutil.copy(tmp_path / "mlflow.db", tmp_path / "before.db"))
    made = history.tracker.client.create_model_version(REGISTERED_MODEL, source="none", tags={"reviewclf.gate": "passed"})
    promote(history, str(made.version), reason="better", who="night")
    # The back-up holds the event, but not yet that the aliases have followed it.
    (done,) = (tmp_path / "store").rglob("000003-done.json")
    done.unlink()
    later = restored(history, tmp_path, before)
    assert later.settle()[-1].reason.startswith(f"MLflow has no version {made.version}")
    assert aliases(later.tracker) == {"champion": "2", "previous": "1"}
    assert rollback(later, reason="", who="anna").champion == "1"


def test_registry_without_a_history_gets_one(history: History) -> None:
    history.tracker.client.set_registered_model_alias(REGISTERED_MODEL, "champion", "2")
    history.tracker.client.set_registered_model_alias(REGISTERED_MODEL, "previous", "1")
    assert promote(history, "3", reason="", who="anna").previous == "2"
    assert [rollback(history, reason="", who="anna").champion for _ in range(2)] == ["2", "1"]


def test_history_of_earlier_releases_is_taken_over(history: History, tmp_path: Path) -> None:
    """They kept it as parameters of an MLflow run, which somebody may have deleted in the UI."""
    client = history.tracker.client
    run_id = client.create_run(history.tracker.experiment_id, tags={"reviewclf.kind": "promotions"}).info.run_id
    for number, (version, before) in enumerate([("1", None), ("2", "1")], start=1):
        event = Event(at=datetime.now(UTC), action="promote", version=version, from_version=before, who="anna")
        client.log_param(run_id, f"event/{number:06d}", f"0123456789ab {event.model_dump_json(exclude_defaults=True)}")
        client.log_param(run_id, f"done/{number:06d}", "yes")
    client.delete_run(run_id)
    client.set_registered_model_alias(REGISTERED_MODEL, "champion", "2")
    client.set_registered_model_alias(REGISTERED_MODEL, "previous", "1")
    assert told(history) == [("promote", "1", None), ("promote", "2", "1")]
    promote(open_history(tmp_path), "3", reason="", who="boris")
    assert told(history)[2:] == [("promote", "3", "2")]
    assert [event.who for event in history.events()] == ["anna", "anna", "boris"]


def _promote(folder: Path, version: str, barrier: Any) -> None:
    history = open_history(folder)
    barrier.wait()
    promote(history, version, reason="at once", who=f"process {version}")


def test_promotions_at_once_end_like_one_after_the_other(history: History, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_promote, args=(tmp_path, version, barrier)) for version in "1234"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    events = history.events()
    assert sorted(event.version for event in events) == list("1234")
    # A chain: each followed the one before it, and none was overlooked.
    assert [event.from_version for event in events] == [None, *(event.version for event in events[:-1])]
    assert aliases(history.tracker) == {"champion": events[-1].version, "previous": events[-2].version}
    for event in events:
        assert tags_of(history, event.version)["reviewclf.promoted_by"] == f"process {event.version}"


class Killed(BaseException):
    """What kills a process: no handler for errors sees it."""


WRITES = (
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


def killed_at(history: History, write: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
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
            patch.setattr(history.tracker.client, name, dying(getattr(history.tracker.client, name)))
        patch.setattr(Store, "commit_manifest", dying(Store.commit_manifest))
        try:
            action()
        except Killed:
            return True
    return False


def fresh(template: Path, folder: Path) -> Iterator[tuple[int, History]]:
    for write in range(100):
        (folder / f"{write}").mkdir()
        shutil.copy(template, folder / f"{write}" / "mlflow.db")
        yield write, open_history(folder / f"{write}")


def visible(history: History) -> tuple[Any, ...]:
    tags = [{name: value for name, value in tags_of(history, v).items() if not name.endswith("_at")} for v in "123"]
    return aliases(history.tracker), told(history), tags


def test_promotion_killed_between_any_two_writes_is_finished_by_the_next_attempt(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def night(history: History) -> object:
        challenge(history.tracker, "2")
        return promote(history, "2", reason="better", who="run", key="run 1")

    undisturbed = None
    kills = 0
    for write, history in fresh(template, tmp_path):
        if undisturbed is None:
            promote(history, "1", reason="", who="anna")
            night(history)
            undisturbed = visible(history)
            continue
        promote(history, "1", reason="", who="anna")
        if not killed_at(history, write - 1, monkeypatch, lambda history=history: night(history)):
            break
        kills += 1
        named = aliases(history.tracker)
        assert named["champion"] == "1" or named["previous"] == "1", "a new champion without a way back"
        night(history)
        assert visible(history) == undisturbed, write
    assert kills >= 7


def test_rollback_killed_between_any_two_writes_is_finished_by_whoever_comes_next(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 0
    for write, history in fresh(template, tmp_path):
        for version in "123":
            promote(history, version, reason="", who="anna")
        before = told(history)
        if not killed_at(history, write, monkeypatch, lambda history=history: rollback(history, reason="bad", who="boris")):
            break
        kills += 1
        done = promote(history, "4", reason="", who="vera")
        after = told(history)[len(before) :]
        # Either it happened, before the promotion, or it never did; nothing in between.
        assert after in ([("rollback", "2", "3"), ("promote", "4", "2")], [("promote", "4", "3")]), write
        assert done.previous == after[-1][2]
        assert aliases(history.tracker) == {"champion": "4", "previous": after[-1][2]}
    assert kills >= 5


def test_first_promotion_killed_anywhere_leaves_one_history(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write, history in fresh(template, tmp_path):
        if not killed_at(
            history, write, monkeypatch, lambda history=history: promote(history, "1", reason="", who="a", key="k")
        ):
            break
        promote(history, "1", reason="", who="a", key="k")
        assert told(history) == [("promote", "1", None)]
        assert aliases(history.tracker) == {"champion": "1"}


def test_sleeper_that_moves_the_aliases_late_puts_them_right(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(history, "1", reason="", who="anna")
    other = open_history(tmp_path)
    move, slept = history.tracker.client.set_registered_model_alias, []

    def sleepy(name: str, alias: str, version: str) -> None:
        if alias == "champion" and not slept:
            slept.append(version)
            promote(other, "3", reason="", who="boris")
        move(name, alias, version)

    monkeypatch.setattr(history.tracker.client, "set_registered_model_alias", sleepy)
    promote(history, "2", reason="", who="anna")
    assert slept == ["2"]
    assert told(history)[1:] == [("promote", "2", "1"), ("promote", "3", "2")]
    assert aliases(history.tracker) == {"champion": "3", "previous": "2"}


def test_old_versions_are_retired_but_never_one_that_is_needed(history: History) -> None:
    for version in "123":
        promote(history, version, reason="", who="anna")
    challenge(history.tracker, "5")
    later = datetime.now(UTC) + timedelta(days=100)
    limits = {"keep_versions": 1, "keep_days": 90.0, "who": "night"}
    assert retire(history, **limits, dry_run=True, now=later) == ["4"]
    assert len(versions(history.tracker)) == VERSIONS
    assert retire(history, **limits) == [], "nothing is that old today"
    # 6 is the newest, 5 the challenger, 3 champion, 2 previous, and 1 where a second rollback goes.
    assert retire(history, **limits, now=later) == ["4"]
    assert [str(version.version) for version in versions(history.tracker)] == ["6", "5", "3", "2", "1"]
    assert retire(history, **limits, now=later) == []
    with pytest.raises(RegistryError, match="version 4 was retired"):
        promote(history, "4", reason="", who="anna", force=True)
    promote(history, "5", reason="", who="anna")
    assert retire(history, **limits, now=later) == ["1"]
    assert [rollback(history, reason="", who="anna").champion for _ in range(2)] == ["3", "2"]


def test_killed_retirement_is_finished_by_the_next_one(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(history, "6", reason="", who="anna", force=True)
    later = datetime.now(UTC) + timedelta(days=100)

    def dying(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(history.tracker.client, "delete_model_version", dying)
        with pytest.raises(Killed):
            retire(history, keep_versions=1, keep_days=90, who="night", now=later)
    assert len(versions(history.tracker)) == VERSIONS
    assert retire(history, keep_versions=VERSIONS, keep_days=1000, who="night") == ["1"]


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
