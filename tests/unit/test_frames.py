"""Small tables read and written whole."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from reviewclf.data.frames import read_frame, write_frame
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
        ("a.parquet", b"no parquet", "cannot be parsed as parquet"),
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
