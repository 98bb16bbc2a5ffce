"""Encoders as candidates of a retrain: trained, exported, served from the registry, skipped, killed and taken up again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from reviewclf.errors import TrainingError
from reviewclf.promotion.leaderboard import leaderboard, render
from reviewclf.registry.tracking import Tracker
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import train as stages
from tests.conftest import ROOT
from tests.tiny_encoder import save_tiny_encoder

ENCODER = {
    "name": "tiny",
    "kind": "encoder",
    "params": {
        "checkpoint": "org/tiny",
        "learning_rate": 0.005,
        "epochs": 6,
        "patience": None,
        "max_length": 48,
        "precision": "fp32",
        "save_steps": 7,
    },
}
FROZEN = {"name": "tiny-frozen", "kind": "frozen-encoder", "params": {"checkpoint": "org/tiny", "max_length": 48}}
ABSENT = {"name": "absent", "kind": "encoder", "params": {"checkpoint": "nobody/nothing"}}


@pytest.fixture
def make_settings(tmp_path: Path, labelled_sample: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of a home in which the sample is labelled."""
    sample = pd.read_csv(ROOT / "reviewclf" / "sample" / "reviews.csv", on_bad_lines="skip")["text"].dropna()
    save_tiny_encoder(tmp_path / "encoders" / "tiny", sample.head(300))

    def make(*candidates: object, home: str = "home") -> Settings:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it once it is in use
        path = tmp_path / "candidates.yaml"
        path.write_text(yaml.safe_dump({"candidates": list(candidates)}, allow_unicode=True), encoding="utf-8")
        if not (tmp_path / home).exists():
            shutil.copytree(labelled_sample, tmp_path / home / "store")
        return load_settings(_env_file=None, home=tmp_path / home, candidates=path, encoders=tmp_path / "encoders")

    return make


def test_encoders_go_the_whole_way_and_missing_ones_are_shown_as_skipped(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reviewclf.registry.model import load_model

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    settings = make_settings(ENCODER, ABSENT, FROZEN)
    dataset = stages.build_dataset(settings)
    assert stages.candidate_names(settings, encoders=True) == ["tiny", "absent"]
    assert stages.candidate_names(settings, encoders=False) == ["tiny-frozen"]
    trained = [stages.train(settings, dataset, name) for name in stages.candidate_names(settings)]
    assert "REVIEWCLF_ENCODERS" in str(trained[1].details["skipped"])
    evaluated = stages.evaluate(settings, dataset, trained)
    stages.gate(settings, evaluated)

    tracker = Tracker(settings.tracking_uri)
    board = leaderboard(tracker)
    assert {row.candidate for row in board.rows} == {"tiny", "tiny-frozen"}
    assert list(board.skipped) == ["absent"]
    assert "nobody/nothing" in board.skipped["absent"]
    table = render(board)
    assert table.row_count == 3

    for manifest in (trained[0], trained[2]):
        run_id = str(manifest.details["run_id"])
        metrics = tracker.client.get_run(run_id).data.metrics
        # Nine classes: guessing gives 0.11.
        assert metrics["gold/weighted_f1"] > 0.3
        names = {file.path for file in tracker.client.list_artifacts(run_id)}
        assert {"export.json", "abstain.json", "validation", "evaluation"} <= names
        evaluation = {file.path for file in tracker.client.list_artifacts(run_id, "evaluation")}
        assert {"evaluation/reliability.png", "evaluation/confusion_matrix.png"} <= evaluation
        model = load_model(tracker, str(manifest.details["model_uri"]), version="1")
        answers = model.predict(["платье село отлично", ""])
        assert answers["confidence"].between(0, 1).all()
        assert set(model.predict(["абв где ж"] * 3, abstain=True)["label"]) <= {*answers["probabilities"][0], "не уверен"}
    run = tracker.client.get_run(str(trained[0].details["run_id"]))
    history = tracker.client.get_metric_history(run.info.run_id, "epoch/weighted_f1")
    assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]
    epochs = tracker.read_json(run.info.run_id, "epochs.json")
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3, 4, 5, 6]
    assert run.data.metrics["validation/weighted_f1"] == pytest.approx(max(entry["weighted_f1"] for entry in epochs))
    assert any(name.startswith("system/cpu") for name in run.data.metrics)
    assert not list(settings.home.rglob("checkpoint-*"))


def test_served_encoder_needs_no_torch(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings({**ENCODER, "params": {**ENCODER["params"], "epochs": 1}})  # type: ignore[dict-item]
    dataset = stages.build_dataset(settings)
    trained = stages.train(settings, dataset, "tiny")
    script = """
import sys
for name in ("torch", "transformers", "onnx", "sklearn"):
    sys.modules[name] = None
from reviewclf.registry.model import load_model
from reviewclf.registry.tracking import Tracker
model = load_model(Tracker(sys.argv[1]), sys.argv[2], version="1")
print(model.predict(["платье село отлично"])["label"][0])
"""
    said = subprocess.run(
        [sys.executable, "-c", script, settings.tracking_uri, str(trained.details["model_uri"])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip().splitlines()[-1] in pd.read_csv(ROOT / "reviewclf" / "sample" / "gold.csv")["label"].to_numpy()


def test_without_any_candidate_that_can_be_trained_the_reasons_are_told(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(ABSENT)
    dataset = stages.build_dataset(settings)
    with pytest.raises(TrainingError, match=r"no candidate could be trained.*nobody/nothing"):
        stages.evaluate(settings, dataset, [stages.train(settings, dataset, "absent")])


def test_encoder_that_appears_later_is_trained_then(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    later = {**ENCODER, "params": {**ENCODER["params"], "checkpoint": "org/later", "epochs": 1}}  # type: ignore[dict-item]
    settings = make_settings(later)
    dataset = stages.build_dataset(settings)
    assert "skipped" in stages.train(settings, dataset, "tiny").details
    (tmp_path / "encoders" / "tiny").rename(tmp_path / "encoders" / "later")
    trained = stages.train(settings, dataset, "tiny")
    assert "model_uri" in trained.details
    tracker = Tracker(settings.tracking_uri)
    stages.evaluate(settings, dataset, [trained])
    assert leaderboard(tracker).skipped == {}


_TRAIN = """
import sys
from reviewclf.manifest import Manifest
from reviewclf.settings import load_settings
from reviewclf.stages import train as train_stages
train_stages.train(load_settings(_env_file=None), Manifest.model_validate_json(open(sys.argv[1]).read()), "tiny")
"""


def test_fine_tuning_killed_in_the_middle_of_an_epoch_ends_like_an_undisturbed_one(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings({**ENCODER, "params": {**ENCODER["params"], "epochs": 6}})  # type: ignore[dict-item]
    dataset = stages.build_dataset(settings)
    manifest = tmp_path / "dataset.json"
    manifest.write_text(dataset.model_dump_json(), encoding="utf-8")
    environment = {
        **os.environ,
        "REVIEWCLF_HOME": str(settings.home),
        "REVIEWCLF_CANDIDATES": str(settings.candidates),
        "REVIEWCLF_ENCODERS": str(settings.encoders),
    }
    command = [sys.executable, "-c", _TRAIN, str(manifest)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    steps: dict[Path, float] = {}

    def in_the_middle() -> bool:
        for path in settings.home.glob("checkpoints/*/job-*/checkpoint-*/trainer_state.json"):
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # it goes, or is just being written
                steps[path] = json.loads(path.read_text(encoding="utf-8"))["epoch"]
        return any(epoch > 1 and not epoch.is_integer() for epoch in steps.values())

    deadline = time.monotonic() + 240
    while not in_the_middle():
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    trained = stages.train(settings, dataset, "tiny")
    tracker = Tracker(settings.tracking_uri)
    (run,) = tracker.find_runs({"reviewclf.kind": "candidate"})
    assert (run.info.run_id, run.info.status) == (trained.details["run_id"], "FINISHED")
    told = {point.step for point in tracker.client.get_metric_history(run.info.run_id, "epoch/weighted_f1")}
    assert told == set(range(1, 7))

    other = make_settings({**ENCODER, "params": {**ENCODER["params"], "epochs": 6}}, home="other")  # type: ignore[dict-item]
    undisturbed = stages.train(other, stages.build_dataset(other), "tiny")
    calm = Tracker(other.tracking_uri)
    assert calm.tracking_uri != tracker.tracking_uri
    (whole,) = calm.find_runs({"reviewclf.kind": "candidate"})
    for name in ("validation/weighted_f1", "validation/macro_f1", "validation/ece", "validation/accuracy"):
        assert run.data.metrics[name] == whole.data.metrics[name], name

    def curve(where: Tracker, run_id: str) -> list[dict[str, float]]:
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in where.read_json(run_id, "epochs.json")]

    assert curve(tracker, run.info.run_id) == curve(calm, whole.info.run_id)
    assert undisturbed.details["validation_weighted_f1"] == trained.details["validation_weighted_f1"]
