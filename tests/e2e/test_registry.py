"""The registry decides: two nights on different data, promotion, rollback and three refusals, through real Airflow, MLflow and
HTTP, while clients ask all the time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml

from reviewclf.promotion.history import Event, History
from reviewclf.registry.tracking import Tracker
from reviewclf.store import Store
from tests.e2e.asking import Answer, Asking
from tests.e2e.local import MODEL, LocalPlatform

SAMPLE = Path(str(resources.files("reviewclf").joinpath("sample")))
FIRST_NIGHT = 200
POLL_SECONDS = 0.5
# From the decision to the last answer of the old version: alias, look, fetch, load, warm up. About a second where it is quiet.
SWAP = timedelta(seconds=20)
TEXTS = ["Платье село после первой стирки", "Сковорода с антипригарным покрытием", "Пришло вовремя, спасибо"]


@dataclass(frozen=True)
class Moment:
    """What was to be seen after a step.

    Attributes
    ----------
    run : dict
        The run that took the step: tasks' states and what they handed on.
    aliases : dict
        Version by alias in MLflow.
    tags : dict
        Of each version in MLflow, without ``reviewclf.`` before the names.
    served : dict
        The server's answer to ``GET /model``.
    """

    run: dict[str, Any]
    aliases: dict[str, str]
    tags: dict[str, dict[str, str]]
    served: dict[str, Any]


def look(platform: LocalPlatform, run: dict[str, Any]) -> Moment:
    tags = {number: platform.version(number).tags for number in platform.versions()}
    short = {
        number: {name.removeprefix("reviewclf."): value for name, value in found.items()} for number, found in tags.items()
    }
    return Moment(run, platform.aliases(), short, platform.ask("/model").json())


def rows_of(name: str) -> list[dict[str, str]]:
    with (SAMPLE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    draft = path.with_suffix(".new")
    pd.DataFrame(rows).to_csv(draft, index=False)
    draft.replace(path)


def write_candidates(folder: Path, *names: str) -> None:
    known = yaml.safe_load(Path(str(resources.files("reviewclf").joinpath("candidates.yaml"))).read_text(encoding="utf-8"))
    chosen = [candidate for candidate in known["candidates"] if candidate["name"] in names]
    (folder / "candidates.yaml").write_text(yaml.safe_dump({"candidates": chosen}, allow_unicode=True), encoding="utf-8")


# -- the story, step by step ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """Airflow and MLflow, on their way through the first night, and the server beside them."""
    folder = tmp_path_factory.mktemp("registry")
    reviews, votes = rows_of("reviews.csv")[:FIRST_NIGHT], rows_of("votes.csv")
    known = {review["review_id"] for review in [*reviews, *rows_of("gold.csv")]}
    write(folder / "reviews.csv", reviews)
    write(folder / "votes.csv", [vote for vote in votes if vote["review_id"] in known])
    write(folder / "gold.csv", rows_of("gold.csv"))
    write_candidates(folder, "logreg")
    platform = LocalPlatform(folder)
    platform.configure(
        SOURCE=str(folder / "reviews.csv"),
        VOTES=str(folder / "votes.csv"),
        GOLD=str(folder / "gold.csv"),
        CANDIDATES=str(folder / "candidates.yaml"),
        AUGMENTATION__BACKEND="none",
        DATASET__LABEL_ERRORS="off",
        SERVING__PORT="0",
        SERVING__POLL_SECONDS=str(POLL_SECONDS),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        try:
            platform.up()
            platform.serve()
            yield platform
        finally:
            platform.stop()


@pytest.fixture(scope="module")
def before_the_first_champion(platform: LocalPlatform) -> Any:
    return platform.ask("/health/ready"), platform.ask("/predict", json={"texts": TEXTS})


@pytest.fixture(scope="module")
def first(platform: LocalPlatform, before_the_first_champion: Any) -> Moment:
    """`reviewclf up` has taken the first night's reviews to a champion."""
    platform.wait_for_first_flow()
    platform.wait_until_served("1")
    return look(platform, {})


@pytest.fixture(scope="module")
def asking(platform: LocalPlatform, first: Moment) -> Iterator[Asking]:
    """Two clients that ask from the first champion on."""
    asking = Asking(platform.server, TEXTS)
    asking.start()
    yield asking
    asking.stop()


@pytest.fixture(scope="module")
def second(platform: LocalPlatform, asking: Asking) -> Moment:
    """More reviews and votes have come; ingest is triggered, the rest follows by assets."""
    write(platform.folder / "reviews.csv", rows_of("reviews.csv"))
    write(platform.folder / "votes.csv", rows_of("votes.csv"))
    ingested = platform.run("reviews_ingest")
    labelled = platform.followed("reviews_label", ingested)
    retrained = platform.followed("reviews_retrain", labelled)
    platform.wait_until_served("2")
    return look(platform, retrained)


@pytest.fixture(scope="module")
def rolled_back(platform: LocalPlatform, second: Moment) -> Moment:
    run = platform.run("reviews_rollback", reason="обувь уходит в одежду")
    platform.wait_until_served("1")
    return look(platform, run)


@pytest.fixture(scope="module")
def night_after(platform: LocalPlatform, rolled_back: Moment) -> Moment:
    """The nightly retrain, on the same reviews, votes and gold."""
    return look(platform, platform.run("reviews_retrain"))


@pytest.fixture(scope="module")
def brought_back(platform: LocalPlatform, night_after: Moment) -> Moment:
    run = platform.run("reviews_promote", version="2", reason="обувь была ошибкой в отчёте")
    platform.wait_until_served("2")
    return look(platform, run)


@pytest.fixture(scope="module")
def too_slow(platform: LocalPlatform, brought_back: Moment) -> Moment:
    """Another candidate, and a limit that no model keeps."""
    write_candidates(platform.folder, "linear-svc")
    platform.configure(GATE__MAX_SECONDS_PER_EXAMPLE="0.000001")
    moment = look(platform, platform.run("reviews_retrain"))
    platform.configure(GATE__MAX_SECONDS_PER_EXAMPLE=None)
    return moment


@pytest.fixture(scope="module")
def leaking(platform: LocalPlatform, too_slow: Moment) -> Moment:
    """People add reviews to gold that this night's candidate was trained on, and let the night judge it again."""
    label_of = {vote["review_id"]: vote["label"] for vote in rows_of("votes.csv")}
    trained_on = [
        {"review_id": row["review_id"], "text": row["text"], "label": label_of[row["review_id"]]}
        for row in rows_of("reviews.csv")[:40]
    ]
    write(platform.folder / "gold.csv", [*rows_of("gold.csv"), *trained_on])
    moment = look(platform, platform.again(too_slow.run, "evaluate"))
    write(platform.folder / "gold.csv", rows_of("gold.csv"))
    return moment


@pytest.fixture(scope="module")
def worse(platform: LocalPlatform, leaking: Moment) -> Moment:
    """Three careless annotators call every other review «одежда», and are sure of it."""
    same = {"prompt": "careless@1", "draw": "0", "label": "одежда", "confidence": "0.99"}
    careless = [
        {"review_id": row["review_id"], "annotator": f"careless-{name}@1", **same}
        for row in rows_of("reviews.csv")[::2]
        for name in "abc"
    ]
    write(platform.folder / "votes.csv", [*rows_of("votes.csv"), *careless])
    labelled = platform.run("reviews_label")
    retrained = platform.followed("reviews_retrain", labelled)
    return look(platform, retrained)


@pytest.fixture(scope="module")
def told(platform: LocalPlatform, asking: Asking, worse: Moment) -> list[Answer]:
    """All that the clients were told, from the first champion to the end of the story."""
    platform.quiet()
    asking.stop()
    return asking.answers


# -- what has to hold ----------------------------------------------------------------------------------------------------


def events(platform: LocalPlatform) -> list[Event]:
    """The history of promotions, oldest first."""
    return History(Tracker(platform.mlflow), Store(platform.settings.store_uri)).events()


def test_before_the_first_champion_the_server_says_that_there_is_none(before_the_first_champion: Any) -> None:
    for answer in before_the_first_champion:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_model"
        assert int(answer.headers["Retry-After"]) >= 1


def test_first_night_makes_a_champion_and_the_server_ready(platform: LocalPlatform, first: Moment) -> None:
    assert first.aliases == {"champion": "1"}
    assert first.tags["1"]["candidate"] == "logreg"
    assert first.tags["1"]["gate"] == "passed"
    assert first.tags["1"]["promotion_reason"].startswith("logreg passed the gate")
    assert "airflow run" in first.tags["1"]["promoted_by"]
    assert first.served["model_version"] == "1"
    assert first.served["promotion_reason"] == first.tags["1"]["promotion_reason"]
    assert platform.ask("/health/ready").json()["status"] == "ok"


def test_more_reviews_and_votes_make_a_better_champion_live(second: Moment) -> None:
    assert second.run["tasks"]["promote"] == "success"
    assert second.aliases == {"champion": "2", "previous": "1"}
    assert second.tags["1"]["dataset"] != second.tags["2"]["dataset"]
    assert second.tags["1"]["gold"] == second.tags["2"]["gold"]
    assert second.tags["2"]["gate"] == "passed"
    assert (second.served["model_version"], second.served["dataset"]) == ("2", second.tags["2"]["dataset"])


def test_rollback_returns_to_the_version_before_and_says_why(rolled_back: Moment) -> None:
    assert rolled_back.aliases == {"champion": "1"}
    assert rolled_back.tags["2"]["rollback_reason"] == "обувь уходит в одежду"
    assert rolled_back.tags["2"]["rolled_back_by"].startswith("admin (airflow run ")
    assert rolled_back.served["model_version"] == "1"


def test_night_after_does_not_bring_back_what_was_rolled_back(night_after: Moment) -> None:
    assert night_after.run["state"] == "success"
    assert night_after.run["tasks"]["promote"] == "skipped"
    assert night_after.run["results"]["gate"]["details"]["verdicts"]["logreg"]["version"] == "2"
    assert "was rolled back" in night_after.run["results"]["promote"]["details"]["reason"]
    assert "обувь уходит в одежду" in night_after.run["results"]["promote"]["details"]["reason"]
    assert night_after.aliases == {"champion": "1"}
    assert night_after.served["model_version"] == "1"


def test_person_brings_it_back_by_hand(brought_back: Moment) -> None:
    assert brought_back.aliases == {"champion": "2", "previous": "1"}
    assert brought_back.tags["2"]["promotion_reason"] == "обувь была ошибкой в отчёте"
    assert brought_back.tags["2"]["promoted_by"].startswith("admin (airflow run ")
    assert "rolled_back_at" not in brought_back.tags["2"]
    assert brought_back.served["promotion_reason"] == "обувь была ошибкой в отчёте"


@pytest.mark.parametrize(
    ("step", "version", "rule"),
    [("too_slow", "3", "seconds_per_example"), ("leaking", "3", "leak_check"), ("worse", "4", "not_worse_than_champion")],
)
def test_refused_candidate_is_registered_with_the_reason_and_moves_nothing(
    request: pytest.FixtureRequest, step: str, version: str, rule: str
) -> None:
    moment: Moment = request.getfixturevalue(step)
    assert moment.run["state"] == "success", moment.run["failed"]
    assert moment.run["tasks"]["promote"] == "skipped"
    assert max(moment.tags, key=int) == version
    assert moment.tags[version]["gate"] == "failed"
    assert moment.tags[version]["gate_reason"].startswith("failed: ")
    assert rule in moment.tags[version]["gate_reason"]
    assert moment.aliases == {"champion": "2", "previous": "1"}
    assert moment.served["model_version"] == "2"
    assert "promoted_at" not in moment.tags[version]


def test_limit_and_leak_are_the_only_rules_that_were_broken(too_slow: Moment, leaking: Moment) -> None:
    assert too_slow.tags["3"]["gate_reason"].count("(needs") == 1
    assert leaking.tags["3"]["gate_reason"].count("(needs") == 1


def test_gate_report_of_a_refused_candidate_names_the_rule(platform: LocalPlatform, worse: Moment, tmp_path: Path) -> None:
    run_id = platform.version("4").run_id
    page = platform.registry.download_artifacts(run_id, "gate/report.html", str(tmp_path))
    assert "not_worse_than_champion" in Path(page).read_text(encoding="utf-8")
    assert run_id in worse.tags["4"]["gate_report"]


def test_history_tells_the_story(platform: LocalPlatform, worse: Moment) -> None:
    assert [(event.action, event.from_version, event.version) for event in events(platform)] == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
        ("promote", "1", "2"),
    ]


def test_clients_saw_no_error(told: list[Answer]) -> None:
    assert len(told) > 100
    assert [answer for answer in told if answer.status != 200] == []


def test_clients_were_answered_by_nothing_but_the_champion_of_the_moment(platform: LocalPlatform, told: list[Answer]) -> None:
    story = events(platform)
    reigns = [
        (event.version, event.at, following.at + SWAP if following else None)
        for event, following in zip(story, [*story[1:], None], strict=True)
    ]
    assert {answer.version for answer in told} == {"1", "2"}
    for answer in told:
        assert any(
            version == answer.version and since <= answer.answered and (until is None or answer.asked <= until)
            for version, since, until in reigns
        ), answer
    # A connection stays with one process, so that its client never sees an old version again once a new one has answered. Who
    # opens another each time may meet both while the processes swap.
    seen = [version for version, _ in groupby(answer.version for answer in told if answer.client == "kept")]
    assert seen == ["1", "2", "1", "2"]


def test_every_answer_is_that_of_the_version_it_names(platform: LocalPlatform, told: list[Answer]) -> None:
    mlflow.set_tracking_uri(platform.mlflow)
    for version in ("1", "2"):
        said = {answer.predictions for answer in told if answer.version == version}
        assert len(said) == 1, "one model gives one answer"
        expected = mlflow.pyfunc.load_model(f"models:/{MODEL}/{version}").predict(pd.DataFrame({"text": TEXTS}))
        assert [label for label, _ in said.pop()] == expected["label"].tolist()


def test_every_review_is_scored_once_by_the_champion_of_its_night(platform: LocalPlatform, told: list[Answer]) -> None:
    store = Store(platform.settings.store_uri)
    snapshot = store.snapshot()
    scored = store.read_table(snapshot.keys("predictions")).to_pandas()
    clean = store.read_table(snapshot.keys("clean"), ["review_id"]).to_pandas()
    assert not scored.duplicated(["review_id", "model_version"]).any()
    assert sorted(scored["review_id"]) == sorted(clean["review_id"])
    assert len(clean) > FIRST_NIGHT
    assert set(scored["model_version"]) <= {"1", "2"}
    assert set(scored["role"]) == {"champion"}


def telling_times(story: list[Event], told: list[Answer]) -> list[tuple[str, float]]:
    """For each move of the champion but the first: what it was, and seconds until a client heard of it."""
    found = []
    for event in story[1:]:
        heard = min(answer.answered for answer in told if answer.version == event.version and answer.answered > event.at)
        found.append((f"{event.action} {event.version}", (heard - event.at).total_seconds()))
    return found


def test_each_move_reaches_the_clients_within_seconds(
    platform: LocalPlatform, told: list[Answer], record_property: Any
) -> None:
    for move, seconds in telling_times(events(platform), told):
        record_property(move, seconds)
        assert seconds < SWAP.total_seconds()
