"""What Python's csv, pandas and pyarrow write is read back as it was, whatever texts, ids and columns it holds.

Where two writers could have written the same bytes and meant different rows, the file may be refused; it is never read wrong.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reviewclf.data.frames import read_frame, write_frame
from reviewclf.data.sources.files import read_file
from reviewclf.data.sources.options import ReadOptions
from reviewclf.data.sources.rows import GoodRow
from reviewclf.errors import DataContractError

# Texts are put together of what readers stumble over.
FRAGMENTS = [
    *('"', '""', "'", ",", ", ", ";", "\t", "|", "\n", "\r\n", "\r", "\n\n", "\\", "\\\\", '\\"', "\\N", " ", "\u2028", "\x85"),
    *("Платье", "село отлично", "42", '42"', "5", "1,5", "-10", "=1+1", "@", "NaN", "nan", "NA", "None", "null", "sep=;"),
    *("é", "👍", "007", "\ufeff"),
]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=7).map("".join)
texts = fragments | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=15)
ids = st.integers(0, 10**25).map(str) | st.from_regex(r"[a-f0-9]{4,8}", fullmatch=True) | st.just("007")
names = st.sampled_from(["stars", "дата", "a,b", 'цвет "x"', "note;", "1", "text.1", "html page"])


@st.composite
def tables(draw: st.DrawFn, values: st.SearchStrategy[str] = texts, max_rows: int = 8) -> list[list[str]]:
    """Header and rows: an id, a text and further columns, in any order; or the text alone."""
    columns = draw(st.permutations(["review_id", "text", *draw(st.lists(names, max_size=2, unique=True))]) | st.just(["text"]))
    of_column = [ids if name == "review_id" else values for name in columns]
    rows = draw(st.lists(st.tuples(*of_column).map(list), min_size=1, max_size=max_rows))
    return [list(columns), *rows]


def expected(table: list[list[str]]) -> list[dict[str, str | None]]:
    return [{name: value or None for name, value in zip(table[0], row, strict=True)} for row in table[1:]]


def read(path: Path, options: ReadOptions | None = None) -> list[dict[str, Any]] | None:
    """The rows of a file; None where it is refused, as a whole or in a row."""
    options = options or ReadOptions(text_column="text", needs_text=True)
    try:
        rows = list(read_file(str(path), options))
    except DataContractError:
        return None
    if not all(isinstance(row, GoodRow) for row in rows):
        return None
    return [dict(row.values) for row in rows if isinstance(row, GoodRow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def written(path: Path, table: list[list[str]], *, encoding: str = "utf-8", **dialect: Any) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows(table)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


many = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
# One at the end of a row that is not quoted cannot be told from a part of the line end.
without_final_return = texts.filter(lambda text: not text.endswith("\r"))
separators = st.sampled_from(",;\t|")
line_ends = st.sampled_from(["\n", "\r\n"])


@many
@given(tables(), separators, line_ends, st.sampled_from(["utf-8-sig", "utf-16"]))
def test_fully_quoted_text_is_always_read_right(
    folder: Path, table: list, separator: str, line_end: str, encoding: str
) -> None:
    path = written(
        folder / "a.csv", table, encoding=encoding, delimiter=separator, lineterminator=line_end, quoting=csv.QUOTE_ALL
    )
    assert read(path) == expected(table)


@many
@given(tables(without_final_return), separators, line_ends, st.sampled_from(["a.csv", "a.tsv", "a.txt"]))
def test_text_with_the_quotes_it_needs_is_never_read_wrong(
    folder: Path, table: list, separator: str, line_end: str, name: str
) -> None:
    path = written(folder / name, table, encoding="utf-8-sig", delimiter=separator, lineterminator=line_end)
    rows = read(path)
    if len(table[0]) == 1 and rows is not None:
        # What ends every row of a file of one column is taken for a separator that is one too many.
        said = [text for (text,) in table[1:]]
        assert [row["text"] or "" for row in rows] in (said, [text[:-1] for text in said])
        return
    assert rows is None or rows == expected(table)
    known = ReadOptions(text_column="text", needs_text=True, quoting="standard", separator=separator)
    if len(table[0]) > 1:
        assert read(path, known) == expected(table)


one_line = texts.filter(lambda text: not set(text) & set("\n\r\t"))


@many
@given(tables(one_line), line_ends)
def test_text_without_quoting_is_never_read_wrong(folder: Path, table: list, line_end: str) -> None:
    assume(len(table[0]) > 1)
    lines = ["\t".join(row) for row in table]
    path = folder / "a.tsv"
    path.write_bytes(line_end.join([*lines, ""]).encode("utf-8-sig"))
    rows = read(path)
    if rows is not None:
        # A text that stands in quotes as a whole may lose them: nothing tells whether they are its own.
        for row, meant in zip(rows, expected(table), strict=True):
            assert all(row[name] in (text, *unquoted(text or "")) for name, text in meant.items()), (row, meant)
    assert read(path, ReadOptions(text_column="text", needs_text=True, quoting="none")) == expected(table)


def unquoted(text: str) -> list[str | None]:
    """What a text is where quotes or backslashes of the file mean something, which nothing but texts like this one tells."""
    inside = text[1:-1]
    # Backslashes count in all texts of a file in which one of them stands between quotes.
    readings = [None if text == "\\N" else re.sub(r'\\(["\\])', r"\1", text)]
    if len(text) > 1 and text[0] == text[-1] == '"':
        if '"' not in inside.replace('""', ""):
            readings.append(inside.replace('""', '"'))
        if '"' not in re.sub(r'\\.|""', "", inside):
            readings.append(re.sub(r'\\(["\\])|""', lambda found: found[1] or '"', inside))
    return [reading or None for reading in readings]


@many
@given(tables(), separators)
def test_quotes_behind_backslashes_are_never_read_wrong(folder: Path, table: list, separator: str) -> None:
    path = written(
        folder / "a.csv",
        table,
        encoding="utf-8-sig",
        delimiter=separator,
        quoting=csv.QUOTE_ALL,
        doublequote=False,
        escapechar="\\",
    )
    # Without a quote behind a backslash nothing tells that backslashes are special.
    assume(any('"' in value.replace('""', "") for row in table[1:] for value in row))
    rows = read(path)
    meant = [{key: None if value == "\\N" else value for key, value in row.items()} for row in expected(table)]
    assert rows is None or rows == meant
    assert read(path, ReadOptions(text_column="text", quoting="backslash", separator=separator)) == meant


@many
@given(
    tables(without_final_return),
    separators,
    st.booleans(),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
)
def test_what_pandas_writes_as_csv_is_never_read_wrong(
    folder: Path, table: list, separator: str, index: bool, quoting: int
) -> None:
    path = folder / "a.csv.gz"
    frame = pd.DataFrame(table[1:], columns=table[0], dtype=object)
    frame.to_csv(path, sep=separator, index=index, quoting=quoting, encoding="utf-8-sig")
    rows = read(path)
    numbered = [{"": str(number), **row} for number, row in enumerate(expected(table))] if index else expected(table)
    if index or len(table[0]) > 1 or quoting != csv.QUOTE_MINIMAL:
        assert rows == numbered or (rows is None and quoting == csv.QUOTE_MINIMAL)


@many
@given(tables(), separators)
def test_what_pyarrow_writes_as_csv_is_read_right(folder: Path, table: list, separator: str) -> None:
    path = folder / "a.csv"
    columns = {name: pa.array([row[position] for row in table[1:]]) for position, name in enumerate(table[0])}
    pyarrow.csv.write_csv(pa.table(columns), path, pyarrow.csv.WriteOptions(delimiter=separator))
    assert read(path) == expected(table)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@many
@given(
    st.lists(st.fixed_dictionaries({"text": texts}, optional={"id": json_values, "x": json_values}), min_size=1), st.booleans()
)
def test_json_lines_are_read_right(folder: Path, rows: list, ascii_only: bool) -> None:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8", newline="")
    assert read(path) == rows
    write_frame(read_frame(str(path)), str(folder / "b.jsonl"))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    assert read(folder / "b.jsonl") == [{name: row.get(name) for name in columns} for row in rows]


@many
@given(tables(), st.sampled_from(["text", "review_id"]))
def test_what_pandas_writes_as_json_lines_is_read_right(folder: Path, table: list, missing: str) -> None:
    frame = pd.DataFrame(table[1:], columns=table[0], dtype=object)
    if missing in frame.columns:
        frame.loc[0, missing] = None
    frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    assert read(folder / "a.jsonl") == frame.to_dict("records")


columns_of_parquet = st.sampled_from(
    [
        lambda values: pd.Series(values, dtype=object),
        lambda values: pd.Series(values, dtype="string"),
        lambda values: pd.Series(values, dtype="str"),
        lambda values: pd.Series(values, dtype="category"),
        lambda values: pd.Series(values, dtype=pd.ArrowDtype(pa.large_string())),
        lambda values: pd.Series(values, dtype=pd.ArrowDtype(pa.string_view())),
    ]
)
indexes = st.sampled_from(
    [
        lambda n: pd.RangeIndex(n),
        lambda n: pd.RangeIndex(3, 3 + 2 * n, 2, name="number"),
        lambda n: pd.Index([f"r{k}" for k in range(n)], name="number"),
        lambda n: pd.Index(range(n, 0, -1)),
        lambda n: pd.MultiIndex.from_tuples([(k, "x") for k in range(n)], names=["number", "shop"]),
    ]
)


@many
@given(st.data())
def test_what_pandas_writes_as_parquet_is_read_right(folder: Path, data: st.DataObject) -> None:
    said = data.draw(st.lists(st.none() | texts, min_size=1, max_size=8).filter(any))
    numbers = data.draw(st.lists(st.none() | st.integers(0, 2**62), min_size=len(said), max_size=len(said)))
    frame = pd.DataFrame({"text": data.draw(columns_of_parquet)(said), "review_id": pd.Series(numbers, dtype="Int64")})
    frame.index = data.draw(indexes)(len(said))
    path = folder / "a.parquet"
    frame.to_parquet(path)
    rows = read(path)
    assert rows is not None
    assert [row["text"] for row in rows] == said
    assert [row["review_id"] for row in rows] == numbers
    kept = frame.index.to_frame(index=False)
    if not (isinstance(frame.index, pd.RangeIndex) and frame.index.name is None):
        for position, name in enumerate(frame.index.names):
            assert [row[name or "index"] for row in rows] == kept.iloc[:, position].tolist()


@many
@given(
    tables(),
    st.sampled_from(["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.parquet"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, ";"]),
)
def test_what_is_written_here_is_read_back(
    folder: Path, table: list, name: str, for_people: bool, excel_safe: bool, separator: str | None
) -> None:
    path = str(folder / name)
    frame = pd.DataFrame(expected(table), columns=table[0], dtype=object)
    write_frame(frame, path, for_people=for_people, excel_safe=excel_safe, separator=separator)
    back = read_frame(path, excel_safe=excel_safe)
    assert back.to_dict("records") == expected(table)
    assert pq.ParquetFile(path).schema_arrow.names == table[0] if name.endswith("parquet") else True
