"""Synthetic reviews in the retrain, on the bundled sample: planned, written, filtered, used only where they help, logged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from reviewclf import cli
from reviewclf.augmentation import generators
from reviewclf.augmentation.amounts import choices_of
from reviewclf.errors import AnnotatorUnavailableError, AugmentationError, DatasetError
from reviewclf.manifest import Manifest
from reviewclf.registry.tracking import Tracker
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import dataset as dataset_stages
from reviewclf.stages import synthesize as synthesize_stages
from reviewclf.stages import train as train_stages
from reviewclf.store import Store
from tests.integration.test_stages import tables

CATEGORY = "украшения и аксессуары"


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candidates") / "fast.yaml"
    params = {
        "estimator": "logistic_regression",
        "C": 10,
        "class_weight_power": 0.5,
        "word": {"ngram_range": [1, 1], "min_df": 1, "max_features": 5000},
        "calibration": "none",
    }
    path.write_text(yaml.safe_dump({"candidates": [{"name": "logreg", "kind": "linear", "params": params}]}), encoding="utf-8")
    return path


@pytest.fixture
def make_settings(tmp_path: Path, fast: Path, labelled_sample: str) -> Callable[..., Settings]:
    shutil.copytree(labelled_sample, tmp_path / "home" / "store")

    def make(**overrides: object) -> Settings:
        return load_settings(_env_file=None, **{"home": tmp_path / "home", "candidates": fast, **overrides})

    return make


def build(settings: Settings) -> tuple[Manifest, list[Manifest], Manifest]:
    planned = synthesize_stages.plan_synthesis(settings)
    synthesized = [synthesize_stages.synthesize(settings, planned, name) for name in synthesize_stages.thin_classes(planned)]
    return planned, synthesized, train_stages.build_dataset(settings, synthesized)


def rows_of(settings: Settings, manifest: Manifest, output: str = "dataset") -> pd.DataFrame:
    frame: pd.DataFrame = Store(settings.store_uri).read_table(manifest.keys(output)).to_pandas()
    return frame


def test_sample_goes_the_whole_way(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    planned, synthesized, dataset = build(settings)
    assert synthesize_stages.thin_classes(planned) == [CATEGORY]
    counts = synthesized[0].counts
    assert counts["written"] == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("refused_"))

    stored = tables(settings)
    assert len(stored["synthetic"]) == counts["kept"]
    assert len(stored["rejected_synthetic"]) == counts["written"] - counts["kept"] > 10
    assert stored["rejected_synthetic"]["reason"].notna().all()
    assert stored["rejected_synthetic"]["reason"].nunique() >= 8

    # Every row is somewhere, and synthetic ones are in train alone, as many as were chosen.
    rows, left_out = rows_of(settings, dataset), rows_of(settings, dataset, "left_out")
    (choice,) = choices_of(dataset)
    synthetic = rows[rows["origin"] == "synthetic"]
    assert len(synthetic) == choice.rows
    assert set(synthetic["split"]) <= {"train"}
    assert (rows["split"] != "test").sum() + len(left_out) == dataset.counts["labelled"] + dataset.counts["synthetic"]
    assert choice.rows + (left_out["origin"] == "synthetic").sum() == counts["kept"]

    trained = train_stages.train(settings, dataset, "logreg")
    evaluated = train_stages.evaluate(settings, dataset, [trained])
    effect: Any = evaluated.details["augmentation_on_gold"]
    figures = effect[CATEGORY]
    assert figures["with"] >= figures["without"]
    assert figures["with_low"] <= figures["with"] <= figures["with_high"]
    assert figures["n"] >= 10

    tracker = Tracker(settings.tracking_uri)
    (run,) = tracker.find_runs({"reviewclf.kind": "retrain"})
    artifacts = {
        item.path for folder in ("augmentation", "dataset") for item in tracker.client.list_artifacts(run.info.run_id, folder)
    }
    assert {"augmentation/filters.md", "augmentation/curve.md", "augmentation/gold.json", "dataset/card.md"} <= artifacts
    history = tracker.client.get_metric_history(run.info.run_id, f"augmentation/class_{choice.id}/recall")
    assert sorted(metric.step for metric in history) == [figure.rows for figure in choice.curve]
    assert f"augmentation/class_{choice.id}/gold_recall/with_low" in run.data.metrics

    again = build(settings)
    assert again == (planned, synthesized, dataset)
    assert len(tables(settings)["synthetic"]) == counts["kept"]


def test_card_counts_every_row(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(augmentation={"amounts": [0.5], "folds": 2})
    _, _, dataset = build(settings)
    card: Any = dataset.details["card"]
    assert sum(row["rows"] for row in card["rows"]) == len(rows_of(settings, dataset))
    assert sum(row["rows"] for row in card["left_out"]) == len(rows_of(settings, dataset, "left_out"))
    assert sum(card["sources"].values()) == sum(row["rows"] for row in card["rows"] if row["origin"] == "llm")
    assert card["filters"][0]["rules"]["numbering"] > 0
    assert {"python", "pandas", "scikit-learn"} <= card["versions"].keys()


@pytest.mark.parametrize("options", [{"synthetic": None}, {"augmentation": {"backend": "none"}}])
def test_nobody_to_write_is_no_error(make_settings: Callable[..., Settings], options: dict[str, Any]) -> None:
    settings = make_settings(**options)
    planned, synthesized, dataset = build(settings)
    assert synthesized == []
    assert "REVIEWCLF_SYNTHETIC" in str(planned.details["skipped"])
    assert dataset.details["rows_by_origin"].keys() == {"human", "llm"}  # type: ignore[union-attr]
    assert "synthetic" not in tables(settings)


def test_without_recorded_votes_nothing_is_kept(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(synthetic_votes=None)
    _, synthesized, dataset = build(settings)
    assert synthesized[0].counts["kept"] == 0
    assert synthesized[0].counts["refused_llm_check"] > 50
    assert dataset.details["augmentation"] == []


def test_class_that_was_not_planned_is_named(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    planned = synthesize_stages.plan_synthesis(settings)
    with pytest.raises(AugmentationError, match="nothing is planned for 'обувь'; planned are украшения"):
        synthesize_stages.synthesize(settings, planned, "обувь")


def test_costly_writer_is_paid_once(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(augmentation={"amounts": [0.5], "folds": 2})
    recorded = generators.make_generator(settings, synthesize_stages.Taxonomy.load(settings.taxonomy))
    assert recorded is not None
    paid: list[int] = []

    class Costly:
        version = "costly@1"
        is_costly = True
        lasts = 1

        def available(self, category: str) -> None:
            return None

        def write(self, requests: Any) -> Iterator[Any]:
            for request in requests:
                if len(paid) >= self.lasts:
                    raise AnnotatorUnavailableError("the server is away")
                paid.append(request.number)
                (answer,) = recorded.write([request])
                yield answer.model_copy(update={"generator": self.version, "tokens_out": 10})

    writer = Costly()
    monkeypatch.setattr(synthesize_stages, "make_generator", lambda *arguments: writer)
    planned = synthesize_stages.plan_synthesis(settings)
    with pytest.raises(AnnotatorUnavailableError):
        synthesize_stages.synthesize(settings, planned, CATEGORY, retry=True)
    writer.lasts = 100
    synthesized = [synthesize_stages.synthesize(settings, planned, CATEGORY)]
    assert sorted(paid) == list(range(len(paid)))
    train_stages.build_dataset(settings, synthesized)
    assert tables(settings)["synthetic_written"]["number"].tolist() == paid
    # The next night, with another candidate stage digest: everything is known.
    before = list(paid)
    again = synthesize_stages.synthesize(settings, synthesize_stages.plan_synthesis(settings), CATEGORY)
    assert paid == before
    assert again.keys("kept") == synthesized[0].keys("kept")


def test_datasets_can_be_listed_shown_and_compared(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(synthetic=None)
    first = train_stages.build_dataset(settings)
    second = train_stages.build_dataset(make_settings(synthetic=None, seed=7))
    monkeypatch.setattr(cli, "load_settings", lambda: settings)
    run = CliRunner().invoke
    listed = run(cli.app, ["dataset", "list"]).output
    assert {line.split()[0] for line in listed.splitlines()} == {first.digest, second.digest}
    assert f"# Dataset {first.digest}" in run(cli.app, ["dataset", "show", first.digest[:10]]).output
    said = run(cli.app, ["dataset", "diff", first.digest, second.digest]).output
    assert "input seed: 42 → 7" in said
    assert "row(s) changed split: " in said
    assert " train → validation" in said
    same = run(cli.app, ["dataset", "diff", "newest", "newest"]).output
    assert "the same rows from the same inputs" in same
    with pytest.raises(DatasetError, match=f"no dataset is called 'zzz'; there are .*{first.digest}"):
        dataset_stages.find_dataset(settings, "zzz")


def test_dataset_is_made_again_from_the_versions_that_it_was_made_from(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = make_settings(synthetic=None)
    made = train_stages.build_dataset(settings)
    store = Store(settings.store_uri)
    (rows,) = made.keys("dataset")
    # Later nights change the tables, and retention removes the rows.
    base = store.snapshot()
    store.commit(base, key="later", replace={"labels": store.put_part(store.read(base, "labels").slice(40))})
    assert train_stages.build_dataset(settings).digest != made.digest
    store.remove(rows)
    monkeypatch.setattr(cli, "load_settings", lambda: settings.model_copy(update={"seed": 7}))
    said = CliRunner().invoke(cli.app, ["dataset", "rebuild", made.digest[:12]])
    assert f"the same rows came out of version {base.version}" in said.output, said
    assert store.read(made, "dataset").num_rows == sum(
        made.counts[f"{split}_rows"] for split in ("train", "validation", "test")
    )
    with pytest.raises(DatasetError, match="others than then: gold"):
        dataset_stages.rebuild(settings.model_copy(update={"gold": None}), made.digest)


def test_of_a_capped_class_the_surest_rows_are_read(make_settings: Callable[..., Settings]) -> None:
    whole = train_stages.build_dataset(make_settings(synthetic=None))
    capped = train_stages.build_dataset(make_settings(synthetic=None, dataset={"max_class_rows": 10}))
    assert (whole.counts["beyond_cap"], capped.counts["labelled"]) == (0, whole.counts["labelled"])
    assert capped.counts["beyond_cap"] > 0
    rows = Store(make_settings().store_uri).read(capped, "dataset").to_pandas()
    assert rows[rows["split"] == "train"]["label"].value_counts().max() <= 10
    assert rows[rows["split"] == "validation"]["label"].nunique() == 9
