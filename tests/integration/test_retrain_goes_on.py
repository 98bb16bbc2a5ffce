"""One candidate that fails, or a writer who cannot be had, costs a retrain nothing else, and is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml

from reviewclf.errors import AnnotatorUnavailableError, AugmentationError, RegistryUnavailableError, TrainingError
from reviewclf.promotion.leaderboard import leaderboard, render
from reviewclf.registry.tracking import Tracker
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import synthesize as synthesize_stages
from reviewclf.stages import train as train_stages
from reviewclf.store import Store
from reviewclf.training.linear import LinearCandidate
from tests.integration.test_augmentation import CATEGORY, fast, make_settings

__all__ = ["fast", "make_settings"]

NAMES = ["good", "broken", "other"]


@pytest.fixture(scope="module")
def candidates(fast: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three candidates, of which the second finds no word that is frequent enough for it."""
    (good,) = yaml.safe_load(fast.read_text(encoding="utf-8"))["candidates"]
    params = good["params"]
    entries = [
        {**good, "name": "good"},
        {**good, "name": "broken", "params": {**params, "word": {**params["word"], "min_df": 100_000}}},
        {**good, "name": "other", "params": {**params, "C": 1}},
    ]
    path = tmp_path_factory.mktemp("candidates") / "three.yaml"
    path.write_text(yaml.safe_dump({"candidates": entries}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(candidates: Path, labelled_sample: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A dataset, and the candidates trained on it that can be."""
    home = tmp_path_factory.mktemp("built")
    shutil.copytree(labelled_sample, home / "store")
    settings = load_settings(_env_file=None, home=home, candidates=candidates, synthetic=None)
    dataset = train_stages.build_dataset(settings)
    for name in ("good", "other"):
        train_stages.train(settings, dataset, name)
    return settings


@pytest.fixture
def settings(built: Settings, tmp_path: Path) -> Settings:
    """The same, in a place of its own; where models lie stays as it was."""
    return built


def test_candidate_that_fails_is_on_the_leaderboard_with_its_reason(settings: Settings) -> None:
    dataset = train_stages.build_dataset(settings)
    trained = [train_stages.train(settings, dataset, name, retry=True) for name in NAMES]
    assert trained[1].details["failed"] is True
    assert "lower min_df" in str(trained[1].details["skipped"])
    evaluated = train_stages.evaluate(settings, dataset, trained)
    results: Any = evaluated.details["candidates"]
    assert [result["candidate"] for result in results] == ["good", "other"]
    assert list(evaluated.details["left_out"]) == ["broken"]  # type: ignore[arg-type]
    board = leaderboard(Tracker(settings.tracking_uri))
    assert [row.candidate for row in board.rows if row.candidate in NAMES] == [row.candidate for row in board.rows]
    assert board.skipped["broken"].startswith("failed: TrainingError: ")
    assert [str(cell) for cell in render(board).columns[1]._cells][-1] == "failed"
    gated = train_stages.gate(settings, evaluated)
    assert set(gated.details["verdicts"]) == {"good", "other"}  # type: ignore[arg-type]


def test_candidate_whose_task_was_killed_is_missed_by_name(settings: Settings) -> None:
    dataset = train_stages.build_dataset(settings)
    evaluated = train_stages.evaluate(settings, dataset, [train_stages.train(settings, dataset, "good")])
    left_out: Any = evaluated.details["left_out"]
    assert set(left_out) == {"broken", "other"}
    assert "its task ended without a word" in left_out["other"]


def test_candidate_whose_model_cannot_be_loaded_is_left_out(settings: Settings, tmp_path: Path) -> None:
    dataset = train_stages.build_dataset(settings)
    trained = [train_stages.train(settings, dataset, name) for name in ("good", "other")]
    tracker = Tracker(settings.tracking_uri)
    model_id = str(trained[1].details["model_uri"]).removeprefix("models:/")
    folder = Path(unquote(urlsplit(tracker.client.get_logged_model(model_id).artifact_location).path))
    (damaged,) = folder.rglob("model.skops")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:1000])
    # Gold of another day: what was scored before does not count.
    gold = tmp_path / "gold.csv"
    pd.read_csv(str(settings.gold)).iloc[::2].to_csv(gold, index=False)
    try:
        evaluated = train_stages.evaluate(settings.model_copy(update={"gold": str(gold)}), dataset, trained)
    finally:
        damaged.write_bytes(whole)
    left_out: Any = evaluated.details["left_out"]
    assert "model.skops: is damaged" in left_out["other"]
    results: Any = evaluated.details["candidates"]
    assert [result["candidate"] for result in results] == ["good"]


def test_night_fails_where_no_candidate_is_left(settings: Settings) -> None:
    dataset = train_stages.build_dataset(settings)
    failed = train_stages.train(settings, dataset, "broken")
    with pytest.raises(TrainingError, match=r"no candidate could be trained here \(broken: failed: .*lower min_df"):
        train_stages.evaluate(settings, dataset, [failed])


def test_what_another_attempt_may_mend_is_raised_while_there_is_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = train_stages.build_dataset(settings.model_copy(update={"seed": 5}))

    def fail(error: Exception) -> None:
        def train(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(LinearCandidate, "train", train)

    fail(MemoryError("out of memory"))
    with pytest.raises(MemoryError):
        train_stages.train(settings, dataset, "good", retry=True)
    told = train_stages.train(settings, dataset, "good")
    assert (told.details["failed"], told.details["skipped"]) == (True, "failed: MemoryError: out of memory")
    # Of a registry or a disk that all candidates need, no candidate dies.
    for error in (RegistryUnavailableError("MLflow is away"), OSError(28, "No space left on device")):
        fail(error)
        with pytest.raises((RegistryUnavailableError, OSError)):
            train_stages.train(settings, dataset, "good")


class Writer:
    """A costly writer who cannot be had."""

    version = "away@1"
    is_costly = True

    def __init__(self, error: Exception) -> None:
        self._error = error

    def available(self, category: str) -> None:
        return None

    def write(self, requests: Any) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [AnnotatorUnavailableError("the server is away"), AugmentationError("no such model")])
def test_retrain_goes_on_without_a_writer_and_says_so(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    settings = make_settings()
    plain = train_stages.build_dataset(make_settings(synthetic=None))
    monkeypatch.setattr(synthesize_stages, "make_generator", lambda *arguments: Writer(error))
    planned = synthesize_stages.plan_synthesis(settings)
    assert synthesize_stages.thin_classes(planned) == [CATEGORY]
    written = synthesize_stages.synthesize(settings, planned, CATEGORY)
    dataset = train_stages.build_dataset(settings, [written])
    assert dataset.details["not_written"] == {CATEGORY: f"{type(error).__name__}: {error}"}
    assert dataset.keys("dataset") == plain.keys("dataset")
    (run,) = Tracker(settings.tracking_uri).find_runs({"reviewclf.key": dataset.digest, "reviewclf.kind": "retrain"})
    assert run.data.tags["reviewclf.not_written"] == f"{CATEGORY}: {type(error).__name__}: {error}"
    # The next night asks again.
    monkeypatch.undo()
    again = synthesize_stages.synthesize(settings, synthesize_stages.plan_synthesis(settings), CATEGORY)
    assert again.counts["kept"] > 0
    assert train_stages.build_dataset(settings, [again]).details["not_written"] == {}


def test_file_of_synthetic_reviews_that_cannot_be_read_costs_only_them(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(synthetic=str(tmp_path / "none.csv"))
    planned = synthesize_stages.plan_synthesis(settings)
    assert synthesize_stages.thin_classes(planned) == []
    assert planned.details["failed"] is True
    assert "none.csv" in str(planned.details["skipped"])
    assert Store(settings.store_uri).read_table(train_stages.build_dataset(settings).keys("dataset")).num_rows > 0
