"""People's answers: every form in which they come back, what is told instead of taken, and which of them counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Review, Vote
from reviewclf.labeling.answers import Answers, answers_from_frame, answers_from_json, read_answers
from reviewclf.labeling.human_votes import AnsweredReviews, votes_from_answers
from reviewclf.labeling.label_studio import label_studio_tasks
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash

NAMES = Taxonomy.load(load_settings(_env_file=None).taxonomy).names


def annotation(*choices: str, control: str = "label", kind: str = "choices", **fields: Any) -> dict[str, Any]:
    """As Label Studio writes one."""
    value = {"taxonomy": [[choice] for choice in choices]} if kind == "taxonomy" else {kind: list(choices)}
    result = [{"from_name": control, "to_name": "text", "type": kind, "value": value}] if choices else []
    return {"id": 1, "completed_by": 1, "was_cancelled": False, "result": result, **fields}


def task(number: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": list(annotations),
        "drafts": [],
        "predictions": [{"result": annotation("одежда")["result"]}],
        "data": {"review_id": str(number), "text_hash": f"h{number}", "text": "Ботинки", "reason": "r", **data},
    }


def read(content: Any, control: str | None = None) -> Answers:
    return answers_from_json(json.dumps(content, ensure_ascii=False).encode(), NAMES, name="q.json", control=control)


def taken(answers: Answers) -> list[tuple[str, str, str]]:
    return [(row["text_hash"], row["label"], row["annotator"]) for row in answers.frame.to_dict("records")]


# -- the queue as a table ----------------------------------------------------------------------------------------------


def test_answers_name_row_and_reason_of_what_is_refused() -> None:
    frame = pd.DataFrame(
        {
            "text_hash": ["a", "b", "c", None, "e"],
            "answer": ["Обувь", "", "еда", "посуда", " одежда "],
            "annotator": ["Оля", None, None, None, np.nan],
        }
    )
    answers = answers_from_frame(frame, NAMES, name="q.csv")
    assert taken(answers) == [("a", "обувь", "Оля"), ("e", "одежда", "")]
    assert [line.split(": ")[0] for line in answers.problems] == ["q.csv, row 3", "q.csv, row 4"]
    assert answers.notes == ["q.csv: 1 task(s) or row(s) wait for an answer"]
    with pytest.raises(LabelingError, match=r"q.csv: answers need the columns answer"):
        answers_from_frame(pd.DataFrame({"text": ["x"]}), NAMES, name="q.csv")


def test_queue_that_nobody_has_filled_in_is_refused() -> None:
    frame = pd.DataFrame({"text_hash": ["a", "b"], "label": ["обувь", "обувь"], "answer": [None, " "]})
    with pytest.raises(LabelingError, match=r"q\.csv: holds no answer: .*2 task\(s\) or row\(s\) wait"):
        answers_from_frame(frame, NAMES, name="q.csv")
    with pytest.raises(LabelingError, match=r"q\.csv: holds no rows"):
        answers_from_frame(frame[:0], NAMES, name="q.csv")


@pytest.mark.case(37)
@pytest.mark.parametrize(
    ("name", "encoding", "separator", "first_line"),
    [
        ("queue.csv", "utf-8-sig", ";", ""),
        ("queue.csv", "utf-16", "\t", ""),
        ("queue.tsv", "utf-16", "\t", ""),
        ("queue.txt", "utf-16", "\t", ""),
        ("queue.csv", "cp1251", ";", ""),
        ("queue.csv", "utf-8-sig", ";", "sep=;\r\n"),
        ("queue.csv", "utf-8", ",", ""),
    ],
)
def test_queue_is_read_as_excel_saves_it(tmp_path: Path, name: str, encoding: str, separator: str, first_line: str) -> None:
    queue = pd.DataFrame({"review_id": ["007", "8"], "text_hash": ["h1", "h2"], "text": ["Ботинки; жмут", '"Платье"']})
    queue = queue.assign(label="обувь", answer=["посуда", "Обувь "], annotator=["Оля", None])
    content = first_line + queue.to_csv(index=False, sep=separator, lineterminator="\r\n")
    (tmp_path / name).write_bytes(content.encode(encoding))
    answers = read_answers(str(tmp_path / name), NAMES)
    assert taken(answers) == [("h1", "посуда", "Оля"), ("h2", "обувь", "")]
    assert answers.frame["review_id"].tolist() == ["007", "8"]
    assert answers.problems == []


# -- Label Studio's JSON -----------------------------------------------------------------------------------------------


def test_label_studio_round_trip() -> None:
    queue = pd.DataFrame(
        [
            {"review_id": "1", "text_hash": "h1", "text": "Ботинки", "label": "обувь", "confidence": 0.4, "reason": "r"},
            {
                "review_id": "2",
                "text_hash": "h2",
                "text": "«Кавычки» & <теги>",
                "label": "одежда",
                "confidence": 0.5,
                "reason": "",
            },
        ]
    )
    tasks = json.loads(label_studio_tasks(queue))
    assert [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks] == [["обувь"], ["одежда"]]
    for task_, answer in zip(tasks, ("посуда", "обувь"), strict=True):
        result = {**task_["predictions"][0]["result"][0], "value": {"choices": [answer]}}
        task_["annotations"] = [
            {"completed_by": {"email": "olya@example.org"}, "result": [result]},
            {"was_cancelled": True, "result": [result]},
            {"completed_by": 7, "result": []},
        ]
    answers = read(tasks)
    assert taken(answers) == [("h1", "посуда", "olya@example.org"), ("h2", "обувь", "olya@example.org")]
    assert answers.problems == []
    notes = sorted(line.split(": ", 1)[1] for line in answers.notes)
    assert notes == ["skipped by somebody"] * 2 + ["submitted without an answer by 7"] * 2


@pytest.mark.case(30)
@pytest.mark.parametrize("kind", ["choices", "taxonomy", "labels"])
def test_control_may_have_any_name(kind: str) -> None:
    answers = read(
        [task(1, annotation("обувь", control="category", kind=kind)), task(2, annotation("Посуда", control="category"))]
    )
    assert taken(answers) == [("h1", "обувь", "1"), ("h2", "посуда", "1")]


@pytest.mark.case(32)
def test_several_choices_are_told_and_not_taken() -> None:
    answers = read([task(1, annotation("посуда", "обувь")), task(2, annotation("обувь", "Обувь"))])
    assert taken(answers) == [("h2", "обувь", "1")]
    assert len(answers.problems) == 1
    assert answers.problems[0].startswith("q.json, task 1: several choices (посуда, обувь)")


@pytest.mark.case(34)
def test_foreign_task_is_told_and_the_rest_taken() -> None:
    foreign = {"id": 9, "annotations": [annotation("обувь")], "data": {"image": "1.png"}}
    answers = read([task(1, annotation("обувь")), foreign, {"images": []}, 5])
    assert taken(answers) == [("h1", "обувь", "1")]
    places = sorted(line.split(": ")[0] for line in answers.problems)
    assert places == ["q.json", "q.json, task 9", "q.json, task at place 3"]


def test_of_two_controls_the_one_with_categories_answers() -> None:
    both = annotation("обувь", control="category")
    both["result"] += annotation("позитив", control="tone")["result"]
    only_tone = annotation("негатив", control="tone")
    answers = read([task(1, both), task(2, only_tone)])
    assert taken(answers) == [("h1", "обувь", "1")]
    assert answers.problems == ["q.json, task 2: no answer under category; found tone: негатив (--control names another)"]


def test_two_controls_that_answer_the_same_are_told_unless_one_is_chosen() -> None:
    both = annotation("обувь", control="first")
    both["result"] += annotation("посуда", control="second")["result"]
    with pytest.raises(LabelingError, match=r"q\.json, task 1: has answers under first and second; .*--control first"):
        read([task(1, both)])
    assert taken(read([task(1, both)], control="second")) == [("h1", "посуда", "1")]


def test_control_that_was_renamed_half_way_answers_under_both_names() -> None:
    answers = read([task(1, annotation("обувь", control="label")), task(2, annotation("посуда", control="category"))])
    assert taken(answers) == [("h1", "обувь", "1"), ("h2", "посуда", "1")]


@pytest.mark.parametrize(
    "content",
    [
        {"tasks": [task(1, annotation("обувь"))]},
        task(1, annotation("обувь")),
        [{"id": 1, "completions": [annotation("обувь")], "data": task(1)["data"]}],
        {**annotation("обувь"), "task": task(1)},
    ],
    ids=["wrapped", "one task", "before 1.0", "target storage"],
)
def test_other_shapes_of_the_json_export_are_read(content: Any) -> None:
    assert taken(read(content)) == [("h1", "обувь", "1")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_lines_and_byte_order_marks_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(task(n, annotation("обувь")), ensure_ascii=False) for n in (1, 2)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    assert taken(read_answers(str(path), NAMES)) == [("h1", "обувь", "1"), ("h2", "обувь", "1")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it holds no tasks"),
        ({"images": [], "categories": []}, "is no task of Label Studio and no row of the queue; it holds images, categories"),
        ([task(1), task(2)], r"holds no answer: .*2 task\(s\) or row\(s\) wait for an answer"),
        ([task(1, annotation("обувь", was_cancelled=True))], "holds no answer: .*task 1: skipped by 1"),
        ([{**task(1), "drafts": [annotation("обувь")]}], "holds no answer: .*task 1: holds a draft that was not submitted"),
        ("текст", "it holds no tasks"),
    ],
)
def test_file_without_any_answer_is_refused(content: Any, message: str) -> None:
    with pytest.raises(LabelingError, match=f"q\\.json.*{message}"):
        read(content)


def test_file_that_is_no_json_is_refused() -> None:
    with pytest.raises(LabelingError, match=r"q\.json: is no JSON export of Label Studio"):
        answers_from_json("text,label\n".encode("utf-16"), NAMES, name="q.json")


def test_unknown_label_is_told_with_its_task() -> None:
    answers = read([task(1, annotation("еда")), task(2, annotation("обувь"))])
    assert taken(answers) == [("h2", "обувь", "1")]
    assert answers.problems[0].startswith("q.json, task 1: 'еда' is not in the taxonomy (")


def test_one_person_has_one_name_in_a_file() -> None:
    olya = {"id": 7, "email": "olya@example.org"}
    answers = read([task(1, annotation("обувь", completed_by=olya)), task(2, annotation("обувь", completed_by=7))])
    assert [who for _, _, who in taken(answers)] == ["olya@example.org"] * 2
    nobody = read([task(1, annotation("обувь", completed_by=None))])
    assert taken(nobody) == [("h1", "обувь", "")]


# -- Label Studio's flat exports ---------------------------------------------------------------------------------------

FLAT = {
    "annotator": 1,
    "annotation_id": 0,
    "created_at": "x",
    "updated_at": "x",
    "lead_time": 1.0,
    "reason": "r",
    "text": "Ботинки",
}


@pytest.mark.case(29)
@pytest.mark.parametrize("control", ["label", "sentiment"])
@pytest.mark.parametrize("value", ["обувь", {"choices": ["обувь"]}, ["обувь"], [{"taxonomy": [["Товары", "обувь"]]}]])
def test_json_min_is_taken_in(control: str, value: Any) -> None:
    rows = [{**FLAT, "id": 1, "review_id": 1440, "text_hash": "h1", control: value}]
    assert taken(read(rows)) == [("h1", "обувь", "1")]


def test_tasks_of_json_min_that_wait_do_not_answer_with_the_queues_own_label() -> None:
    answered = {**FLAT, "id": 1, "text_hash": "h1", "suspicion": 0.9, "label": "одежда", "category": "обувь"}
    waiting = {**answered, "annotation_id": None, "text_hash": "h2"}
    del waiting["category"]
    answers = read([answered, waiting])
    assert taken(answers) == [("h1", "обувь", "1")]
    assert answers.notes == ["q.json: 1 task(s) or row(s) wait for an answer"]


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("control", ["label", "sentiment"])
def test_csv_and_tsv_of_label_studio_are_taken_in(tmp_path: Path, suffix: str, separator: str, control: str) -> None:
    several = json.dumps({"choices": ["обувь", "посуда"]}, ensure_ascii=False)
    rows = [
        {**FLAT, "id": n, "review_id": str(n), "text_hash": f"h{n}", control: value, "annotation_id": n}
        for n, value in enumerate(["Обувь", several, '["посуда"]', "", "еда"], start=1)
    ]
    frame = pd.DataFrame([*rows, {**FLAT, "id": 6, "text_hash": "h6", "annotation_id": None}])
    path = tmp_path / f"export{suffix}"
    frame.sort_index(axis=1).to_csv(path, sep=separator, index=False)
    answers = read_answers(str(path), NAMES)
    assert taken(answers) == [("h1", "обувь", "1"), ("h3", "посуда", "1")]
    assert [line.split(": ")[1][:20] for line in answers.problems] == ["several choices (обу", "'еда' is not in the "]
    assert any("row 4: submitted without an answer" in line for line in answers.notes)
    assert any("1 task(s) or row(s) wait" in line for line in answers.notes)


def test_flat_export_with_a_second_column_of_categories_asks_which_one_it_is() -> None:
    rows = [{**FLAT, "text_hash": "h1", "shop_category": "посуда", "answer_of_reader": "обувь"}]
    with pytest.raises(LabelingError, match=r"has answers under shop_category and answer_of_reader; .*--control"):
        read(rows)
    assert taken(read(rows, control="answer_of_reader")) == [("h1", "обувь", "1")]


def test_flat_export_without_any_category_names_its_columns() -> None:
    with pytest.raises(LabelingError, match=r"no column holds names of the taxonomy .*--control.*found .*shop, tone"):
        read([{**FLAT, "text_hash": "h1", "shop": "ozon", "tone": "позитив"}])
    answers = read([{**FLAT, "text_hash": "h1", "id": 3, "shop": "ozon", "label": "мебель"}])
    assert answers.problems[0].startswith("q.json, task 3: 'мебель' is not in the taxonomy")


# -- which review, which answer ----------------------------------------------------------------------------------------

BOOTS, DRESS = "Ботинки жмут", "Платье село"
REVIEWS = AnsweredReviews(
    [
        Review(text_hash=text_hash(BOOTS), text=BOOTS, review_ids=("1", "1a")),
        Review(text_hash=text_hash(DRESS), text=DRESS, review_ids=("2", "both")),
        Review(text_hash="c" * 32, text="Чашка", review_ids=("3", "both")),
        Review(text_hash="9" * 32, text="Судья", review_ids=("1",)),
    ],
    gold=["9" * 32],
)


@pytest.mark.parametrize(
    "answer",
    [
        {"text_hash": text_hash(BOOTS), "review_id": "unknown"},
        {"review_id": "1a"},
        {"review_id": "1"},
        {"review_id": "1", "text": "Ботинки жмут (правка)"},
        {"text_hash": "0" * 32, "review_id": "1", "text": "ботинки ЖМУТ!"},
        {"text": BOOTS},
    ],
)
def test_review_is_found_by_hash_text_or_id(answer: dict[str, str]) -> None:
    assert REVIEWS.find(answer) == text_hash(BOOTS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"review_id": "77"}, "77 names no review of the store"),
        ({"text_hash": "0" * 32, "review_id": "1", "text": "Совсем другое"}, "review 1 has another text since"),
        ({"review_id": "both"}, "both names 2 reviews of the store; give the column text_hash"),
    ],
)
def test_answer_that_fits_no_review_says_why(answer: dict[str, str], message: str) -> None:
    with pytest.raises(LookupError, match=message):
        REVIEWS.find(answer)


def votes_of(*rows: dict[str, Any], earlier: tuple[Vote, ...] = ()) -> Any:
    known = {(vote.text_hash, vote.annotator): vote for vote in earlier}
    return votes_from_answers(pd.DataFrame(list(rows), dtype=object), REVIEWS, known, source="file")


def at(hour: int) -> datetime:
    return datetime(2026, 11, 27, hour, tzinfo=UTC)


def test_later_answer_of_a_person_counts_by_time_else_by_order() -> None:
    by_order = votes_of(
        {"review_id": "1", "label": "обувь", "annotator": "Оля"}, {"review_id": "1", "label": "посуда", "annotator": "Оля"}
    )
    assert [(vote.annotator, vote.label) for vote in by_order.votes] == [("human/Оля", "посуда")]
    assert "answered more than once; the latest counts, «посуда», not «обувь»" in by_order.notes[0]
    by_time = votes_of(
        {"review_id": "1", "label": "обувь", "annotator": "Оля", "answered_at": at(12)},
        {"review_id": "1", "label": "посуда", "annotator": "Оля", "answered_at": at(11)},
    )
    assert [vote.label for vote in by_time.votes] == ["обувь"]


def test_change_of_mind_back_and_forth_is_a_vote_each_time() -> None:
    earlier: tuple[Vote, ...] = ()
    for draw, label in enumerate(["обувь", "посуда", "обувь"]):
        result = votes_of({"review_id": "1", "label": label, "annotator": "Оля"}, earlier=earlier)
        assert [(vote.draw, vote.label) for vote in result.votes] == [(draw, label)]
        earlier = tuple(result.votes)
    again = votes_of({"review_id": "1", "label": "обувь", "annotator": "Оля"}, earlier=earlier)
    assert (again.votes, again.known) == ([], 1)


def test_older_export_does_not_undo_a_newer_answer() -> None:
    newer = votes_of({"review_id": "1", "label": "посуда", "annotator": "Оля", "answered_at": at(12)})
    older = votes_of(
        {"review_id": "1", "label": "обувь", "annotator": "Оля", "answered_at": at(11)}, earlier=tuple(newer.votes)
    )
    assert (older.votes, older.known) == ([], 1)
    assert "is older than «посуда»" in older.notes[0]


def test_people_who_disagree_each_keep_their_vote_and_it_is_told() -> None:
    result = votes_of(
        {"review_id": "1", "label": "обувь", "annotator": "Оля"}, {"review_id": "1", "label": "посуда", "annotator": ""}
    )
    assert sorted((vote.annotator, vote.label) for vote in result.votes) == [("human/file", "посуда"), ("human/Оля", "обувь")]
    assert result.problems == []
    assert result.notes[0].startswith("review 1: people disagree (")


def test_person_known_by_number_is_known_by_address_too() -> None:
    first = votes_of({"review_id": "1", "label": "обувь", "annotator": "7"})
    later = votes_of(
        {"review_id": "1", "label": "посуда", "annotator": "olya@example.org", "known_as": "7"}, earlier=tuple(first.votes)
    )
    assert [(vote.annotator, vote.draw) for vote in later.votes] == [("human/7", 1)]
