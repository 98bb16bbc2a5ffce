"""`reviewclf night`: a night in one process, its report, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reviewclf.registry.model import aliases
from reviewclf.registry.tracking import Tracker
from tests.integration.test_nights import CANDIDATE, GOLD, TRAIN, rows_of

Night = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Runs the command on a shop's reviews, one of which nobody can read, with votes and gold of its own."""
    rows = rows_of(TRAIN)
    reviews = [*((f"r{n}", text) for n, (text, _) in enumerate(rows)), ("empty", "")]
    pd.DataFrame(reviews, columns=["review_id", "text"]).to_csv(tmp_path / "shop.csv", index=False)
    votes = [(f"r{n}", "reader", label, 0.9) for n, (_, label) in enumerate(rows)]
    pd.DataFrame(votes, columns=["review_id", "annotator", "label", "confidence"]).to_csv(tmp_path / "votes.csv", index=False)
    pd.DataFrame(rows_of(GOLD), columns=["text", "label"]).to_csv(tmp_path / "gold.csv", index=False)
    (tmp_path / "candidates.yaml").write_text(CANDIDATE.format(words=2000), encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("votes", "gold")}
    settings = {"home": "home", "source": "shop.csv", "synthetic": "", "candidates": "candidates.yaml", **files}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {f"REVIEWCLF_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-m", "reviewclf.cli", "night", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **variables, **environment},
            check=False,
        )

    return run


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["outcome"] for step in report["steps"]}


def reason_of(report: dict[str, Any], step: str) -> str:
    return str(next(entry["reason"] for entry in report["steps"] if entry["step"] == step))


def test_first_night_ends_with_a_champion_and_the_second_says_that_nothing_is_new(night: Night, tmp_path: Path) -> None:
    first = night("--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert outcomes(report) == dict.fromkeys(("ingest", "label", "retrain", "score", "maintain"), "done")
    rows = report["rows"]
    assert (rows["counts"]["rows_in"], rows["counts"]["clean"], rows["counts"]["quarantined"]) == (61, 60, 1)
    told = {"rows_in": 61, "known": 0, "clean": 60, "quarantined": 1, "duplicates": 0}
    assert told.items() <= rows["sources"]["shop.csv"].items()
    assert rows["quarantine"] == {"shop.csv": {"text_missing": 1}}
    # Gold is voted on as well, by stems where nobody else has.
    assert report["labels"]["labels"] == report["labels"]["changed"] > 60
    (candidate,) = report["candidates"]
    assert candidate["weighted_f1_low"] <= candidate["weighted_f1"] <= candidate["weighted_f1_high"]
    assert (candidate["gate"], candidate["gold_rows"]) == ("passed", 75)
    assert report["champion"] == {"before": None, "after": "1"}
    assert aliases(Tracker(f"sqlite:///{tmp_path / 'home' / 'mlflow' / 'mlflow.db'}"))["champion"] == "1"
    assert report["scored"]["reviews"] == 60
    assert report["scored"]["verdict"]

    second = night()
    assert second.returncode == 0, second.stderr
    for said in ("no new reviews", "no label changed", "version 1 is champion already", "has no new reviews to answer"):
        assert said in second.stdout
    assert "version 1, as before" in second.stdout


def test_night_whose_source_cannot_be_read_labels_nothing_and_exits_with_1(night: Night) -> None:
    done = night("--json", "--steps", "score,label,ingest", REVIEWCLF_SOURCE="nowhere.csv")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert outcomes(report) == {"ingest": "failed", "label": "skipped", "score": "skipped"}
    assert "nowhere.csv" in reason_of(report, "ingest")
    assert reason_of(report, "label") == "the step ingest has failed"
    assert "there is no champion" in reason_of(report, "score")
    assert report["rows"] is None
    assert "Traceback" not in done.stderr


def test_batch_that_is_refused_says_what_came_in_and_that_nothing_was_published(night: Night) -> None:
    done = night("--steps", "ingest", REVIEWCLF_QUALITY__MAX_NULL_ROWS="0", REVIEWCLF_QUALITY__MIN_RUSSIAN_ROWS="1")
    assert done.returncode == 1
    assert "61 rows in" in done.stdout
    assert "nothing was published" in done.stdout
    assert "QualityError" in done.stdout


def test_version_that_a_person_has_to_agree_to_waits_and_the_night_says_how(night: Night) -> None:
    done = night(REVIEWCLF_REGISTRY__APPROVAL="true")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "reviewclf promote 1 --reason" in said
    assert "champion none" in said


def test_unknown_step_is_named_with_those_that_there_are(night: Night) -> None:
    done = night("--steps", "ingest,train")
    assert done.returncode == 2
    said = " ".join(done.stderr.replace("│", " ").split())
    assert "no step is called train; the steps of a night are ingest, label, retrain, score, maintain" in said


def test_connection_of_airflow_is_refused_with_what_to_give_instead(night: Night) -> None:
    done = night("--steps", "ingest", REVIEWCLF_SOURCE="airflow://reviews_db")
    assert done.returncode == 1
    assert "names a connection of Airflow" in " ".join(done.stdout.split())
