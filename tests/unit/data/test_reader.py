"""One reader for all that comes in files: each file is read right, or refused with file, row and what to do."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reviewclf.data.frames import read_frame
from reviewclf.data.sources import list_source, read_chunks
from reviewclf.data.sources.files import read_file
from reviewclf.data.sources.options import ReadOptions
from reviewclf.data.sources.rows import BadRow, GoodRow, read_id
from reviewclf.errors import DataContractError
from reviewclf.settings import IngestSettings

TEXTS = [
    "Платье село отлично, но швы кривые",
    "Кружка пришла разбитой, деньги вернули",
    "Наушники хрипят на басах",
    "Пылесос тихий, мешки в комплекте",
]
SOURCE = ReadOptions(text_column="text", needs_text=True, pattern="REVIEWCLF_INGEST__{upper}")


def write(tmp_path: Path, content: str | bytes, name: str = "reviews.csv") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path, options: ReadOptions = SOURCE) -> list[dict[str, Any]]:
    """All rows of a file, which must all be good, as both readers of it see them."""
    rows = list(read_file(str(path), options))
    assert [row for row in rows if isinstance(row, BadRow)] == []
    assert [row.row_number for row in rows] == list(range(1, len(rows) + 1))
    good = [dict(row.values) for row in rows if isinstance(row, GoodRow)]
    frame = read_frame(str(path), options=options)
    assert [{name: row.get(name) for name in frame.columns} for row in good] == frame.to_dict("records")
    return good


def texts(path: Path, options: ReadOptions = SOURCE) -> list[Any]:
    return [row["text"] for row in values(path, options)]


def bad_rows(path: Path) -> list[BadRow]:
    bad = [row for row in read_file(str(path), SOURCE) if isinstance(row, BadRow)]
    with pytest.raises(DataContractError, match=rf"row {bad[0].row_number}: .*REVIEWCLF_GOLD"):
        read_frame(str(path), setting="REVIEWCLF_GOLD")
    return bad


# -- quotes ----------------------------------------------------------------------------------------------------------


@pytest.mark.case(1)
@pytest.mark.parametrize(("separator", "name"), [("\t", "a.tsv"), ("\t", "a.csv"), ("\t", "a.txt"), ("|", "a.csv")])
def test_text_that_opens_with_a_quote_glues_no_rows_together(tmp_path: Path, separator: str, name: str) -> None:
    said = ['"Мечта платье, село отлично', "Кружка разбита", "Наушники хрипят", 'Телевизор, диагональ 42"', "Сапоги промокли"]
    rows = "".join(f"{number}{separator}{text}\n" for number, text in enumerate(said, start=1))
    assert texts(write(tmp_path, f"review_id{separator}text\n{rows}", name)) == said


def test_doubled_quotes_within_a_bare_text_prove_no_quoting(tmp_path: Path) -> None:
    said = ['"Мечта платье', 'Диван ""Мечта""', 'Диагональ 42"']
    rows = "".join(f"{number}\t{text}\n" for number, text in enumerate(said))
    assert texts(write(tmp_path, 'review_id\ttext\n9\tсказал ""ок""\n' + rows)) == ['сказал ""ок""', *said]


def test_text_that_opens_with_a_quote_is_read_where_it_is_the_first_column(tmp_path: Path) -> None:
    content = 'text\tstars\n"Мечта платье\t5\nКружка разбита\t1\nДиагональ 42"\t4\n'
    assert texts(write(tmp_path, content, "a.tsv")) == ['"Мечта платье', "Кружка разбита", 'Диагональ 42"']


def test_rows_that_may_be_one_text_are_refused_with_the_setting(tmp_path: Path) -> None:
    path = write(tmp_path, 'review_id;text\n1;"Мечта платье\n2;Кружка разбита\n3;Диагональ 42"\n4;Сапоги\n')
    with pytest.raises(DataContractError, match=r"reviews\.csv: a quote opens in one row.*REVIEWCLF_INGEST__QUOTING"):
        list(read_file(str(path), SOURCE))
    with pytest.raises(DataContractError, match=r"reviews\.csv: a quote opens in one row"):
        read_frame(str(path))
    none = ReadOptions(text_column="text", quoting="none")
    assert texts(path, none) == ['"Мечта платье', "Кружка разбита", 'Диагональ 42"', "Сапоги"]
    standard = ReadOptions(text_column="text", quoting="standard")
    assert texts(path, standard) == ["Мечта платье\n2;Кружка разбита\n3;Диагональ 42", "Сапоги"]


def test_several_columns_tell_rows_from_lines_of_one_text(tmp_path: Path) -> None:
    path = write(tmp_path, 'id;text;stars\n1;"Мечта платье;5\n2;Кружка;1\n3;Диагональ 42";4\n')
    assert texts(path) == ['"Мечта платье', "Кружка", 'Диагональ 42"']


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_quoted_text_of_several_lines_stays_one_text(tmp_path: Path, separator: str) -> None:
    said = f"Плюсы:\n1{separator} сидит\n2{separator} дёшево\n\nМинусы: нет"
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["id", "text"], ["a1", said], ["a2", 'просто "ок"']])
    assert texts(path) == [said, 'просто "ок"']


@pytest.mark.case(13)
@pytest.mark.parametrize(("separator", "name"), [("\t", "a.tsv"), (";", "a.csv"), (",", "a.csv")])
def test_text_that_begins_with_a_quoted_word_is_read_as_it_stands(tmp_path: Path, separator: str, name: str) -> None:
    said = ['"Мечта" отличное платье', "Кружка разбита", '"Огонь" наушники', '"Лучший" из "лучших"']
    rows = "".join(f"{number}{separator}{text}\n" for number, text in enumerate(said, start=1))
    assert texts(write(tmp_path, f"review_id{separator}text\n{rows}", name)) == said


def test_quoted_word_in_front_of_a_separator_is_refused_and_never_shifted(tmp_path: Path) -> None:
    path = write(tmp_path, 'review_id,text\n1,"Мечта, огонь" платье\n2,"Кружка, чашка"\n')
    assert [(row.row_number, row.reason.split(":")[0]) for row in bad_rows(path)] == [(1, "malformed_quotes")]


@pytest.mark.case(11)
@pytest.mark.case(18)
def test_quotes_behind_backslashes_are_recognised(tmp_path: Path) -> None:
    rows = "".join(f'{number},"{text}, сказал \\"берите\\", взял"\n' for number, text in enumerate(TEXTS))
    assert texts(write(tmp_path, "review_id,text\n" + rows)) == [f'{text}, сказал "берите", взял' for text in TEXTS]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"C:\\"', "C:\\"),
        (r'"C:\отзывы\новые"', r"C:\отзывы\новые"),
        (r'"\"Мечта\""', '"Мечта"'),
        ('"первая\\\nвторая"', "первая\nвторая"),
        ("\\N", None),
    ],
)
def test_backslashes_are_what_spark_and_mysql_mean_by_them(tmp_path: Path, written: str, meant: str | None) -> None:
    content = f'"review_id","text"\n"1",{written}\n"2","сказал \\"да\\", взял"\n"3","сказал \\"да\\", взял"\n'
    assert texts(write(tmp_path, content)) == [meant, 'сказал "да", взял', 'сказал "да", взял']


def test_backslash_at_the_end_of_a_text_escapes_nothing_where_quotes_are_doubled(tmp_path: Path) -> None:
    assert texts(write(tmp_path, 'review_id,text\n1,"Платье, C:\\"\n2,"сказал ""да"", взял"\n')) == [
        "Платье, C:\\",
        'сказал "да", взял',
    ]


def test_quoting_that_is_set_is_not_recognised_anew(tmp_path: Path) -> None:
    path = write(tmp_path, 'review_id\ttext\n1\t"Платье"\n', "a.tsv")
    assert texts(path) == ["Платье"]
    (source,) = list_source(str(path), IngestSettings())
    (chunk,) = read_chunks(source, IngestSettings(quoting="none"))
    assert chunk.rows["text"].to_pylist() == ['"Платье"']


# -- separators ------------------------------------------------------------------------------------------------------


@pytest.mark.case(5)
@pytest.mark.case(15)
@pytest.mark.case(26)
@pytest.mark.parametrize("quote", ['"', ""])
@pytest.mark.parametrize(("separator", "end"), [(";", ";"), ("\t", "\t"), (",", ","), (";", ";;;")])
def test_separator_at_the_end_of_every_row_moves_no_column(tmp_path: Path, separator: str, end: str, quote: str) -> None:
    said = [text.replace(",", "") for text in TEXTS]
    rows = "".join(f"{number}{separator}{quote}{text}{quote}{end}\n" for number, text in enumerate(said))
    assert values(write(tmp_path, f"review_id{separator}text\n{rows}")) == [
        {"review_id": str(number), "text": text} for number, text in enumerate(said)
    ]


def test_separator_at_the_end_of_the_header_is_no_column(tmp_path: Path) -> None:
    for rows in ("1;Платье;\n2;Кружка;\n", "1;Платье\n2;Кружка\n"):
        assert values(write(tmp_path, "review_id;text;\n" + rows)) == [
            {"review_id": "1", "text": "Платье"},
            {"review_id": "2", "text": "Кружка"},
        ]
    assert values(write(tmp_path, "review_id;text;\n1;Платье;5\n")) == [{"review_id": "1", "text": "Платье", "": "5"}]


def test_separator_at_the_end_of_a_file_of_one_column_is_no_text(tmp_path: Path) -> None:
    assert values(write(tmp_path, "text\nПлатье, хорошее;\nКружка;\n")) == [{"text": "Платье, хорошее"}, {"text": "Кружка"}]


def test_empty_last_field_of_a_split_text_is_no_spare_one(tmp_path: Path) -> None:
    path = write(tmp_path, "review_id,text,stars\n1,Платье, хорошее,\n2,Кружка, целая,\n")
    assert [row.reason for row in bad_rows(path)] == ["too_many_fields: expected 3, found 4"] * 2


def test_row_of_another_width_among_rows_with_spare_separators_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "review_id;text\n1;Платье;\n2;Кружка; чашка;\n3;Сапоги;\n")
    assert [row.row_number for row in bad_rows(path)] == [2]


@pytest.mark.case(17)
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.tsv"])
def test_commas_in_a_file_of_one_column_are_text(tmp_path: Path, name: str) -> None:
    said = ["Платье село отлично, швы кривые", "Кружка; разбита", 'Диагональ 42", ярко', '"Мечта", а не платье']
    assert texts(write(tmp_path, "text\n" + "\n".join(said), name)) == said
    assert texts(write(tmp_path, 'text\n"Платье, ""класс"""\n"Кружка\nразбита"\n', name)) == [
        'Платье, "класс"',
        "Кружка\nразбита",
    ]


@pytest.mark.case(71)
@pytest.mark.parametrize("hint", ["sep=;", "SEP=;", '"sep=;"'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251"])
def test_excels_line_about_the_separator_is_skipped_and_obeyed(tmp_path: Path, hint: str, encoding: str) -> None:
    content = f'{hint}\r\nreview_id;text,\r\n1;"Платье, швы"\r\n'.replace("text,", "text").encode(encoding)
    assert values(write(tmp_path, content)) == [{"review_id": "1", "text": "Платье, швы"}]


def test_rows_tell_the_separator_where_the_header_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, "id, stars;text\n1, 5;Платье, хорошее, да\n2, 4;Кружка\n")
    assert texts(path) == ["Платье, хорошее, да", "Кружка"]


@pytest.mark.case(12)
def test_field_of_any_length_is_read(tmp_path: Path) -> None:
    pages = ["<p>" + "x" * 140_000 + "</p>", "<br>\n" * 4_000, '<a href="y">' * 20_000]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text", "html"], *([str(n), TEXTS[n], page] for n, page in enumerate(pages))])
    assert [row["html"] for row in values(path)] == pages


# -- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.case(38)
@pytest.mark.case(37)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1251", "koi8-r", "cp866", "iso8859-5", "mac-cyrillic"]
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_encoding_is_recognised(tmp_path: Path, encoding: str, name: str) -> None:
    if "json" in name:
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    else:
        content = "review_id\ttext\n" + "".join(f"{number}\t{text}\n" for number, text in enumerate(TEXTS))
    data = content.encode(encoding)
    assert texts(write(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name)) == TEXTS


@pytest.mark.case(38)
@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_both_byte_orders_are_read(tmp_path: Path, mark: bytes) -> None:
    content = "text\tlabel\r\nПлатье село\tодежда\r\n".encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
    assert values(write(tmp_path, mark + content)) == [{"text": "Платье село", "label": "одежда"}]


@pytest.mark.case(19)
@pytest.mark.parametrize("setting", ["REVIEWCLF_GOLD", "IN"])
def test_damaged_byte_is_named_and_the_file_not_read_as_another_encoding(tmp_path: Path, setting: str) -> None:
    data = "review_id,text\n1,Наушники хрипят на бас".encode() + b"\xd0" + "ах\n2,Кружка\n".encode()
    path = write(tmp_path, data)
    offset = data.index(b"\xd0\xd0")
    with pytest.raises(
        DataContractError, match=rf"reviews\.csv: is UTF-8 that is damaged at byte {offset}; write the file anew"
    ):
        read_frame(str(path), setting=setting)


def test_message_names_no_setting_that_would_not_help(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xd0\xb0\xd0\xb0\xff\n")
    with pytest.raises(DataContractError) as error:
        read_frame(str(path), setting="REVIEWCLF_GOLD")
    assert "REVIEWCLF_INGEST" not in str(error.value)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_line_end_ends_a_row(tmp_path: Path, line_end: str) -> None:
    assert texts(write(tmp_path, line_end.join(["id,text", "1,Платье\x00", '2,"a\u2028b\x85c"', ""]))) == [
        "Платье",
        "a\u2028b\x85c",
    ]


# -- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.case(22)
def test_json_values_stay_as_they_are(tmp_path: Path) -> None:
    line = '{"id": 12345678901234567890123, "text": "Платье", "x": 0.1234567890123456, "ok": true, "tags": [1, {"a": null}]}'
    assert values(write(tmp_path, line + "\n", "a.jsonl")) == [json.loads(line)]


@pytest.mark.case(10)
@pytest.mark.case(27)
def test_nan_is_a_missing_value_and_makes_no_id_a_fraction(tmp_path: Path) -> None:
    path = write(tmp_path, '{"review_id": 1001, "text": "a"}\n{"review_id": NaN, "text": NaN}\n{"text": "b"}\n', "a.jsonl")
    frame = read_frame(str(path))
    assert frame["review_id"].tolist() == [1001, None, None]
    assert frame["text"].tolist() == ["a", None, "b"]


@pytest.mark.case(14)
@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"reviews": [{"review_id": 1, "text": text} for text in TEXTS]}, indent=2),
        json.dumps({"text": "Платье", "tags": []}, indent=1),
        '{"reviews": [\n{"text": "a"},\n{"text": "b"}\n]}',
        '{"reviews": [\n{"text": "a"}\n]}',
        '{\n"text": "a"\n}\n{\n"text": "b"\n}\n',
        json.dumps([{"text": text} for text in TEXTS], indent=2),
        json.dumps([{"text": text} for text in TEXTS]),
        json.dumps({"reviews": [{"text": text} for text in TEXTS * 2_000]}, indent=2),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
def test_json_that_is_not_one_object_a_line_is_refused_as_a_whole(tmp_path: Path, content: str, name: str) -> None:
    path = write(tmp_path, gzip.compress(content.encode()) if name.endswith("gz") else content, name)
    with pytest.raises(DataContractError, match=r"a\.json.*one object a line"):
        list(read_file(str(path), SOURCE))


def test_broken_first_line_costs_that_line_alone(tmp_path: Path) -> None:
    for broken in ('{"text": "обор', '{"text": ', "{"):
        path = write(tmp_path, broken + '\n{"text": "a"}\n{"text": "b"}\n', "a.json")
        assert [row.row_number for row in bad_rows(path)] == [1]


def test_line_that_is_still_being_written_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "a"}\n{"text": "обор', "a.jsonl")
    assert [(row.row_number, row.payload) for row in bad_rows(path)] == [(2, '{"text": "обор')]


@pytest.mark.parametrize(
    "content",
    [
        '{"review_id": 1, "text": "a"}{"review_id": 2, "text": "b"}',
        '{"text": "a"} {"text": "b"}\n',
        '{"review_id": {"0": 1, "1": 2}, "text": {"0": "a", "1": "b"}}',
        '{"review_id": [1, 2], "text": ["a", "b"]}\n',
    ],
)
def test_single_line_that_holds_all_reviews_is_no_single_row(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content, "a.json")
    with pytest.raises(DataContractError, match=r"a\.json.*one object a line"):
        list(read_file(str(path), SOURCE))


def test_field_that_stands_twice_hides_no_value(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "a", "text": "b"}\n{"text": "c", "text": "c"}\n{"text": "d"}\n', "a.jsonl")
    (bad,) = bad_rows(path)
    assert (bad.row_number, bad.reason) == (1, "malformed_json: the field 'text' stands twice, with different values")
    good = [row.values["text"] for row in read_file(str(path), SOURCE) if isinstance(row, GoodRow)]
    assert good == ["c", "d"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("is_gzipped", [True, False])
def test_content_says_whether_a_file_is_gzipped(tmp_path: Path, name: str, is_gzipped: bool) -> None:
    content = "\n".join(["text", *TEXTS]).encode()
    assert texts(write(tmp_path, gzip.compress(content) if is_gzipped else content, name)) == TEXTS


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [(b"PK\x03\x04", "Excel"), (b"\xd0\xcf\x11\xe0", "Excel"), (b"PAR1", "Parquet"), (b"%PDF-1.7", "PDF")],
)
def test_what_is_no_text_is_called_by_its_name(tmp_path: Path, beginning: bytes, kind: str) -> None:
    path = write(tmp_path, beginning + bytes(range(256)))
    with pytest.raises(DataContractError, match=rf"reviews\.csv: is .*{kind}.* write it as CSV"):
        list(read_file(str(path), SOURCE))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_header_of_a_file_put_behind_another_is_no_review(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path, f"review_id,text\n1,a\n{mark}review_id,text\n2,b\n")
    assert texts(path) == ["a", "b"]


def test_end_sign_of_dos_is_no_row(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "review_id,text\r\n1,a\r\n\x1a")) == ["a"]


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_archive_that_is_still_being_written_is_refused(tmp_path: Path, cut: int) -> None:
    data = gzip.compress("".join(f"{number},{text}\n" for number, text in enumerate(["id,text", *TEXTS])).encode())
    path = write(tmp_path, data[:-cut], "a.csv.gz")
    with pytest.raises(DataContractError, match=r"a\.csv\.gz: cannot be read"):
        list(read_file(str(path), SOURCE))


# -- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.binary(), pa.large_binary()],
    ids=str,
)
def test_every_type_that_holds_text_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    array = pa.array([*TEXTS, None], pa.string())
    array = array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array.cast(kind)
    pq.write_table(pa.table({"text": array}), path)
    assert texts(path) == [*TEXTS, None]


def test_dictionary_of_bytes_is_text_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([text.encode() for text in TEXTS]).dictionary_encode()}), path)
    assert texts(path) == TEXTS


@pytest.mark.parametrize("frame", [pd.DataFrame({"review_id": [], "text": []}), pd.DataFrame()])
def test_empty_day_of_pandas_has_no_rows_whatever_its_types(tmp_path: Path, frame: pd.DataFrame) -> None:
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    assert list(read_file(str(path), SOURCE)) == []


def test_time_beyond_the_years_of_python_costs_no_review(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    times = pa.array([253_402_300_799_000_000, 0], pa.timestamp("us", "Europe/Moscow"))
    pq.write_table(pa.table({"text": ["a", "b"], "created_at": times}), path)
    assert texts(path) == ["a", "b"]
    (source,) = list_source(str(path), IngestSettings())
    (chunk,) = read_chunks(source, IngestSettings(), latest=datetime(2027, 1, 1, tzinfo=UTC))
    assert chunk.rows["created_at"].to_pylist() == [None, None]


def test_text_that_is_missing_everywhere_has_a_type_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"review_id": [1, 2], "text": pa.nulls(2)}), path)
    assert texts(path) == [None, None]


@pytest.mark.case(20)
@pytest.mark.parametrize(
    ("index", "name", "expected"),
    [
        (pd.Index(["r0", "r1"], name="review_id"), "review_id", ["r0", "r1"]),
        (pd.RangeIndex(5, 9, 2, name="review_id"), "review_id", [5, 7]),
        (pd.Index([7, 9]), "index", [7, 9]),
    ],
)
def test_index_of_pandas_is_a_column(tmp_path: Path, index: pd.Index, name: str, expected: list[Any]) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["a", "b"]}, index=index).to_parquet(path)
    assert [row[name] for row in values(path)] == expected


def test_whole_number_is_an_id_without_a_fraction() -> None:
    assert [read_id(value) for value in (1001.0, 1001, "1001.0", " 007 ", b"a1", float("nan"), None, "", 1.5, 2**70)] == [
        "1001",
        "1001",
        "1001",
        "007",
        "a1",
        None,
        None,
        None,
        "1.5",
        str(2**70),
    ]


def test_binary_ids_stay_different() -> None:
    first, second = bytes.fromhex("ff" * 15 + "01"), bytes.fromhex("fe" * 15 + "01")
    assert [read_id(value) for value in (first, second, bytes(16))] == [first.hex(), second.hex(), "00" * 16]


# -- what is no file of reviews --------------------------------------------------------------------------------------


@pytest.mark.case(65)
@pytest.mark.case(67)
@pytest.mark.parametrize(
    "beside",
    [
        "._reviews.csv",
        ".hidden.csv",
        "_temporary/0/part-1.csv",
        "_delta_log/00000000000000000000.json",
        "_SUCCESS",
        ".ipynb_checkpoints/reviews.csv",
        "__MACOSX/reviews.csv",
        "dt=2026-09-01/_committed_1.json",
    ],
)
@pytest.mark.parametrize("source", ["", "**/*", "**/*.*"])
def test_what_tools_keep_beside_data_is_no_data(tmp_path: Path, beside: str, source: str) -> None:
    folder = tmp_path / "_отзывы"
    write(folder, "review_id,text\n1,a\n", "dt=2026-09-01/reviews.csv")
    write(folder, b"\x00\x05\x16\x07" * 40, beside)
    assert [file.name for file in list_source(f"{folder}/{source}", IngestSettings())] == ["dt=2026-09-01/reviews.csv"]


def test_hidden_paths_that_are_asked_for_are_read(tmp_path: Path) -> None:
    write(tmp_path, "review_id,text\n1,a\n", "_new/reviews.csv")
    for source in ("_new", "_new/*.csv", "_new/reviews.csv", "_*/*.csv"):
        (file,) = list_source(f"{tmp_path}/{source}", IngestSettings())
        assert file.uri == str(tmp_path / "_new" / "reviews.csv")


def test_files_of_other_kinds_are_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "review_id,text\n1,a\n", "a.csv")
    write(tmp_path, b"PK", "отзывы.xlsx")
    write(tmp_path, b"", "_SUCCESS")
    with caplog.at_level(logging.WARNING):
        assert [file.name for file in list_source(str(tmp_path), IngestSettings())] == ["a.csv"]
    assert "1 files of a kind that is not read are left out, such as отзывы.xlsx" in caplog.text


@pytest.mark.parametrize("name", ["TEXT", "Text", "texts"])
def test_name_that_is_meant_is_named(tmp_path: Path, name: str) -> None:
    for path in (write(tmp_path, f"review_id,{name}\n1,a\n"), write(tmp_path, json.dumps({name: "a"}), "a.jsonl")):
        with pytest.raises(DataContractError, match=f"Did you mean '{name}'"):
            list(read_file(str(path), SOURCE))


@pytest.mark.case(68)
@pytest.mark.parametrize("content", ["", "\n \n", "review_id,text\n", "\ufeff", "sep=;\n"])
@pytest.mark.parametrize("name", ["b.csv", "b.tsv", "b.jsonl", "b.json", "b.csv.gz", "b.parquet"])
def test_empty_file_is_a_source_without_rows(tmp_path: Path, content: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    if "json" in name or "parquet" in name:
        content = "" if "parquet" in name else content.partition("review_id")[0].partition("sep")[0]
    path = write(tmp_path, gzip.compress(content.encode()) if name.endswith("gz") else content, name)
    options = IngestSettings()
    (source,) = list_source(str(path), options)
    with caplog.at_level(logging.WARNING):
        assert list(read_chunks(source, options)) == []
    assert f"{path}: holds no rows" in caplog.text
    with pytest.raises(DataContractError, match=rf"{path.name}: is empty.*REVIEWCLF_VOTES"):
        read_frame(str(path), setting="REVIEWCLF_VOTES")
