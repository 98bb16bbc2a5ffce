"""Raw rows become clean rows, duplicates and quarantine; none is lost, none stands twice."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf import tables
from reviewclf.data.cleaning import CleanedPart, Cleaner
from reviewclf.text import clean_texts, text_hash

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def raw(*rows: tuple[str, str | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"review_id": key, "text": text, "source": "a.csv", "created_at": WHEN, "extra": "{}", "row_number": number}
            for number, (key, text) in enumerate(rows, start=1)
        ],
        schema=tables.RAW_SCHEMA,
    )


def clean(*rows: tuple[str, str | None], failed: dict[int, str] | None = None) -> CleanedPart:
    return Cleaner().clean(raw(*rows), failed or {})


def ids(table: pa.Table) -> list[str]:
    return table["review_id"].to_pylist()


def test_clean_row_keeps_the_text_as_it_came_beside_the_clean_one() -> None:
    (row,) = clean(("1", "Платье <b>супер</b> 👍  http://a.example.ru/x")).clean.to_pylist()
    assert (row["text"], row["text_clean"]) == ("Платье <b>супер</b> 👍  http://a.example.ru/x", "Платье супер")
    assert row["dt"] == "2026-01-02"


def test_text_that_cleaning_empties_goes_to_quarantine_as_it_came() -> None:
    part = clean(("1", "👍👍👍"), ("2", None), ("3", "норм"))
    assert ids(part.clean) == ["3"]
    assert part.quarantine["reason"].to_pylist() == ["text_empty_after_cleaning"] * 2
    assert json.loads(part.quarantine["payload"][0].as_py())["text"] == "👍👍👍"


def test_row_that_failed_a_check_goes_to_quarantine_with_the_rule() -> None:
    part = clean(("1", "платье"), ("2", "туфли"), failed={1: "text_too_long"})
    assert ids(part.clean) == ["1"]
    assert part.quarantine.to_pylist()[0]["reason"] == "text_too_long"


def test_copy_in_another_case_is_a_duplicate_of_the_first() -> None:
    part = clean(("1", "Платье село отлично"), ("2", "ПЛАТЬЕ СЕЛО ОТЛИЧНО!!!"))
    assert ids(part.clean) == ["1"]
    assert part.duplicates.to_pylist()[0] | {"text_hash": ""} == {
        "review_id": "2",
        "source": "a.csv",
        "row_number": 2,
        "text_hash": "",
        "duplicate_of": "1",
        "text": "ПЛАТЬЕ СЕЛО ОТЛИЧНО!!!",
        "created_at": WHEN,
    }


def test_id_that_comes_again_with_another_text_is_an_edit() -> None:
    cleaner = Cleaner()
    part = cleaner.clean(raw(("1", "Платье село отлично"), ("1", "Туфли жмут")), {})
    old, new = part.clean.to_pylist()
    assert cleaner.first == {new["text_hash"]: "1"}
    (edit,) = cleaner.edits
    assert (edit.review_id, edit.text_hash, edit.replaced_by) == ("1", old["text_hash"], new["text_hash"])
    assert part.quarantine.num_rows == 0


def test_text_with_the_later_time_wins_whatever_comes_first() -> None:
    cleaner = Cleaner()
    table = raw(("1", "Туфли жмут"), ("1", "Платье село отлично"))
    times = pa.array([WHEN, WHEN - timedelta(days=1)], table.schema.field("created_at").type)
    part = cleaner.clean(table.set_column(3, "created_at", times), {})
    new, old = part.clean.to_pylist()
    assert cleaner.first == {new["text_hash"]: "1"}
    assert [(edit.text_hash, edit.replaced_by) for edit in cleaner.edits] == [(old["text_hash"], new["text_hash"])]
    assert cleaner.edited == 0


def test_id_that_another_source_has_used_stands_for_another_review() -> None:
    cleaner = Cleaner()
    first = cleaner.clean(raw(("1", "Платье село отлично")), {})
    other = raw(("1", "Туфли жмут"), ("1", "Туфли жмут, вернула"))
    part = cleaner.clean(other.set_column(2, "source", pa.array(["b.csv"] * 2)), {})
    assert ids(first.clean) == ["1"]
    made = set(ids(part.clean))
    assert len(made) == 1
    assert made != {"1"}
    assert [edit.review_id for edit in cleaner.edits] == list(made)


def test_ids_of_a_source_that_are_none_are_not_used() -> None:
    part = Cleaner(ids_ignored=["a.csv"]).clean(raw(("1", "Платье село отлично"), ("1", "Туфли жмут")), {})
    assert part.clean.num_rows == len(set(ids(part.clean)) - {"1"}) == 2


def test_review_that_gets_its_time_later_is_known() -> None:
    cleaner = Cleaner()
    timeless = raw(("1", "Платье село отлично"))
    cleaner.clean(timeless.set_column(3, "created_at", pa.nulls(1, timeless.schema.field("created_at").type)), {})
    part = cleaner.clean(raw(("1", "Платье село отлично")), {})
    assert (part.clean.num_rows, part.duplicates.num_rows, part.known.num_rows) == (0, 0, 1)
    assert cleaner.dated == {"1": WHEN}


def test_earlier_nights_are_remembered() -> None:
    text = "Пуховик очень тёплый, капюшон глубокий, молния не заедает, доставили за неделю"
    first = clean(("1", text))
    cleaner = Cleaner()
    cleaner.know(first.clean)
    copy = {"review_id": ["7"], "text_hash": first.clean["text_hash"].to_pylist(), "source": ["a.csv"]}
    cleaner.know_duplicates(pa.table(copy))
    part = cleaner.clean(raw(("2", text + "!"), ("3", text.replace("тёплый", "тёплий")), ("7", "Совсем другое")), {})
    assert ids(part.duplicates) == ["2"]
    assert part.duplicates["duplicate_of"].to_pylist() == ["1"]
    assert ids(part.clean) == ["3", "7"]
    assert [(edit.review_id, edit.text_hash) for edit in cleaner.edits] == [("7", first.clean["text_hash"][0].as_py())]


rows = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.text("платье .!👍", max_size=12)), max_size=12)


@settings(max_examples=80, deadline=None)
@given(rows, st.integers(0, 12))
def test_every_row_ends_in_one_place_and_chunks_do_not_matter(given_rows: list, cut: int) -> None:
    whole = clean(*given_rows)
    assert whole.clean.num_rows + whole.duplicates.num_rows + whole.quarantine.num_rows + whole.known.num_rows == len(
        given_rows
    )
    cleaner = Cleaner()
    table = raw(*given_rows)
    parts = [cleaner.clean(table.slice(0, cut), {}), cleaner.clean(table.slice(cut), {})]
    for name in CleanedPart._fields:
        assert pa.concat_tables([getattr(part, name) for part in parts]).equals(getattr(whole, name)), name
    # Each text that somebody still has stands for one review, and each review has one text: its last one.
    cleaned = clean_texts([text or "" for _, text in given_rows])
    texts = {key: text_hash(text) for (key, _), text in zip(given_rows, cleaned, strict=True) if text}
    assert {key: held.text_hash for key, held in cleaner.holds.items()} == texts
    assert set(cleaner.first) == set(texts.values())
    assert all(texts[review_id] == key for key, review_id in cleaner.first.items())
