"""From clean reviews to predictions and a look at production: stages, registry, store and command line, all of them real."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from reviewclf.cli import app
from reviewclf.errors import ConflictError
from reviewclf.manifest import Manifest
from reviewclf.monitoring.report import HealthReport
from reviewclf.registry import CHALLENGER, CHAMPION, REGISTERED_MODEL
from reviewclf.registry.tracking import KIND_TAG, Tracker
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import monitor as monitor_stages
from reviewclf.stages import score as score_stages
from reviewclf.stages.score import latest_report, read_predictions
from reviewclf.store import Snapshot, Store
from reviewclf.text import text_hash
from tests.integration.test_stages import run_ingest, run_label, run_retrain
from tests.simulated_nights import ROOT, template_reviews
from tests.stores import killed_after

SAMPLE = ROOT / "reviewclf" / "sample"
NIGHT = 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two model versions, the second of which is champion, and nothing scored."""
    folder = tmp_path_factory.mktemp("ночь")
    settings = settings_of(folder)
    shutil.copy(SAMPLE / "reviews.csv", folder / "reviews.csv")
    run_ingest(settings)
    run_label(settings)
    for seed in (1, 2):
        run_retrain(settings.model_copy(update={"seed": seed}))
    aliases = Tracker(settings.tracking_uri).client.get_registered_model(REGISTERED_MODEL).aliases
    assert str(aliases[CHAMPION]) == "2"
    return folder


def settings_of(home: Path, **overrides: Any) -> Settings:
    return load_settings(
        _env_file=None,
        home=home,
        source=str(home / "reviews.csv"),
        candidates=ROOT / "tests" / "candidates-quick.yaml",
        synthetic=None,
        augmentation={"backend": "none"},
        **overrides,
    )


@pytest.fixture
def make_settings(trained: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a copy of the trained home."""
    shutil.copytree(trained, tmp_path / "дом")

    def make(**overrides: Any) -> Settings:
        return settings_of(tmp_path / "дом", **overrides)

    return make


def run_score(settings: Settings) -> tuple[Manifest, Manifest]:
    selected = score_stages.select(settings)
    shards: Any = selected.details["shards"]
    scored = [score_stages.score(settings, selected, shard) for shard in shards]
    published = score_stages.publish(settings, selected, scored)
    return published, monitor_stages.monitor(settings, published)


def add_reviews(settings: Settings, texts: list[str], prefix: str) -> None:
    frame = pd.DataFrame({"review_id": [f"{prefix}{n}" for n in range(len(texts))], "text": texts})
    path = Path(settings.source)
    frame.to_csv(path.with_name(f"{prefix}.csv"), index=False)
    run_ingest(settings.model_copy(update={"source": str(path.with_name(f"{prefix}.csv"))}))


def fresh_texts() -> list[str]:
    """Reviews that the champion was not trained on."""
    return pd.read_csv(SAMPLE / "gold.csv")["text"].tolist()


def predictions(settings: Settings) -> pd.DataFrame:
    store = Store(settings.store_uri)
    return store.read_table(store.snapshot().keys("predictions")).to_pandas()


def assert_each_once(settings: Settings) -> None:
    table = predictions(settings)
    assert not table.duplicated(["review_id", "model_version"]).any()
    store = Store(settings.store_uri)
    clean = store.read_table(store.snapshot().keys("clean"), ["review_id"])["review_id"].to_pylist()
    assert sorted(table.loc[table["role"] == CHAMPION, "review_id"]) == sorted(clean)


def test_without_a_champion_nothing_is_scored_and_the_reason_is_told(tmp_path: Path) -> None:
    shutil.copy(SAMPLE / "reviews.csv", tmp_path / "reviews.csv")
    settings = settings_of(tmp_path)
    run_ingest(settings)
    selected = score_stages.select(settings)
    assert "there is no champion" in str(selected.details["skipped"])
    assert latest_report(settings) is None


def test_every_clean_review_is_answered_once_in_shards_and_then_nothing_is_left(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(scoring={"shard_rows": 150})
    selected = score_stages.select(settings)
    assert selected.counts["shards"] == 5
    published, _ = run_score(settings)
    assert published.counts["reviews"] == selected.counts["pending"]
    assert_each_once(settings)
    assert predictions(settings)["model_version"].unique().tolist() == ["2"]
    assert "nothing to score" in str(score_stages.select(settings).details["skipped"])
    add_reviews(settings, fresh_texts()[:30], "n")
    published, _ = run_score(settings)
    assert published.counts["reviews"] == 30
    assert_each_once(settings)


def test_batch_answers_are_those_of_the_predict_command(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    run_score(settings)
    exported = read_predictions(settings)
    clean = Store(settings.store_uri)
    raw = clean.read_table(clean.snapshot().keys("clean"), ["review_id", "text"]).to_pandas()
    raw.to_csv(tmp_path / "in.csv", index=False)
    environment = {"REVIEWCLF_HOME": str(settings.home)}
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "in.csv"), str(tmp_path / "out.csv")], env=environment)
    assert done.exit_code == 0, done.output
    answers = pd.read_csv(tmp_path / "out.csv", dtype={"review_id": str}).merge(exported, on="review_id")
    assert len(answers) == len(raw)
    assert (answers["predicted_label"] == answers["label"]).all()
    assert np.allclose(answers["confidence_x"], answers["confidence_y"])


def test_two_runs_at_once_publish_each_answer_once(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    early = score_stages.select(settings)
    early_parts = [score_stages.score(settings, early, shard) for shard in early.details["shards"]]  # type: ignore[union-attr, arg-type]
    add_reviews(settings, fresh_texts()[:20], "n")
    late = score_stages.select(settings)
    late_parts = [score_stages.score(settings, late, shard) for shard in late.details["shards"]]  # type: ignore[union-attr, arg-type]
    start = threading.Barrier(4)

    def publish(selected: Manifest, parts: list[Manifest]) -> Manifest:
        start.wait()
        return score_stages.publish(settings, selected, parts)

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(publish, *pair) for pair in [(early, early_parts), (late, late_parts)] * 2]
        for run in runs:
            run.result()
    assert_each_once(settings)


def test_another_writer_in_between_makes_publish_look_again(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    selected = score_stages.select(settings)
    parts = [score_stages.score(settings, selected, shard) for shard in selected.details["shards"]]  # type: ignore[union-attr, arg-type]
    commit = Store.commit
    refused = 0

    def contested(self: Store, base: Snapshot, **arguments: Any) -> Snapshot:
        nonlocal refused
        if refused < 3:
            refused += 1
            commit(self, base, key=f"somebody:{refused}")
            raise ConflictError("somebody was quicker")
        return commit(self, base, **arguments)

    monkeypatch.setattr(Store, "commit", contested)
    score_stages.publish(settings, selected, parts)
    assert refused == 3
    assert_each_once(settings)


@pytest.mark.parametrize("survived", range(0, 12, 2))
def test_scoring_killed_at_any_write_ends_like_an_undisturbed_one(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    settings = make_settings(scoring={"shard_rows": 400})
    assert killed_after(survived, lambda: run_score(settings))
    published, watched = run_score(settings)
    assert_each_once(settings)
    store = Store(settings.store_uri)
    assert len(store.snapshot().keys("health")) == 1
    assert monitor_stages.monitor(settings, published).counts == watched.counts
    assert len(store.snapshot().keys("health")) == 1
    assert len(Tracker(settings.tracking_uri).find_runs({KIND_TAG: "scoring"})) == 1


def test_new_champion_answers_history_anew_only_when_asked(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    run_score(settings)
    before = latest_report(settings)
    client = Tracker(settings.tracking_uri).client
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, "1")
    assert "nothing to score" in str(score_stages.select(settings).details["skipped"])
    asked = make_settings_like(settings, scoring={"rescore_on_promotion": True})
    published, watched = run_score(asked)
    assert published.counts["fresh"] == 0
    assert "no new night" in str(watched.details["skipped"])
    assert latest_report(settings) == before
    table = predictions(settings)
    assert not table.duplicated(["review_id", "model_version"]).any()
    assert table["model_version"].value_counts().to_dict() == dict.fromkeys(["1", "2"], len(table) // 2)
    assert set(read_predictions(settings)["model_version"]) == {"1"}


def make_settings_like(settings: Settings, **overrides: Any) -> Settings:
    return settings_of(settings.home, **overrides)


def test_challenger_answers_in_the_shadow_and_its_disagreement_is_logged(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(scoring={"shadow": True})
    tracker = Tracker(settings.tracking_uri)
    tracker.client.set_registered_model_alias(REGISTERED_MODEL, CHALLENGER, "1")
    published, watched = run_score(settings)
    table = predictions(settings)
    both = table.pivot(index="review_id", columns="role", values="label")
    disagreed = int((both[CHAMPION] != both[CHALLENGER]).sum())
    assert published.counts["disagreed"] == disagreed > 0
    report = latest_report(settings)
    assert report is not None
    assert report.challenger == "1"
    assert report.disagreement_share == pytest.approx(disagreed / len(both), abs=1e-6)
    run = tracker.client.get_run(str(watched.details["run_id"]))
    assert run.data.metrics["shadow/disagreement_share"] == pytest.approx(disagreed / len(both), abs=1e-6)
    told = tracker.read_json(run.info.run_id, "shadow/disagreements.json")
    assert sum(pair["reviews"] for pair in told["pairs"]) == disagreed
    shadow = read_predictions(settings, role=CHALLENGER).set_index("review_id")["label"]
    assert shadow[both.index].tolist() == both[CHALLENGER].tolist()


def test_nights_are_watched_and_a_flood_is_told_once(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    _, watched = run_score(settings)
    report = latest_report(settings)
    assert report is not None
    assert report.verdict == "unknown"
    assert "trained on" in report.note
    assert watched.counts["new_alarms"] == 0

    texts = fresh_texts()
    for night in range(2):
        add_reviews(settings, texts[night * NIGHT : (night + 1) * NIGHT], f"n{night}_")
        _, watched = run_score(settings)
        assert watched.details["verdict"] == "healthy", watched.details["headline"]

    rng = np.random.default_rng(0)
    for night, new_alarms in ((2, True), (3, False)):
        flood = texts[2 * NIGHT + 50 * (night - 2) :][:50] + template_reviews(rng, 30)
        add_reviews(settings, flood, f"n{night}_")
        published, watched = run_score(settings)
        assert watched.details["verdict"] == "drift"
        assert "input/templates" in watched.details["alarmed"]  # type: ignore[operator]
        assert ("input/templates" in str(watched.details["alarm"])) == new_alarms
    again = monitor_stages.monitor(settings, published)
    assert again.details["alarm"] == watched.details["alarm"]

    report = latest_report(settings)
    assert report is not None
    flooded = next(signal for signal in report.signals if signal.name == "input/templates")
    assert all("Товар полностью соответствует" in example for example in flooded.examples)
    assert report.estimated_f1 is not None
    exposition = monitor_stages.exposition_path(settings).read_text()
    assert 'reviewclf_health_alarm{signal="input/templates"} 1.0' in exposition
    assert 'reviewclf_health_verdict{verdict="drift"} 1.0' in exposition
    run = Tracker(settings.tracking_uri).client.get_run(str(watched.details["run_id"]))
    assert run.data.tags["reviewclf.verdict"] == "drift"
    assert run.data.metrics["drift/input/templates"] == flooded.value

    runner, environment = CliRunner(), {"REVIEWCLF_HOME": str(settings.home)}
    shown = runner.invoke(app, ["health"], env=environment)
    assert shown.exit_code == 0, shown.output
    assert "drift: " in shown.output
    assert "ALARM" in shown.output
    as_json = runner.invoke(app, ["health", "--json"], env=environment)
    assert HealthReport.model_validate_json(as_json.output) == report


def test_error_of_the_estimate_is_known_once_labels_of_a_past_night_came_in(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings()
    run_score(settings)
    gold = pd.read_csv(SAMPLE / "gold.csv")
    add_reviews(settings, gold["text"].tolist()[:NIGHT], "n0_")
    run_score(settings)
    report = latest_report(settings)
    assert report is not None
    assert report.estimate_error is None

    votes = tmp_path / "votes.csv"
    said = gold.iloc[:NIGHT].assign(review_id=[f"n0_{n}" for n in range(NIGHT)], annotator="later@1")
    said[["review_id", "annotator", "label"]].to_csv(votes, index=False)
    labelling = settings.model_copy(update={"votes": str(votes), "gold": None})
    run_label(labelling)
    add_reviews(settings, gold["text"].tolist()[NIGHT : 2 * NIGHT], "n1_")
    run_score(settings)
    report = latest_report(settings)
    assert report is not None
    assert report.estimate_nights == 1
    assert report.estimate_error is not None
    assert 0 <= report.estimate_error < 0.2


def test_export_gives_exact_copies_the_answer_of_the_first(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    text = fresh_texts()[0]
    add_reviews(settings, [text, text.upper()], "c")
    run_score(settings)
    environment = {"REVIEWCLF_HOME": str(settings.home)}
    done = CliRunner().invoke(app, ["predictions", "export", str(tmp_path / "out.csv")], env=environment)
    assert done.exit_code == 0, done.output
    exported = pd.read_csv(tmp_path / "out.csv", dtype=str).set_index("review_id")
    assert exported.loc["c1", "label"] == exported.loc["c0", "label"]
    assert exported.loc["c1", "text_clean"] == exported.loc["c0", "text_clean"]
    assert exported.index.is_unique


def test_edited_review_is_answered_anew_and_its_newest_text_is_exported(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    first, second, other = fresh_texts()[:3]
    add_reviews(settings, [first, other, other], "e")
    run_score(settings)
    add_reviews(settings, [second, other, other], "e")
    published, _ = run_score(settings)
    assert counts_of(published) == (1, 1)
    assert (predictions(settings)["review_id"] == "e0").sum() == 2
    exported = read_predictions(settings, role=CHAMPION).set_index("review_id")
    assert exported.index.is_unique
    assert exported.loc["e0", "text_hash"] == text_hash(second)
    # A copy takes the place of the review that is edited, and is answered under its own id.
    add_reviews(settings, [second, first, other], "e")
    published, _ = run_score(settings)
    assert counts_of(published) == (2, 2)
    exported = read_predictions(settings, role=CHAMPION).set_index("review_id")
    assert [exported.loc[key, "text_hash"] for key in ("e0", "e1", "e2")] == [text_hash(t) for t in (second, first, other)]


def counts_of(published: Manifest) -> tuple[int, int]:
    return published.counts["reviews"], published.counts["fresh"]
