"""Nights in one process on a real MLflow database, with tiny linear candidates: who becomes champion, who does not, and why."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reviewclf.errors import GateError
from reviewclf.manifest import Manifest
from reviewclf.promotion.history import History
from reviewclf.promotion.leaderboard import leaderboard, render
from reviewclf.promotion.retention import retire
from reviewclf.registry.model import aliases, versions
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import promotion as promotion_stages
from reviewclf.stages import train as stages
from tests.integration.test_stages import run_ingest, run_label

THINGS = {
    "одежда": ("платье", "свитер", "куртка", "юбка", "блузка"),
    "посуда": ("кастрюля", "сковорода", "кружка", "тарелка", "чайник"),
    "обувь": ("сапоги", "кроссовки", "ботинки", "туфли", "тапочки"),
}
TRAIN = ("{} понравилось мужу", "взяла {} на дачу летом", "{} пришло мятым в пакете", "{} стоит своих денег, советую")
GOLD = ("вчера привезли {}", "{}: доставка была долгой", "на фото {} выглядит лучше", "подарила {} маме", "{} ношу уже год")
CANDIDATE = """
candidates:
  - name: logreg
    kind: linear
    description: tiny
    params:
      estimator: logistic_regression
      C: 30
      word: {{ngram_range: [1, 1], min_df: 1, max_features: {words}}}
      calibration: none
"""


def rows_of(templates: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(template.format(thing), label) for label, things in THINGS.items() for thing in things for template in templates]


class Nights:
    """A home with labelled reviews; `retrain` is a night's DAG reviews_retrain."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.home = folder / "home"
        self.history = History.of(self.settings())
        self.tracker = self.history.tracker

    def write_gold(self, rows: list[tuple[str, str]]) -> None:
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(self._folder / "gold.csv", index=False)

    def settings(self, *, words: int = 2000, **overrides: Any) -> Settings:
        candidates = self._folder / f"candidates-{words}.yaml"
        candidates.write_text(CANDIDATE.format(words=words), encoding="utf-8")
        files = {name: str(self._folder / f"{name}.csv") for name in ("votes", "gold")}
        given: dict[str, Any] = {"home": self.home, "source": str(self._folder / "reviews.csv"), **files, **overrides}
        return load_settings(_env_file=None, candidates=candidates, synthetic=None, **given)

    def judge(self, **overrides: Any) -> Manifest:
        settings = self.settings(**overrides)
        dataset = stages.build_dataset(settings)
        trained = [stages.train(settings, dataset, name) for name in stages.candidate_names(settings)]
        return stages.gate(settings, stages.evaluate(settings, dataset, trained))

    def retrain(self, who: str = "night", answer: Any = None, **overrides: Any) -> tuple[Manifest, Manifest]:
        gated = self.judge(**overrides)
        return gated, stages.promote(self.settings(**overrides), gated, who=who, answer=answer)

    @property
    def aliases(self) -> dict[str, str]:
        return aliases(self.tracker)

    def report(self, version: str) -> dict[str, Any]:
        run_id = self.tracker.client.get_model_version("review-classifier", version).run_id
        report: dict[str, Any] = self.tracker.read_json(str(run_id), "gate/report.json")
        return report


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and a store with labels, for every test to start from."""
    folder = tmp_path_factory.mktemp("labelled")
    train = rows_of(TRAIN)
    reviews = [(f"r{n}", text) for n, (text, _) in enumerate(train)]
    pd.DataFrame(reviews, columns=["review_id", "text"]).to_csv(folder / "reviews.csv", index=False)
    votes = [(f"r{n}", "reader", label, 0.9) for n, (_, label) in enumerate(train)]
    pd.DataFrame(votes, columns=["review_id", "annotator", "label", "confidence"]).to_csv(folder / "votes.csv", index=False)
    nights = Nights(folder)
    nights.write_gold(rows_of(GOLD))
    run_ingest(nights.settings())
    run_label(nights.settings())
    return folder


@pytest.fixture
def nights(labelled: Path, tmp_path: Path) -> Nights:
    # A store may lie anywhere, an MLflow database knows where its artifacts are: each test begins one of its own.
    shutil.copytree(labelled, tmp_path / "night", ignore=shutil.ignore_patterns("mlflow", "data_docs", "gx"))
    return Nights(tmp_path / "night")


def verdict_of(gated: Manifest) -> dict[str, Any]:
    verdicts: Any = gated.details["verdicts"]
    return dict(verdicts["logreg"])


def failed(nights: Nights, gated: Manifest) -> list[str]:
    rules = nights.report(verdict_of(gated)["version"])["rules"]
    return [rule["rule"] for rule in rules if not rule["passed"]]


EASY = {"min_weighted_f1": 0.1, "min_class_recall": None}


def test_worse_too_slow_and_rolled_back_candidates_are_refused_and_each_says_why(nights: Nights) -> None:
    gated, promoted = nights.retrain()
    assert promoted.details["promoted"] is True
    first = promoted.details["champion"]
    tags = nights.tracker.client.get_model_version("review-classifier", str(first)).tags
    assert tags["reviewclf.gold"] == nights.report(str(first))["gold"]
    assert "## Intended use" in str(nights.tracker.client.get_model_version("review-classifier", str(first)).description)
    assert leaderboard(nights.tracker).outcome == f"version {first} was promoted"
    assert tags["reviewclf.gate_report"].endswith("gate/report.html")
    assert str(gated.details["gate_report"]).endswith("gate/report.html")

    # Worse: it knows two words. Its own floor is low, so that it is the comparison that stops it.
    gated, promoted = nights.retrain(words=2, gate=EASY)
    assert (failed(nights, gated), promoted.details["promoted"]) == (["not_worse_than_champion"], False)
    report = nights.report(verdict_of(gated)["version"])
    rule = next(rule for rule in report["rules"] if rule["rule"] == "not_worse_than_champion")
    assert (report["champion"], rule["n"]) == (first, 75)
    assert f"against version {first}" in rule["note"]
    board = leaderboard(nights.tracker)
    assert "not_worse_than_champion" in board.rows[0].gate_reason
    assert "nothing promoted: no candidate passed the gate" in board.outcome
    assert board.outcome in str(render(board).caption)

    gated, promoted = nights.retrain(seed=7, gate={"max_seconds_per_example": 1e-6})
    assert (failed(nights, gated), promoted.details["promoted"]) == (["seconds_per_example"], False)
    assert nights.aliases == {"champion": first}

    _, promoted = nights.retrain(seed=7)
    second = promoted.details["champion"]
    assert nights.aliases == {"champion": second, "previous": first}

    back = promotion_stages.rollback(nights.settings(), reason="sweaters under посуда", who="anna")
    assert back.details["champion"] == first
    gated, again = nights.retrain(seed=7)
    assert again.details["promoted"] is False
    assert "rolled back by anna" in str(again.details["reason"])
    assert verdict_of(gated)["verdict"] == "passed"
    assert nights.aliases == {"champion": first}

    # On other gold it may win anew; the champion is scored on that gold too, and nothing is compared across different gold.
    nights.write_gold(rows_of(GOLD)[:70])
    gated, promoted = nights.retrain(seed=7)
    assert promoted.details["promoted"] is True
    third = promoted.details["champion"]
    assert nights.aliases == {"champion": third, "previous": first}
    report = nights.report(str(third))
    assert next(rule for rule in report["rules"] if rule["rule"] == "not_worse_than_champion")["n"] == 70
    for version in (str(first), str(third)):
        found = nights.tracker.client.get_model_version("review-classifier", version)
        assert found.tags["reviewclf.gold"] == report["gold"]
        answers = nights.tracker.read_json(str(found.run_id), "evaluation/gold_answers.json")
        assert len(answers) == 70
        assert sorted(answers[0]) == ["confidence", "label", "predicted", "review_id", "text_hash"]


def test_leak_is_refused_when_gold_that_was_trained_on_comes_in_after_the_dataset_was_built(nights: Nights) -> None:
    blind = nights.settings(gold=None)
    dataset = stages.build_dataset(blind)
    trained = [stages.train(blind, dataset, "logreg")]
    nights.write_gold([*rows_of(GOLD), (rows_of(TRAIN)[0][0] + "!!", "одежда")])
    gated = stages.gate(nights.settings(), stages.evaluate(nights.settings(), dataset, trained))
    assert failed(nights, gated) == ["leak_check"]
    assert gated.details["challenger"] is None
    with pytest.raises(GateError, match="leak_check"):
        promotion_stages.promote_version(nights.settings(), verdict_of(gated)["version"], reason="", who="anna")


def test_champion_is_not_compared_on_gold_that_it_was_trained_on(nights: Nights) -> None:
    nights.retrain()
    nights.write_gold([*rows_of(GOLD), *rows_of(TRAIN)[:6]])
    gated = nights.judge()
    rules = nights.report(verdict_of(gated)["version"])["rules"]
    rule = next(rule for rule in rules if rule["rule"] == "not_worse_than_champion")
    assert rule["n"] == 75
    assert "6 gold review(s) that the champion was trained on are left out" in rule["note"]


def test_verdict_made_before_somebody_else_became_champion(nights: Nights) -> None:
    _, first = nights.retrain()
    older = nights.judge(seed=7)
    newer = nights.judge(seed=8)
    assert older.details["champion"] == newer.details["champion"] == first.details["champion"]
    # By hand, a version of the middle dataset becomes champion while both verdicts wait.
    challenger: Any = older.details["challenger"]
    promotion_stages.promote_version(nights.settings(), challenger["version"], reason="", who="anna")
    promoted = stages.promote(nights.settings(seed=8), newer, who="newer")
    assert promoted.details["promoted"] is True, "its dataset is newer, so it is judged anew and wins"
    challenger = newer.details["challenger"]
    assert nights.report(challenger["version"])["champion"] == older.details["challenger"]["version"]  # type: ignore[index, call-overload]
    late = nights.judge(seed=9)
    promotion_stages.rollback(nights.settings(), reason="", who="anna")
    promotion_stages.promote_version(nights.settings(), str(first.details["champion"]), reason="", who="anna")
    stale = stages.promote(nights.settings(seed=7), older, who="older")
    assert stale.details["promoted"] is False
    assert late.details["challenger"] is not None


def test_person_is_asked_and_what_was_said_is_kept(nights: Nights) -> None:
    asked = {"registry": {"approval": True}}
    said = {"chosen_options": ["Reject"], "params_input": {"reason": "not in December"}, "responded_by_user": {"name": "vera"}}
    gated, promoted = nights.retrain(**asked)
    assert "nobody answered in time" in str(promoted.details["reason"])
    assert "passed all" in str(gated.details["summary"])
    timed_out = {"chosen_options": ["Reject"], "params_input": {}, "responded_by_user": None}
    _, promoted = nights.retrain(who="night 2", answer=timed_out, **asked)
    assert promoted.details["promoted"] is False
    _, promoted = nights.retrain(who="night 3", answer=said, **asked)
    assert "rejected by vera (night 3): not in December" in str(promoted.details["reason"])
    assert [event.action for event in nights.history.events()[::-1]] == ["reject", "expire", "expire"]
    assert "champion" not in nights.aliases
    # Rejected on these data, nobody is asked about it again.
    gated, promoted = nights.retrain(who="night 4", **asked)
    assert gated.details["challenger"] is None
    assert "rejected by vera" in str(promoted.details["reason"])
    agreed = {**said, "chosen_options": ["Promote"], "params_input": {"reason": "looks good"}}
    _, promoted = nights.retrain(who="night 5", answer=agreed, seed=7, **asked)
    assert promoted.details["promoted"] is True
    newest = nights.history.events()[-1]
    assert (newest.who, newest.reason.endswith("approved: looks good")) == ("vera (night 5)", True)


def test_retired_model_loses_its_files_and_is_trained_anew_when_its_data_come_back(nights: Nights) -> None:
    gated, first = nights.retrain(seed=1)
    for seed in (2, 3, 4):
        nights.retrain(seed=seed)
    old = nights.tracker.client.get_model_version("review-classifier", str(first.details["champion"]))
    files = nights.home / "mlflow" / "artifacts" / "models"
    before = {path.name for path in files.iterdir() if any(path.rglob("MLmodel"))}
    later = datetime.now(UTC) + timedelta(days=100)
    assert retire(nights.history, keep_versions=1, keep_days=90, who="night", now=later) == [str(old.version)]
    after = {path.name for path in files.iterdir() if any(path.rglob("MLmodel"))}
    assert len(before - after) == 1
    assert str(old.run_id) not in {str(version.run_id) for version in versions(nights.tracker)}
    run = nights.tracker.client.get_run(str(old.run_id))
    assert run.data.metrics["gold/weighted_f1"] > 0, "the figures stay"
    assert nights.tracker.read_json(str(old.run_id), "gate/report.json")["candidate"] == "logreg"
    again = nights.judge(seed=1)
    assert verdict_of(again)["version"] not in (str(old.version), verdict_of(gated)["version"])


def test_store_of_an_older_back_up_leaves_the_champion_its_run(nights: Nights) -> None:
    store, backup = nights.home / "store", nights.home.parent / "backup"
    shutil.copytree(store, backup)
    _, promoted = nights.retrain()
    champion = str(promoted.details["champion"])
    run_id = str(nights.tracker.client.get_model_version("review-classifier", champion).run_id)
    shutil.rmtree(store)
    shutil.copytree(backup, store)
    # The same candidate on the same data is trained anew, as nobody remembers that it was.
    gated, _ = nights.retrain()
    assert nights.tracker.is_alive(run_id)
    assert gated.details["champion"] == champion
    assert nights.report(verdict_of(gated)["version"])["champion"] == champion


def test_rule_that_cannot_be_used_stops_the_gate(nights: Nights) -> None:
    with pytest.raises(GateError, match="nobody measures 'charm'"):
        nights.judge(gate={"rules": [{"measure": "charm", "comparison": ">=", "limit": 1}]})


def test_age_of_gold_is_that_of_its_newest_review_and_outdates_a_verdict(nights: Nights) -> None:
    now = datetime.now(UTC)
    rows = [(text, label, (now - timedelta(days=40 + n)).isoformat()) for n, (text, label) in enumerate(rows_of(GOLD))]
    pd.DataFrame(rows, columns=["text", "label", "created_at"]).to_csv(nights.home.parent / "gold.csv", index=False)
    assert verdict_of(nights.judge(gate={"max_gold_age_days": 41}))["verdict"] == "passed"
    assert failed(nights, nights.judge(gate={"max_gold_age_days": 39})) == ["gold_age_days"]


def test_command_line_promotes_rolls_back_and_tells(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    from reviewclf import cli

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REVIEWCLF_HOME", str(nights.home))
            patch.setattr("sys.argv", ["reviewclf", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            said = capsys.readouterr()
            return f"{ended.value.code or 0} {said.out}{said.err}"

    _, first = nights.retrain()
    champion = str(first.details["champion"])
    refused = verdict_of(nights.judge(words=2))["version"]
    assert "1 GateError" in (said := run("promote", refused, "--reason", "try")), said
    assert "weighted_f1" in said
    assert "1 RegistryError" in run("rollback")
    assert f"0 version {refused} is champion, previous: {champion}" in run("promote", refused, "--reason", "try", "--force")
    assert f"0 version {champion} is champion again" in run("rollback", "--reason", "no good")
    told = json.loads(run("history", "--json").partition(" ")[2])
    assert [(event["action"], event["reason"]) for event in told[:2]] == [("rollback", "no good"), ("promote", "try")]
    assert "@" in told[0]["who"]
    assert "rollback" in run("history")
    assert run("retire", "--dry-run").strip() == "0 would retire: none"
