"""Small tables read and written whole."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviewclf.data.frames import protect_from_excel, read_frame, unprotect_from_excel, write_frame
from reviewclf.errors import DataContractError

FRAME = pd.DataFrame({"review_id": ["007", "8"], "text": ["Платье, «класс»\nспасибо", "ок; норм"], "note": ["a", None]})


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, ending: str) -> None:
    path = str(tmp_path / f"отзывы 1.{ending}")
    write_frame(FRAME, path)
    back = read_frame(path)
    assert back.astype(object).where(back.notna(), None).to_dict("records") == FRAME.astype(object).where(
        FRAME.notna(), None
    ).to_dict("records")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1251"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_common_encodings_and_separators_are_recognised(tmp_path: Path, encoding: str, separator: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"review_id{separator}text\n1{separator}Туфли\n".encode(encoding))
    assert read_frame(str(path)).to_dict("records") == [{"review_id": "1", "text": "Туфли"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"x", "unknown kind of file"),
        ("a.csv", b"  \n", "is empty"),
        ("a.parquet", b"no parquet", "cannot be read as .parquet"),
        ("a.jsonl", b'{"a": ', "cannot be parsed as jsonl"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataContractError, match=message) as error:
        read_frame(str(path), setting="REVIEWCLF_GOLD")
    assert str(path) in str(error.value)


def test_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match="REVIEWCLF_GOLD"):
        read_frame(str(tmp_path / "none.csv"), setting="REVIEWCLF_GOLD")


def test_unknown_ending_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"out\.xlsx: unknown kind"):
        write_frame(FRAME, str(tmp_path / "out.xlsx"))


# -- files for people ------------------------------------------------------------------------------------------------

FORMULAS = ['=HYPERLINK("http://x.ru";"приз")', "-10 из 10, платье", "+супер сапоги", "@cmd", "\t=1+1", "\r=1+1", "＝1+1"]


@pytest.mark.case(81)
@pytest.mark.parametrize("text", FORMULAS)
def test_cell_that_excel_would_run_is_text_on_demand(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.csv"
    frame = pd.DataFrame({"id": ["007"], "text": [text]})
    write_frame(frame, str(path), excel_safe=True)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["id", "text"], ["007", "'" + text]]
    assert read_frame(str(path), excel_safe=True)["text"].tolist() == [text]
    write_frame(frame, str(path))
    assert read_frame(str(path))["text"].tolist() == [text]


@pytest.mark.parametrize("text", ["-5", "+7 912 000 00 00", "-0,5", "Платье = мечта", "'в кавычках'", ""])
def test_harmless_cell_stays_as_it_is(text: str) -> None:
    assert protect_from_excel(text) == unprotect_from_excel(text) == text


@given(st.text(st.sampled_from("'=+-@\t\r 1а"), max_size=6))
def test_protection_from_formulas_can_always_be_taken_back(text: str) -> None:
    assert unprotect_from_excel(protect_from_excel(text)) == text


def test_file_for_people_says_its_encoding_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "queue.csv"
    write_frame(FRAME, str(path), for_people=True)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_frame(str(path)).columns.tolist() == FRAME.columns.tolist()


def test_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(DataContractError, match=r"out\.csv: cannot be written"):
        write_frame(FRAME, str(tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
