"""Annotators: recorded votes find their reviews, stems vote where they decide, nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from reviewclf.errors import DataContractError, LabelingError
from reviewclf.labeling.annotators import KeywordAnnotator, RecordedAnnotator
from reviewclf.labeling.annotators.base import Review
from reviewclf.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy(
    categories=(
        Category(id=0, name="обувь", description="на ноги", keywords=("туфл",)),
        Category(id=1, name="одежда", description="на тело", keywords=("плать",)),
        Category(id=2, name="нет товара", description="не назван", no_product=True),
    )
)
HEADER = "review_id,annotator,prompt,draw,label,confidence\n"


def load(tmp_path: Path, content: str, name: str = "votes.csv") -> RecordedAnnotator:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return RecordedAnnotator.load(str(path), TAXONOMY.names)


def review(text_hash: str, *ids: str) -> Review:
    return Review(text_hash=text_hash, text="текст", review_ids=ids)


def test_votes_are_found_by_review_id_and_stored_by_text_hash(tmp_path: Path) -> None:
    recorded = load(tmp_path, HEADER + "7,qwen@1,ask@1,0,обувь,0.9\n7,qwen@1,ask@1,1,одежда,0.4\n8,qwen@1,ask@1,0,,0.1\n")
    votes = list(recorded.annotate([review("h7", "7"), review("h8", "8"), review("h9", "9")]))
    assert [(vote.text_hash, vote.draw, vote.label) for vote in votes] == [
        ("h7", 0, "обувь"),
        ("h7", 1, "одежда"),
        ("h8", 0, None),
    ]
    assert recorded.refused == []


def test_ids_stay_text(tmp_path: Path) -> None:
    recorded = load(tmp_path, HEADER + "007,qwen@1,ask@1,0,обувь,0.9\n")
    assert len(list(recorded.annotate([review("h", "007")]))) == 1
    assert list(recorded.annotate([review("h", "7")])) == []


def test_votes_by_text_hash_need_no_ids(tmp_path: Path) -> None:
    recorded = load(tmp_path, "text_hash,annotator,label\nh7,qwen@1,обувь\n")
    assert [vote.label for vote in recorded.annotate([review("h7")])] == ["обувь"]


def test_copies_of_one_text_do_not_double_a_voter(tmp_path: Path) -> None:
    recorded = load(tmp_path, HEADER + "7,qwen@1,ask@1,0,обувь,0.9\n8,qwen@1,ask@1,0,одежда,0.9\n")
    votes = list(recorded.annotate([review("h", "7", "8")]))
    assert [vote.label for vote in votes] == ["обувь"]


def test_votes_that_name_no_review_are_reported(tmp_path: Path) -> None:
    recorded = load(tmp_path, HEADER + "7,qwen@1,ask@1,0,обувь,0.9\n8,qwen@1,ask@1,0,одежда,0.9\n")
    assert recorded.unmatched(["7", "1"]) == ["8"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("7,qwen@1,ask@1,0,мебель,0.9", "'мебель' is not in the taxonomy"),
        ("7,qwen@1,ask@1,0,обувь,1.9", "confidence"),
        ("7,qwen@1,ask@1,0,обувь,sure", "confidence"),
        ("7,qwen@1,ask@1,first,обувь,0.9", "draw"),
        (",qwen@1,ask@1,0,обувь,0.9", "review_id is empty"),
        ("7,,ask@1,0,обувь,0.9", "annotator is empty"),
        ("1,qwen@1,ask@1,0,одежда,0.9", "the same vote"),
    ],
)
def test_row_that_is_no_vote_is_refused_with_its_number_and_reason(tmp_path: Path, row: str, reason: str) -> None:
    recorded = load(tmp_path, HEADER + "1,qwen@1,ask@1,0,обувь,0.9\n" + row + "\n2,qwen@1,ask@1,0,обувь,0.9\n")
    assert len(recorded) == 2
    assert [refused.row_number for refused in recorded.refused] == [2]
    assert reason in recorded.refused[0].reason


@pytest.mark.case(61)
def test_labels_may_differ_in_case_and_spaces(tmp_path: Path) -> None:
    recorded = load(tmp_path, HEADER + "1,a,p,0,Обувь,0.9\n2,a,p,0,одежда ,0.9\n3,a,p,0,НЕТ  ТОВАРА,0.9\n4,a,p,0, ,0.9\n")
    votes = list(recorded.annotate([review(f"h{n}", str(n)) for n in range(1, 5)]))
    assert [vote.label for vote in votes] == ["обувь", "одежда", "нет товара", None]
    assert recorded.refused == []


@pytest.mark.case(27)
def test_whole_numbers_stay_ids_where_another_row_has_none(tmp_path: Path) -> None:
    lines = [
        '{"review_id": 1001, "annotator": "a", "label": "одежда"}',
        '{"review_id": null, "annotator": "a", "label": "обувь"}',
    ]
    recorded = load(tmp_path, "\n".join(lines), "votes.jsonl")
    assert [vote.label for vote in recorded.annotate([review("h", "1001")])] == ["одежда"]
    assert [(row.row_number, row.reason) for row in recorded.refused] == [(2, "review_id is empty")]


@pytest.mark.case(26)
def test_trailing_separators_never_shift_a_votes_columns(tmp_path: Path) -> None:
    recorded = load(tmp_path, "review_id;annotator;label\n1;a;одежда;\n2;a;обувь;\n")
    votes = list(recorded.annotate([review("h1", "1"), review("h2", "2")]))
    assert [(vote.annotator, vote.label) for vote in votes] == [("a", "одежда"), ("a", "обувь")]
    assert recorded.refused == []


def test_file_of_which_most_rows_are_no_votes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabelingError, match=r"votes\.csv: 2 of its 3 rows are no votes: row 2: label 'мебель'.*row 3"):
        load(tmp_path, HEADER + "7,a,p,0,обувь,0.9\n8,a,p,0,мебель,0.9\n9,a,p,0,обувь,9\n")


def test_votes_of_which_none_is_on_a_review_of_the_store_are_an_error(tmp_path: Path) -> None:
    recorded = load(tmp_path, HEADER + "7,a,p,0,обувь,0.9\n8,a,p,0,одежда,0.9\n")
    recorded.check_matched([], [])
    recorded.check_matched(["7"], ["r1", "7"])
    with pytest.raises(LabelingError, match=r"none of its 2 different review_id names a review .*has 7, 8, the store r1"):
        recorded.check_matched([], ["r1"])


def test_file_without_any_vote_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabelingError, match=r"votes\.csv: none of its 1 rows is a vote.*мебель"):
        load(tmp_path, HEADER + "7,qwen@1,ask@1,0,мебель,0.9\n")


def test_missing_column_is_named_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(LabelingError, match=r"needs the column\(s\) label, text_hash \(or review_id\); found annotator, id"):
        load(tmp_path, "annotator,id\nqwen@1,7\n")


def test_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match="REVIEWCLF_VOTES"):
        RecordedAnnotator.load(str(tmp_path / "none.csv"), TAXONOMY.names)


def test_version_changes_with_the_votes_and_not_with_the_path(tmp_path: Path) -> None:
    first = load(tmp_path, HEADER + "7,qwen@1,ask@1,0,обувь,0.9\n", "a.csv")
    same = load(tmp_path, HEADER + "7,qwen@1,ask@1,0,обувь,0.9\n", "b.csv")
    other = load(tmp_path, HEADER + "7,qwen@1,ask@1,0,одежда,0.9\n", "c.csv")
    assert first.version == same.version != other.version


def test_stems_vote_where_they_decide_and_say_so_where_they_do_not() -> None:
    annotator = KeywordAnnotator(TAXONOMY, confidence=0.6)
    reviews = [
        Review(text_hash="1", text="туфли жмут"),
        Review(text_hash="2", text="туфли к платью"),
        Review(text_hash="3", text="деньги вернули"),
    ]
    votes = list(annotator.annotate(reviews))
    assert [(vote.label, vote.confidence) for vote in votes] == [("обувь", 0.6), (None, 0.0), (None, 0.0)]
    assert {(vote.annotator, vote.prompt, vote.draw) for vote in votes} == set(annotator.expected(reviews[0]))


def test_other_stems_are_another_annotator() -> None:
    other = Taxonomy(
        categories=(
            Category(id=0, name="обувь", description="на ноги", keywords=("сапог",)),
            Category(id=1, name="одежда", description="на тело"),
        )
    )
    assert KeywordAnnotator(TAXONOMY, confidence=0.6).version != KeywordAnnotator(other, confidence=0.6).version


def test_empty_and_odd_cells_of_recorded_votes_are_told_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    rows = ["1,,12.0,0.5,", "2,0,,,", "3,1,abc,,", "4,0,1,never,"]
    lines = [f"{row},judge,одежда" for row in rows]
    path.write_text("\n".join(["review_id,draw,tokens_in,seconds,text_hash,annotator,label", *lines]), encoding="utf-8")
    annotator = RecordedAnnotator.load(str(path), ["одежда"])
    assert [(row.row_number, row.reason) for row in annotator.refused] == [
        (3, "tokens are no whole number"),
        (4, "seconds are no number"),
    ]
