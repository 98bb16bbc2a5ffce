"""People's answers on their way: the queue goes out as a file, comes back from Excel or Label Studio, and decides labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from reviewclf import tables
from reviewclf.cli import app
from reviewclf.errors import LabelingError
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import label as label_stages
from reviewclf.stages import review as review_stages
from reviewclf.store import Store
from reviewclf.text import text_hash
from tests.integration.test_labeling import label
from tests.integration.test_stages import run_ingest, write_reviews

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with labelled reviews, of which the first begins like a formula."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = [(str(n), f"Платье номер {n} село отлично" if n % 2 else f"Ботинки {n} жмут") for n in range(1, 21)]
    rows[0] = ("1", '=HYPERLINK("http://x";"Платье")+Ботинки')
    votes = pd.DataFrame({"review_id": [row[0] for row in rows], "annotator": "a", "label": "одежда", "confidence": 0.6})
    votes.to_csv(folder / "votes.csv", index=False)
    made = load_settings(
        _env_file=None,
        home=folder / "home",
        source=write_reviews(folder / "reviews.csv", rows),
        gold=None,
        votes=str(folder / "votes.csv"),
    )
    run_ingest(made)
    label(made)
    return made


@pytest.fixture
def settings(labelled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A copy of that store."""
    shutil.copytree(labelled.home, tmp_path / "home")
    made = labelled.model_copy(update={"home": tmp_path / "home"})
    monkeypatch.setattr("reviewclf.cli.load_settings", lambda: made)
    return made


@pytest.fixture
def run(settings: Settings) -> Cli:
    return lambda *arguments: CliRunner().invoke(app, ["review", *map(str, arguments)])


def labels_of(settings: Settings) -> dict[str, str]:
    store = Store(settings.store_uri)
    labels = store.read_table(store.snapshot().keys("labels"), schema=tables.LABEL_SCHEMA).to_pandas()
    return dict(labels[labels["origin"] == "human"][["text_hash", "label"]].itertuples(index=False))


def exported(run: Cli, path: Path) -> pd.DataFrame:
    answer = run("export", path)
    assert answer.exit_code == 0, answer.output
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def task(row: dict[str, Any], number: int, choice: str | None, **fields: Any) -> dict[str, Any]:
    result = [{"from_name": "category", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}]
    annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "result": result if choice else [], **fields}
    return {"id": number, "annotations": [annotation], "data": {key: row[key] for key in ("review_id", "text_hash", "text")}}


@pytest.mark.case(80)
@pytest.mark.case(81)
def test_queue_opens_in_excel_and_runs_no_formula_there(run: Cli, tmp_path: Path) -> None:
    queue = exported(run, tmp_path / "queue.csv")
    assert (tmp_path / "queue.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert len(queue) == 20
    assert not queue["text"].str.startswith("=").any()
    assert queue["text"].str.startswith("'=HYPERLINK").sum() == 1
    assert run("export", tmp_path / "ru.csv", "--separator", ";").exit_code == 0
    assert (tmp_path / "ru.csv").read_text(encoding="utf-8-sig").split("\n")[0].count(";") == 9


@pytest.mark.case(37)
def test_queue_comes_back_as_excel_saves_it(settings: Settings, run: Cli, tmp_path: Path) -> None:
    queue = exported(run, tmp_path / "queue.csv")
    queue.loc[:2, "answer"] = ["посуда", "Текстиль ", "БЫТОВАЯ  ТЕХНИКА"]
    queue.loc[:2, "annotator"] = "Оля"
    path = tmp_path / "unicode.csv"
    path.write_bytes(queue.to_csv(index=False, sep="\t", lineterminator="\r\n").encode("utf-16"))
    answer = run("import", path)
    assert answer.exit_code == 0, answer.output
    assert "3 answers taken in, 3 labels changed; 0 known before, 0 not taken" in answer.output
    assert labels_of(settings) == dict(zip(queue["text_hash"], ["посуда", "текстиль", "бытовая техника"], strict=False))
    assert "0 answers taken in, 0 labels changed; 3 known before" in run("import", path).output


def test_one_bad_answer_is_told_and_the_rest_taken(settings: Settings, run: Cli, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = exported(run, tmp_path / "queue.csv").to_dict("records")  # type: ignore[assignment]
    foreign = {"review_id": "999", "text_hash": "0" * 32, "text": "Отзыв из другой очереди"}
    tasks = [
        task(rows[0], 1, "посуда"),
        task(rows[1], 2, "еда"),
        task(foreign, 3, "обувь"),
        task(rows[2], 4, "посуда", was_cancelled=True),
        task(rows[3], 5, None),
        {**task(rows[4], 6, "посуда"), "data": {"review_id": int(rows[4]["review_id"])}},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    answer = run("import", path)
    assert answer.exit_code == 1
    assert "2 answers taken in, 2 labels changed; 0 known before, 2 not taken" in answer.output
    for told in (
        "task 2: 'еда' is not in the",
        "task 3: 999 names no review",
        "task 4: skipped by 1",
        "task 5: submitted without",
    ):
        assert f"{path}, {told}" in answer.output
    assert set(labels_of(settings)) == {rows[0]["text_hash"], rows[4]["text_hash"]}


@pytest.mark.case(34)
def test_file_of_another_queue_ends_in_an_error(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    path.write_text(
        json.dumps([task({"review_id": "x", "text_hash": "0" * 32, "text": "Чужой"}, 1, "обувь")]), encoding="utf-8"
    )
    answer = run("import", path)
    assert answer.exit_code == 1
    assert "0 answers taken in" in answer.output
    assert "x names no review of the store" in answer.output


def test_person_who_changes_their_mind_has_one_vote(settings: Settings, run: Cli, tmp_path: Path) -> None:
    row = exported(run, tmp_path / "queue.csv").iloc[0].to_dict()
    path = tmp_path / "export.json"
    for choice in ("посуда", "обувь", "посуда"):
        path.write_text(json.dumps([task(row, 1, choice)], ensure_ascii=False), encoding="utf-8")
        assert "1 answers taken in, 1 labels changed" in run("import", path).output
        assert labels_of(settings) == {row["text_hash"]: choice}
    other = json.dumps([task(row, 1, "обувь", completed_by=2)], ensure_ascii=False)
    path.write_text(other, encoding="utf-8")
    answer = run("import", path)
    assert answer.exit_code == 0
    assert f"review {row['review_id']}: people disagree (1: посуда, 2: обувь)" in answer.output
    # Evenly divided, they are asked again; a third person decides.
    assert row["text_hash"] in set(review_stages.make_queue(settings)["text_hash"])
    path.write_text(json.dumps([task(row, 1, "обувь", completed_by=3)], ensure_ascii=False), encoding="utf-8")
    run("import", path)
    assert labels_of(settings) == {row["text_hash"]: "обувь"}
    assert row["text_hash"] not in set(review_stages.make_queue(settings)["text_hash"])


def test_answer_to_a_text_that_was_edited_since_is_told(settings: Settings, run: Cli, tmp_path: Path) -> None:
    old = {"review_id": "2", "text_hash": text_hash("Ботинки были другие"), "text": "Ботинки были другие"}
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task(old, 1, "обувь")]), encoding="utf-8")
    answer = run("import", path)
    assert answer.exit_code == 1
    assert "review 2 has another text since it was answered" in answer.output


def test_votes_file_for_other_reviews_stops_labelling(settings: Settings, tmp_path: Path) -> None:
    votes = tmp_path / "others.csv"
    votes.write_text("review_id,annotator,label\n1001.5,a,одежда\nx2,a,обувь\n", encoding="utf-8")
    with pytest.raises(LabelingError, match="none of its 2 different review_id names a review of the store"):
        label_stages.select(settings.model_copy(update={"votes": str(votes)}))
