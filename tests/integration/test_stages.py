"""All stages in one process, on the bundled sample: idempotent, restartable, nothing lost, the registry follows the gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
import pytest

from reviewclf.errors import DataContractError, QualityError, RegistryError
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import ingest as ingest_stages
from reviewclf.stages import label as label_stages
from reviewclf.stages import train as train_stages
from reviewclf.store import Store
from reviewclf.text import text_hash
from tests.stores import held, killed_after


def run_ingest(settings: Settings) -> Manifest:
    ingested = ingest_stages.ingest(settings)
    validated = ingest_stages.validate_raw(settings, ingested)
    cleaned = ingest_stages.clean(settings, ingested, validated)
    report = ingest_stages.validate_clean(settings, cleaned)
    return ingest_stages.publish(settings, ingested, validated, cleaned, report)


def run_label(settings: Settings) -> Manifest:
    selected = label_stages.select(settings)
    shards = selected.details["shards"]
    annotated = [label_stages.annotate(settings, selected, shard) for shard in shards]  # type: ignore[union-attr, arg-type]
    return label_stages.aggregate(settings, selected, annotated)


def run_retrain(settings: Settings) -> tuple[Manifest, Manifest, Manifest]:
    dataset = train_stages.build_dataset(settings)
    trained = [train_stages.train(settings, dataset, name) for name in train_stages.candidate_names(settings)]
    evaluated = train_stages.evaluate(settings, dataset, trained)
    gated = train_stages.gate(settings, evaluated)
    return evaluated, gated, train_stages.promote(settings, gated)


def tables(settings: Settings) -> dict[str, pd.DataFrame]:
    store = Store(settings.store_uri)
    snapshot = store.snapshot()
    return {name: store.read_table(keys).to_pandas() for name in snapshot.tables if (keys := snapshot.keys(name))}


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(**overrides: object) -> Settings:
        return load_settings(_env_file=None, **{"home": tmp_path / "дом с пробелом", **overrides})

    return make


@pytest.fixture
def labelled(make_settings: Callable[..., Settings], labelled_sample: str) -> Settings:
    """Settings of a home in which the sample is labelled; `make_settings` makes others of the same home."""
    settings = make_settings()
    shutil.copytree(labelled_sample, settings.store_uri)
    return settings


def write_reviews(path: Path, rows: list[tuple[str, str]]) -> str:
    pd.DataFrame(rows, columns=["review_id", "text"]).to_csv(path, index=False)
    return str(path)


def test_rows_in_are_clean_or_quarantined_or_duplicates(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    counts = run_ingest(settings).counts
    assert counts["rows_in"] == counts["clean"] + counts["quarantined"] + counts["duplicates"]
    written = tables(settings)
    assert len(written["clean"]) == counts["clean"] == counts["new"]
    assert len(written["quarantine"]) == counts["quarantined"] > 0
    assert len(written["duplicates"]) == counts["duplicates"] > 0
    assert written["quarantine"]["reason"].notna().all()


def test_second_run_over_the_same_source_adds_nothing(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    run_ingest(settings)
    version = Store(settings.store_uri).snapshot().version
    again = run_ingest(settings)
    assert (again.counts["rows_in"], again.counts["new"]) == (0, 0)
    assert Store(settings.store_uri).snapshot().version == version


def test_grown_file_adds_its_new_rows_only(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    rows = [("1", "Платье село отлично"), ("2", "Кружка пришла разбитой"), ("3", "платье село отлично!!!")]
    settings = make_settings(source=write_reviews(tmp_path / "reviews.csv", rows))
    first = run_ingest(settings).counts
    assert (first["clean"], first["duplicates"], first["quarantined"]) == (2, 1, 0)
    write_reviews(
        tmp_path / "reviews.csv", [*rows, ("4", "Наушники хрипят"), ("1", "Платье полиняло"), ("5", "КРУЖКА пришла разбитой")]
    )
    second = run_ingest(settings).counts
    assert (second["rows_in"], second["known"], second["clean"], second["duplicates"], second["quarantined"]) == (6, 3, 2, 1, 0)
    written = tables(settings)
    # The first text of 1 stays as long as 3 has it.
    assert sorted(written["clean"]["review_id"]) == ["1", "2", "3", "4"]
    assert written["duplicates"][["review_id", "duplicate_of"]].to_numpy().tolist() == [["5", "2"]]
    assert written["history"][["review_id", "text"]].to_numpy().tolist() == [["1", "Платье село отлично"]]


def test_near_duplicates_are_counted_and_stay(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    text = "Пуховик очень тёплый, капюшон глубокий, молния не заедает, доставили за неделю"
    rows = [("1", text), ("2", text.replace("тёплый", "тёплий")), ("3", "Кружка пришла разбитой, деньги вернули")]
    settings = make_settings(source=write_reviews(tmp_path / "reviews.csv", rows))
    counts = run_ingest(settings).counts
    assert (counts["clean"], counts["near_duplicates"]) == (3, 1)
    # Also where the earlier one came on another night.
    write_reviews(tmp_path / "reviews.csv", [*rows, ("4", text.replace("тёплый", "тёплай"))])
    assert run_ingest(settings).counts["near_duplicates"] == 1
    found = tables(settings)["near_duplicates"]
    assert found["review_id"].tolist() == ["2", "4"]
    assert found["near_duplicate_of"].tolist() == [text_hash(text)] * 2


def test_refused_batch_publishes_nothing_and_a_mended_one_does(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    english = [(str(number), f"Nice dress number {number}") for number in range(20)]
    settings = make_settings(source=write_reviews(tmp_path / "reviews.csv", english))
    with pytest.raises(QualityError, match=r"not_russian.*REVIEWCLF_QUALITY__"):
        run_ingest(settings)
    assert Store(settings.store_uri).snapshot().version == 0
    write_reviews(tmp_path / "reviews.csv", [(str(number), f"Красивое платье номер {number}") for number in range(20)])
    assert run_ingest(settings).counts["new"] == 20


def test_two_ingests_at_once_end_like_one_after_the_other(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    first = make_settings(source=write_reviews(tmp_path / "a.csv", [("1", "Платье село отлично"), ("2", "Кружка разбита")]))
    second = make_settings(source=write_reviews(tmp_path / "b.csv", [("3", "Кружка разбита"), ("4", "Сапоги протекли")]))
    prepared = []
    for settings in (first, second):
        ingested = ingest_stages.ingest(settings)
        validated = ingest_stages.validate_raw(settings, ingested)
        cleaned = ingest_stages.clean(settings, ingested, validated)
        prepared.append((settings, ingested, validated, cleaned, ingest_stages.validate_clean(settings, cleaned)))
    for settings, *manifests in prepared:
        ingest_stages.publish(settings, *manifests)
    written = tables(first)
    assert sorted(written["clean"]["review_id"]) == ["1", "2", "4"]
    assert written["duplicates"]["review_id"].tolist() == ["3"]


class Killed(BaseException):
    """What kills a stage: no handler for errors sees it."""


@pytest.mark.parametrize("survived", range(0, 60, 7))
def test_run_killed_at_any_write_ends_like_an_undisturbed_one(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    source = write_reviews(
        tmp_path / "r.csv", [(str(n), f"Платье номер {n}") for n in range(30)] + [("x", ""), ("y", "платье номер 1")]
    )
    votes = tmp_path / "votes.csv"
    votes.write_text("review_id,annotator,label\n" + "".join(f"{n},reader,одежда\n" for n in range(30)), encoding="utf-8")
    undisturbed = make_settings(home=tmp_path / "undisturbed", source=source, votes=str(votes), gold=None)
    run_ingest(undisturbed)
    run_label(undisturbed)

    settings = make_settings(home=tmp_path / "killed", source=source, votes=str(votes), gold=None)

    def night() -> None:
        run_ingest(settings)
        run_label(settings)

    killed_after(survived, night)
    night()
    assert held(settings.store_uri) == held(undisturbed.store_uri)


def test_votes_are_stored_once_and_only_new_ones_change_labels(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    source = write_reviews(tmp_path / "r.csv", [("1", "Всё понравилось"), ("2", "Платье село"), ("3", "Спасибо")])
    votes = tmp_path / "votes.csv"
    votes.write_text(
        "review_id,annotator,label,confidence\n1,qwen@1,нет товара,0.9\n9,qwen@1,обувь,0.9\n2,qwen@1,мебель,1\n", "utf-8"
    )
    settings = make_settings(source=source, votes=str(votes), gold=None)
    run_ingest(settings)
    selected = label_stages.select(settings)
    assert (selected.counts["unmatched_votes"], selected.counts["refused_votes"]) == (1, 1)
    assert selected.details["unmatched_votes"] == ["9"]
    first = run_label(settings)
    assert first.counts["changed"] == 2
    again = run_label(settings)
    assert (again.counts["changed"], again.counts["new_votes"]) == (0, 0)
    with votes.open("a", encoding="utf-8") as file:
        file.write("3,qwen@1,нет товара,0.9\n")
    third = run_label(settings)
    assert (third.counts["changed"], third.counts["new_votes"]) == (1, 1)
    written = tables(settings)
    assert not written["votes"].duplicated(["text_hash", "annotator", "prompt", "draw"]).any()
    by_id = written["labels"].merge(written["clean"], on="text_hash").set_index("review_id")
    assert by_id["label"].to_dict() == {"1": "нет товара", "2": "одежда", "3": "нет товара"}
    assert by_id["method"].to_dict() == {"1": "posterior", "2": "keywords", "3": "posterior"}
    assert any("мебель" in reason for reason in written["quarantine"]["reason"])


def test_repeated_aggregate_task_counts_the_same_changes(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    run_ingest(settings)
    selected = label_stages.select(settings)
    annotated = [label_stages.annotate(settings, selected, shard) for shard in selected.details["shards"]]  # type: ignore[union-attr, arg-type]
    first = label_stages.aggregate(settings, selected, annotated)
    assert first.counts["changed"] > 0
    assert label_stages.aggregate(settings, selected, annotated) == first


def test_shards_together_give_what_one_shard_gives(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    whole = make_settings(home=tmp_path / "whole")
    split = make_settings(home=tmp_path / "split", llm={"shard_rows": 100})
    for settings in (whole, split):
        run_ingest(settings)
        run_label(settings)
    order = ["text_hash", "annotator", "prompt", "draw"]
    votes = [tables(settings)["votes"].sort_values(order, ignore_index=True) for settings in (whole, split)]
    pd.testing.assert_frame_equal(*votes)
    pd.testing.assert_frame_equal(tables(whole)["labels"], tables(split)["labels"])


def test_sample_ends_with_a_champion_and_a_second_retrain_changes_nothing(labelled: Settings) -> None:
    from reviewclf.promotion.leaderboard import leaderboard
    from reviewclf.registry.model import aliases, load_alias, versions
    from reviewclf.registry.tracking import Tracker

    evaluated, gated, promoted = run_retrain(labelled)
    tracker = Tracker(labelled.tracking_uri)

    assert promoted.details["promoted"] is True
    challenger = gated.details["challenger"]
    assert aliases(tracker) == {"champion": challenger["version"]}  # type: ignore[index, call-overload]
    board = leaderboard(tracker)
    assert [row.candidate for row in board.rows] == sorted(
        (row.candidate for row in board.rows),
        key=lambda name: -next(r.weighted_f1 or 0 for r in board.rows if r.candidate == name),
    )
    for row in board.rows:
        assert row.weighted_f1_low <= row.weighted_f1 <= row.weighted_f1_high  # type: ignore[operator]
        assert row.gold_rows == evaluated.counts["gold_rows"]
    assert any("champion" in row.aliases for row in board.rows)

    model = load_alias(tracker)
    answers = model.predict(["Сковорода с антипригарным покрытием", None, ""])
    assert answers["label"].tolist()[0] == "посуда"
    assert all(abs(sum(row.values()) - 1) < 1e-6 for row in answers["probabilities"])
    champion_run = tracker.client.get_run(challenger["run_id"])  # type: ignore[index, call-overload]
    artifacts = {
        item.path
        for folder in ("", "evaluation", "gate")
        for item in tracker.client.list_artifacts(champion_run.info.run_id, folder)
    }
    assert {
        "environment.json",
        "evaluation/confusion_matrix.png",
        "evaluation/gold.json",
        "gate/report.json",
        "gate/report.html",
    } <= artifacts
    assert {item.dataset.name for item in champion_run.inputs.dataset_inputs} == {
        "reviews-train",
        "reviews-validation",
        "reviews-test",
    }
    assert champion_run.data.tags["mlflow.parentRunId"] in {
        run.info.run_id for run in tracker.find_runs({"reviewclf.kind": "retrain"})
    }

    before = len(versions(tracker)), len(tracker.find_runs({}))
    _, _, again = run_retrain(labelled)
    assert again.details["promoted"] is False
    assert (len(versions(tracker)), len(tracker.find_runs({}))) == before


def test_logged_model_holds_no_pickle(labelled: Settings) -> None:
    dataset = train_stages.build_dataset(labelled)
    train_stages.train(labelled, dataset, train_stages.candidate_names(labelled)[0])
    files = [path for path in labelled.home.rglob("*") if path.is_file()]
    assert any(path.name == "model.skops" for path in files)
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".joblib", ".cloudpickle"}]


def test_run_deleted_in_mlflow_is_trained_anew(labelled: Settings) -> None:
    from reviewclf.registry.tracking import Tracker

    dataset = train_stages.build_dataset(labelled)
    name = train_stages.candidate_names(labelled)[0]
    first = train_stages.train(labelled, dataset, name)
    assert train_stages.train(labelled, dataset, name) == first
    Tracker(labelled.tracking_uri).client.delete_run(str(first.details["run_id"]))
    second = train_stages.train(labelled, dataset, name)
    assert second.details["run_id"] != first.details["run_id"]


def test_killed_training_leaves_one_run(labelled: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from reviewclf.registry import model as registry_model
    from reviewclf.registry.tracking import Tracker

    dataset = train_stages.build_dataset(labelled)
    name = train_stages.candidate_names(labelled)[0]

    def dying(*args: object, **arguments: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(registry_model, "log_model", dying)
        # A killed process gets no chance to mark its run as failed.
        patch.setattr(mlflow.MlflowClient, "set_terminated", lambda *args, **arguments: None)
        with pytest.raises(Killed):
            train_stages.train(labelled, dataset, name)
    trained = train_stages.train(labelled, dataset, name)
    runs = Tracker(labelled.tracking_uri).find_runs({"reviewclf.kind": "candidate"})
    assert [(run.info.run_id, run.info.status) for run in runs] == [(trained.details["run_id"], "FINISHED")]


def test_without_gold_nothing_is_promoted_and_the_gate_says_why(labelled: Settings) -> None:
    from reviewclf.registry.model import load_alias
    from reviewclf.registry.tracking import Tracker

    _, gated, promoted = run_retrain(labelled.model_copy(update={"gold": None}))
    assert gated.details["challenger"] is None
    assert promoted.details["promoted"] is False
    assert all("gold_rows" in verdict["reason"] for verdict in gated.details["verdicts"].values())  # type: ignore[union-attr, index, call-overload]
    with pytest.raises(RegistryError, match="champion"):
        load_alias(Tracker(labelled.tracking_uri))


def test_refused_candidates_leave_the_champion_alone(make_settings: Callable[..., Settings], labelled: Settings) -> None:
    from reviewclf.registry.model import aliases
    from reviewclf.registry.tracking import Tracker

    _, _, promoted = run_retrain(labelled)
    strict = make_settings(gate={"min_weighted_f1": 0.999})
    _, gated, second = run_retrain(strict)
    assert gated.details["challenger"] is None
    assert second.details["promoted"] is False
    assert aliases(Tracker(labelled.tracking_uri))["champion"] == promoted.details["champion"]


def test_new_champion_makes_the_old_one_previous(make_settings: Callable[..., Settings], labelled: Settings) -> None:
    from reviewclf.registry.model import aliases
    from reviewclf.registry.tracking import Tracker

    _, _, first = run_retrain(labelled)
    _, _, second = run_retrain(make_settings(seed=7))
    assert second.details["promoted"] is True
    known = aliases(Tracker(labelled.tracking_uri))
    assert known == {"champion": second.details["champion"], "previous": first.details["champion"]}


def test_other_classes_in_another_language_need_nothing_but_a_taxonomy(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    taxonomy = tmp_path / "taxonomy.yaml"
    taxonomy.write_text(
        "categories:\n"
        "  - {id: 0, name: books, description: things to read, keywords: [book, novel, page]}\n"
        "  - {id: 1, name: music, description: things to hear, keywords: [record, album, song]}\n"
        "  - {id: 2, name: none, description: nothing named, no_product: true}\n",
        encoding="utf-8",
    )
    things = ("novel", "book with torn pages", "record", "album with a scratch")
    places = ("Leeds", "York", "Bath", "Derby", "Ely", "Truro")
    rows = [(f"{thing} {place}", f"This {thing} reached me in {place} quite late") for thing in things for place in places]
    gold = pd.DataFrame(
        [(f"My {'novel' if n % 2 else 'record'} number {n} is fine", "books" if n % 2 else "music") for n in range(60)],
        columns=["text", "label"],
    )
    gold.to_csv(tmp_path / "gold.csv", index=False)
    settings = make_settings(
        source=write_reviews(tmp_path / "reviews.csv", rows),
        taxonomy=taxonomy,
        votes=None,
        gold=str(tmp_path / "gold.csv"),
    )
    run_ingest(settings)
    run_label(settings)
    _, _, promoted = run_retrain(settings)
    assert promoted.details["promoted"] is True


def test_missing_source_is_named(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"none\.csv"):
        run_ingest(make_settings(source=str(tmp_path / "none.csv")))


def test_store_moved_to_another_place_is_still_complete(labelled: Settings, tmp_path: Path) -> None:
    shutil.copytree(labelled.store_uri, tmp_path / "moved")
    moved = Store(str(tmp_path / "moved"))
    assert isinstance(moved.read_table(moved.snapshot().keys("clean")), pa.Table)
    assert held(moved.uri) == held(labelled.store_uri)
