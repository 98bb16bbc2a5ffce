"""`reviewclf predict` says what is wrong with IN and OUT before a model is looked for; the store of these tests holds none."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from reviewclf.cli import app
from reviewclf.errors import DataContractError, ReviewclfError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["predict", *arguments])
    assert isinstance(result.exception, ReviewclfError), result.output
    return f"{type(result.exception).__name__}: {result.exception}"


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out.xlsx", "out.xlsx: unknown kind of file; expected one of .csv"),
        ("out", "out: unknown kind of file"),
        ("out.parquet.gz", "out.parquet.gz: unknown kind of file"),
        ("none/out.csv", "none/out.csv: cannot be written: there is no folder"),
        ("folder.csv", "folder.csv: cannot be written: it is a folder"),
    ],
)
def test_output_that_cannot_be_written_is_told_before_the_input_is_read(target: str, message: str) -> None:
    Path("folder.csv").mkdir()
    assert message in refusal("missing.csv", target)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", "id,review\n1,a\n", "in.csv: no column 'text'; found id, review. Name it with --text-column"),
        ("in.csv", "text,confidence\na,1\n", "in.csv: has the column(s) confidence already"),
        ("in.csv", "id,text\n1,a,b\n", "in.csv: cannot be parsed as csv: row 1: too_many_fields: expected 2, found 3: '1,a,b'"),
        ("in.csv", 'id,text\n1,"a"\n2,"b\n', "row 2: malformed_quotes"),
        ("in.csv", 'id,text\n1,"a"\n2,"b\n', "or set --quoting to"),
        ("in.csv", "id,text\n", "in.csv: is empty"),
        ("in.docx", "x", "in.docx: unknown kind of file"),
        pytest.param(
            "in.jsonl",
            '{"text": "a"}\n{"text": ["Платье", "швы"]}\n',
            "in.jsonl, row 2: column 'text' holds list",
            marks=pytest.mark.case(23),
        ),
        ("in.jsonl", '{"text": 5}\n', "in.jsonl, row 1: column 'text' holds int"),
        ("in.jsonl", '{"text": {"ru": "a"}}\n', "in.jsonl, row 1: column 'text' holds dict"),
        ("in.json", json.dumps([{"text": "a"}]), "in.json: is one JSON array"),
    ],
)
def test_input_that_cannot_be_scored_is_told_before_a_model_is_loaded(name: str, content: str, message: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    said = refusal(name, "out.csv")
    assert message in said
    assert said.startswith(DataContractError.__name__)
    assert not Path("out.csv").exists()


def test_values_that_the_output_cannot_hold_are_told_before_a_model_is_loaded() -> None:
    Path("in.jsonl").write_text('{"id": 12345678901234567890123, "text": "a"}\n', encoding="utf-8")
    assert "out.parquet: Parquet cannot hold column 'id'" in refusal("in.jsonl", "out.parquet")


def test_numbers_instead_of_texts_are_told_by_row() -> None:
    pd.DataFrame({"text": [1.5, 2.5]}).to_parquet("in.parquet")
    assert "in.parquet, row 1: column 'text' holds float" in refusal("in.parquet", "out.csv")


def test_input_that_is_right_gets_as_far_as_the_model() -> None:
    Path("in.csv").write_text("id;text\n1;Платье\n", encoding="utf-8")
    assert "carries the alias 'champion'" in refusal("in.csv", "out.csv")
