"""Sources: many formats in bounded memory; every row is read or quarantined, with its number and a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.data.sources import list_source, read_chunks
from reviewclf.data.sources.rows import parse_when
from reviewclf.errors import DataContractError, SettingsError
from reviewclf.settings import IngestSettings

OPTIONS = IngestSettings()


def read(uri: Path | str, options: IngestSettings = OPTIONS) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, bad = [], []
    for source in list_source(str(uri), options):
        for chunk in read_chunks(source, options):
            assert chunk.rows.num_rows + chunk.quarantined.num_rows <= options.chunk_rows
            rows.append(chunk.rows.to_pandas())
            bad.append(chunk.quarantined.to_pandas())
    return pd.concat(rows, ignore_index=True), pd.concat(bad, ignore_index=True)


def write(tmp_path: Path, content: str | bytes, name: str = "reviews.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- delimited text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1251", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_are_recognised(tmp_path: Path, encoding: str, separator: str) -> None:
    content = f"review_id{separator}text{separator}stars\n7{separator}Платье, «класс»; сидит{separator}5\n"
    if separator in ",;":
        content = content.replace("Платье, «класс»; сидит", '"Платье, «класс»; сидит"')
    rows, bad = read(write(tmp_path, content.encode(encoding)))
    assert bad.empty
    assert rows[["review_id", "text", "row_number", "source"]].to_numpy().tolist() == [
        ["7", "Платье, «класс»; сидит", 1, "reviews.csv"]
    ]
    assert json.loads(rows["extra"][0]) == {"stars": "5"}


def test_quoted_newlines_and_doubled_quotes_belong_to_the_text(tmp_path: Path) -> None:
    rows, bad = read(write(tmp_path, 'review_id,text\r\n1,"первая\r\nвторая ""строка"""\r\n2,обычная\r\n'))
    assert bad.empty
    assert rows["text"].tolist() == ['первая\r\nвторая "строка"', "обычная"]
    assert rows["row_number"].tolist() == [1, 2]


def test_quote_inside_an_unquoted_field_is_text(tmp_path: Path) -> None:
    rows, bad = read(write(tmp_path, 'review_id,text\n1,экран 5" яркий\n2,норм\n'))
    assert bad.empty
    assert rows["text"].tolist() == ['экран 5" яркий', "норм"]


def test_rows_with_too_many_or_too_few_fields_are_quarantined_as_they_came(tmp_path: Path) -> None:
    rows, bad = read(write(tmp_path, "review_id,text\n1,a\n2,b,c\n3\n4,d\n"))
    assert rows["review_id"].tolist() == ["1", "4"]
    assert bad[["row_number", "reason", "payload"]].to_numpy().tolist() == [
        [2, "too_many_fields: expected 2, found 3", "2,b,c"],
        [3, "too_few_fields: expected 2, found 1", "3"],
    ]


def test_quote_that_never_ends_does_not_swallow_the_rest(tmp_path: Path) -> None:
    lines = ["1,хорошо", '2,"не закрыта', *(f"{number},отзыв {number}" for number in range(3, 2000))]
    rows, bad = read(write(tmp_path, "review_id,text\n" + "\n".join(lines) + "\n"))
    assert bad[["row_number", "payload"]].to_numpy().tolist() == [[2, '2,"не закрыта']]
    assert len(rows) == len(lines) - 1
    assert rows["row_number"].tolist() == [1, *range(3, 2000)]


def test_ids_stay_as_written_and_missing_ones_are_made_of_source_and_text(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "review_id,text\n007,a\n,b\n,b\n,c\n"))
    assert rows["review_id"][0] == "007"
    assert rows["review_id"][1] == rows["review_id"][2] != rows["review_id"][3]
    other, _ = read(write(tmp_path, "review_id,text\n,b\n", "other.csv"))
    assert other["review_id"][0] != rows["review_id"][1]


def test_empty_text_is_kept_as_missing_for_the_checks_to_see(tmp_path: Path) -> None:
    rows, bad = read(write(tmp_path, "review_id,text\n1,\n2,b\n"))
    assert bad.empty
    assert pd.isna(rows["text"][0])


def test_gzip_is_read(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, gzip.compress("review_id,text\n1,Туфли\n".encode()), "reviews.csv.gz"))
    assert rows["text"].tolist() == ["Туфли"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("review_id,отзыв\n1,a\n", "a.csv", r"a\.csv: no column 'text'; found review_id, отзыв.*REVIEWCLF_INGEST__TEXT_COLUMN"),
        ("review_id,texts\n1,a\n", "a.csv", r"Did you mean 'texts'"),
        (b"review_id,text\n1,\x98\n", "a.csv", r"a\.csv: is neither UTF-8 \(byte 17\) nor cp1251 \(byte 17\)"),
        ("review_id,text\n1,плед\n2,туфли\n".encode()[:-2], "a.csv", r"a\.csv: is UTF-8 that is damaged at byte 36"),
        ("review_id,text\n1,плед\n".encode("utf-16-le"), "a.csv", r"UTF-16 without its byte order mark.*utf-16-le"),
        ('{"txet":"a"}\n{"stars":5}\n', "a.jsonl", r"a\.jsonl: no column 'text'; found txet, stars.*'txet'.*TEXT_COLUMN"),
        ("x", "a.docx", r"a\.docx: unknown kind of file"),
        ("[1]", "a.json", r"one JSON array"),
        (b"PAR1 broken", "a.parquet", r"a\.parquet: cannot be read as \.parquet"),
        (b"\x1f\x8b broken", "a.csv.gz", r"a\.csv\.gz: cannot be read"),
    ],
)
def test_unusable_file_is_refused_by_name(tmp_path: Path, content: str | bytes, name: str, message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        read(write(tmp_path, content, name))


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"none\.csv.*REVIEWCLF_SOURCE"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataContractError, match="no file there ends in"):
        read(tmp_path)


def test_wrong_encoding_setting_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "review_id,text\n1,Туфли\n".encode("cp1251"))
    with pytest.raises(DataContractError, match="REVIEWCLF_INGEST__ENCODING"):
        read(path, IngestSettings(encoding="utf-8"))


def test_byte_order_mark_is_no_part_of_the_first_column_whatever_the_setting_says(tmp_path: Path) -> None:
    path = write(tmp_path, "text\nТуфли\n".encode("utf-8-sig"))
    assert read(path, IngestSettings(encoding="utf-8"))[0]["text"].tolist() == ["Туфли"]


def test_damage_beyond_the_first_block_is_named_by_its_byte(tmp_path: Path) -> None:
    # An odd length before the Cyrillic letters lets the end of a block cut one of them in two.
    head = b"review_id,text\n1," + "я".encode() * (1 << 20)
    with pytest.raises(DataContractError, match=rf"damaged at byte {len(head)};"):
        read(write(tmp_path, head + b"\xff\n"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('id;"note, and,\nmore";text\n1;x;Туфли\n', {"id": "1", "note, and,\nmore": "x"}),
        ('"a,b,c\nd"|"e;f"|text\n1|2|Туфли\n', {"a,b,c\nd": "1", "e;f": "2"}),
        ("id\ttext\ta,b,c,d\n1\tТуфли\tx\n", {"id": "1", "a,b,c,d": "x"}),
    ],
)
def test_separator_is_not_guessed_from_what_the_header_quotes_or_names(tmp_path: Path, header: str, expected: dict) -> None:
    rows, bad = read(write(tmp_path, header))
    assert bad.empty
    assert rows["text"].tolist() == ["Туфли"]
    assert json.loads(rows["extra"][0]) == expected


def test_error_about_a_missing_column_shows_the_columns_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match="found id, a,b,c,d,e, отзыв"):
        read(write(tmp_path, 'id;"a,b,c,d,e";отзыв\n1;x;Туфли\n'))


def test_tab_can_be_written_in_the_separator_setting_and_words_cannot(tmp_path: Path) -> None:
    path = write(tmp_path, 'review_id\ttext\n1\t"a"\n')
    assert read(path, IngestSettings(separator=r"\t"))[0]["text"].tolist() == ["a"]
    with pytest.raises(SettingsError, match="REVIEWCLF_INGEST__SEPARATOR='::'"):
        read(path, IngestSettings(separator="::"))


def test_columns_of_the_same_name_keep_their_values(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "text,stars,stars,text\na,1,2,b\n"))
    assert rows["text"].tolist() == ["a"]
    assert json.loads(rows["extra"][0]) == {"stars": "1", "stars.1": "2", "text.1": "b"}


@pytest.mark.parametrize("name", ["отзывы [2026].csv", "a*b.csv", "why?.csv"])
def test_file_whose_name_looks_like_a_glob_is_read(tmp_path: Path, name: str) -> None:
    rows, _ = read(write(tmp_path, "review_id,text\n1,a\n", name))
    assert rows["source"].tolist() == [name]


def test_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        write(tmp_path, f"review_id,text\n{name},x\n", name)
    write(tmp_path, "no reviews", "README.md")
    for uri in (tmp_path, tmp_path / "*.csv"):
        rows, _ = read(uri)
        assert rows["source"].tolist() == ["a.csv", "b.csv"]


def test_fingerprint_changes_with_the_content_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "review_id,text\n1,a\n")
    (first,) = list_source(str(path), OPTIONS)
    path.touch()
    assert list_source(str(path), OPTIONS) == [first]
    write(tmp_path, "review_id,text\n1,b\n")
    assert list_source(str(path), OPTIONS) != [first]


# Fields that only a writer which quotes properly can write, and lines that no reader can make sense of.
field = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
dirt = st.sampled_from(["a,b,c,d", "lonely", '1,"x"y', '"', '5,"open'])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(field, field) | dirt, min_size=1, max_size=12))
def test_every_record_is_read_or_quarantined(tmp_path_factory: pytest.TempPathFactory, records: list) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerow(["review_id", "text"])
    for record in records:
        if isinstance(record, str):
            buffer.write(record + "\r\n")
        else:
            writer.writerow(record)
    path = write(tmp_path_factory.mktemp("csv"), buffer.getvalue())
    rows, bad = read(path, IngestSettings(encoding="utf-8"))
    numbers = sorted([*rows["row_number"], *bad["row_number"]])
    assert numbers == list(range(1, len(numbers) + 1))
    assert bad["reason"].notna().all()
    if not any(isinstance(record, str) for record in records):
        assert bad.empty
        assert [text if isinstance(text, str) else "" for text in rows["text"]] == [text for _, text in records]


# Words that stand once in a file, so that each can be looked for where it ended up.
damage = st.sampled_from(
    ["{},b,c,d", "{}", '{},"x"y', '{},"open', '{},"two\nlines"', '{},"open\n\n"more', '"{}', '{}"', '"', '""{}"']
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(field, field) | damage, min_size=1, max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
def test_nothing_of_a_dirty_file_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, records: list, line_end: str
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator=line_end)
    writer.writerow(["review_id", "text"])
    tokens = [f"<{number}>" for number in range(len(records))]
    for token, record in zip(tokens, records, strict=True):
        if isinstance(record, str):
            buffer.write(record.format(token) + line_end)
        else:
            writer.writerow([record[0], token + record[1]])
    written = buffer.getvalue()
    rows, bad = read(write(tmp_path_factory.mktemp("csv"), written), IngestSettings(encoding="utf-8"))
    came_out = "\x00".join([*rows["review_id"], *rows["text"].fillna(""), *bad["payload"]])
    for token in tokens:
        assert came_out.count(token) == written.count(token), token


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    text = "Платье село отлично, но швы кривые, «и нитки» торчат; " * 40

    def peak(rows: int) -> tuple[int, int]:
        path = tmp_path / f"{rows}.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write("review_id,text\n")
            file.writelines(f'{number},"{text}\nОтзыв {number}"\n' for number in range(rows))
        options = IngestSettings(chunk_rows=200)
        read_rows = 0
        tracemalloc.start()
        for source in list_source(str(path), options):
            for chunk in read_chunks(source, options):
                read_rows += chunk.rows.num_rows
                del chunk
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert read_rows == rows
        return most, path.stat().st_size

    (small, _), (large, size) = peak(2_000), peak(16_000)
    assert size > 60e6
    assert large < 16e6
    assert large < 1.2 * small


# -- JSON Lines, Parquet ---------------------------------------------------------------------------------------------


def test_json_lines_quarantine_what_is_no_review(tmp_path: Path) -> None:
    lines = [
        '{"review_id": 1, "text": "Туфли", "stars": 5}',
        "{broken",
        "[1]",
        '{"review_id": 2}',
        '{"text": 5}',
        '{"text": null}',
    ]
    rows, bad = read(write(tmp_path, "\n".join(lines), "a.jsonl"))
    assert rows["row_number"].tolist() == [1, 6]
    assert (rows["review_id"][0], json.loads(rows["extra"][0])) == ("1", {"stars": 5})
    assert [reason.split(":")[0] for reason in bad["reason"]] == [
        "malformed_json",
        "malformed_json",
        "no_text",
        "text_is_no_text",
    ]
    assert bad["payload"].tolist() == lines[1:5]


def test_line_that_json_cannot_unfold_is_quarantined_and_the_rest_is_read(tmp_path: Path) -> None:
    deep = '{"text":"a","x":' + "[" * 100_000
    rows, bad = read(write(tmp_path, f'{{"text":"до"}}\n{deep}\n{{"text":"после"}}\n', "a.jsonl"))
    assert rows["text"].tolist() == ["до", "после"]
    assert bad[["row_number", "payload"]].to_numpy().tolist() == [[2, deep]]


@pytest.mark.parametrize("depth", range(100, 1100, 50))
def test_nested_values_are_read_or_quarantined_at_any_depth(tmp_path: Path, depth: int) -> None:
    line = '{"text":"a","x":' + "[" * depth + "]" * depth + "}"
    rows, bad = read(write(tmp_path, line, "a.jsonl"))
    assert len(rows) + len(bad) == 1


@pytest.mark.parametrize(
    "line", [r'{"text":"a","x":"\ud83d"}', r'{"text":"a","\ud83d":1}', r'{"text":"a\ud83d","review_id":"\ud83d"}']
)
def test_half_of_a_surrogate_pair_does_not_stop_the_file(tmp_path: Path, line: str) -> None:
    rows, bad = read(write(tmp_path, line + "\n" + r'{"\ud83d":1}' + "\n", "a.jsonl"))
    assert rows["text"][0].startswith("a")
    assert json.loads(rows["extra"][0]) == {
        name: value for name, value in json.loads(line).items() if name not in ("text", "review_id")
    }
    assert bad["payload"].tolist() == [r'{"\ud83d":1}']


def test_parquet_is_read_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    pd.DataFrame({"review_id": [1, 2], "text": ["Туфли", None], "created_at": [when, None], "stars": [5, 4]}).to_parquet(path)
    rows, bad = read(path)
    assert bad.empty
    assert rows["review_id"].tolist() == ["1", "2"]
    assert rows["created_at"][0] == pd.Timestamp(when)
    assert pd.isna(rows["text"][1])


def test_parquet_whose_text_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": [1, 2]}).to_parquet(path)
    with pytest.raises(DataContractError, match=r"a\.parquet: column 'text' holds int64"):
        read(path)


# -- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02 03:04:05+05:00", "2026-01-01T22:04:05Z"),
        ("2026-01-02", "2026-01-01T21:00:00Z"),
        ("02.01.2026", "2026-01-01T21:00:00Z"),
        ("2.1.2026 15:30", "2026-01-02T12:30:00Z"),
        ("1767322800", "2026-01-02T03:00:00Z"),
        (1767322800000, "2026-01-02T03:00:00Z"),
        (1767322800123456, "2026-01-02T03:00:00.123456Z"),
        ("01.02.26", "2026-01-31T21:00:00Z"),
        ("01.09.26 12:00", "2026-09-01T09:00:00Z"),
        ("2026/02/01", "2026-01-31T21:00:00Z"),
        ("2026.02.01 9:05", "2026-02-01T06:05:00Z"),
        ("13/02/2026", "2026-02-12T21:00:00Z"),
        ("02/13/2026", "2026-02-12T21:00:00Z"),
        ("1 февраля 2026", "2026-01-31T21:00:00Z"),
        ("1 фев. 2026 г., 12:30", "2026-02-01T09:30:00Z"),
        ("воскресенье, 1 мая 2026 г. в 12:30", "2026-05-01T09:30:00Z"),
        ("Sun, 01 Feb 2026 12:30:00 +0300", "2026-02-01T09:30:00Z"),
        ("Feb 1, 2026 3:15 PM", "2026-02-01T12:15:00Z"),
        ("01.02.2026 12:30 +03:00", "2026-02-01T09:30:00Z"),
        ("01.02.2026 12:30:15.123", "2026-02-01T09:30:15.123Z"),
        ("2026-02-01T12:30:00.123456789Z", "2026-02-01T12:30:00.123456Z"),
        ("2026-02-01 12:30:00 UTC", "2026-02-01T12:30:00Z"),
        ("2026-02-01 12:30:00 MSK", "2026-02-01T09:30:00Z"),
        ("2026-02-01 12:30 GMT+3", "2026-02-01T09:30:00Z"),
        ("Sun Feb 01 12:30:00 MSK 2026", "2026-02-01T09:30:00Z"),
        ("Sun Feb  1 12:30:00 2026", "2026-02-01T09:30:00Z"),
        ("2026-02-01T12:30:00+03:00[Europe/Moscow]", "2026-02-01T09:30:00Z"),
        ("12:30, 1 фев. 2026", "2026-02-01T09:30:00Z"),
        ("12:30 01.02.2026", "2026-02-01T09:30:00Z"),
        ("01-Feb-26", "2026-01-31T21:00:00Z"),
        ("46054", "2026-01-31T21:00:00Z"),
        (46266.5, "2026-09-01T09:00:00Z"),
        ("46266,5", "2026-09-01T09:00:00Z"),
        (20260201, "2026-01-31T21:00:00Z"),
        ("20260201123000", "2026-02-01T09:30:00Z"),
        (pd.Timestamp("2026-02-01", tz="UTC"), "2026-02-01T00:00:00Z"),
        (np.datetime64("2026-02-01T12:00"), "2026-02-01T09:00:00Z"),
    ],
)
def test_times_are_read_in_the_ways_people_write_them(value: object, expected: str) -> None:
    assert parse_when(value) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "value",
    [True, "вчера", "03/04/2026", "01-02-2026", "26/02/13", "31.02.2026", "13.13.2026", 5, 0, "1970-01-01", "0001-01-01"],
)
def test_what_is_no_time_or_no_clear_one_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_when(value)


def test_time_that_has_not_come_yet_is_none() -> None:
    latest = datetime(2027, 1, 1, tzinfo=UTC)
    assert parse_when("31.12.2026", latest=latest) == datetime(2026, 12, 30, 21, tzinfo=UTC)
    with pytest.raises(ValueError, match="no time in which a review was written"):
        parse_when("2126-01-01", latest=latest)


@pytest.mark.parametrize("value", [None, "", float("nan"), pd.NaT, "NULL", "nan", r"\N", "0000-00-00 00:00:00"])
def test_missing_time_is_none(value: object) -> None:
    assert parse_when(value) is None


def test_time_that_cannot_be_read_costs_no_review_and_stays_as_it_came(tmp_path: Path) -> None:
    rows, bad = read(write(tmp_path, "review_id,text,created_at\n1,a,вчера\n2,b,2026-01-02\n3,c,\n"))
    assert bad.empty
    assert rows["review_id"].tolist() == ["1", "2", "3"]
    assert rows["created_at"].isna().tolist() == [True, False, True]
    assert [json.loads(extra) for extra in rows["extra"]] == [{"created_at": "вчера"}, {}, {}]


# -- databases -------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'отзывы 1.db'}"
    rows = pd.DataFrame(
        {
            "review_id": [1, 2, 3],
            "text": ["Туфли", None, "Плед"],
            "seen_at": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
        }
    )
    engine = sqlalchemy.create_engine(url)
    rows.to_sql("reviews", engine, index=False)
    engine.dispose()
    return url


@pytest.mark.parametrize("table", ["reviews", "SELECT review_id, text FROM reviews;"])
def test_table_or_query_is_read(database: str, table: str) -> None:
    rows, bad = read(database, IngestSettings(table=table))
    assert bad.empty
    assert rows["review_id"].tolist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("column", "overlap", "extra"),
    [("review_id", 1, 4), ("seen_at", 0.5, "2026-01-04 00:00:00.000000")],
)
def test_rows_above_the_watermark_in_its_overlap_and_without_a_mark_are_read_again(
    database: str, column: str, overlap: float, extra: object
) -> None:
    options = IngestSettings(table="reviews", watermark_column=column, watermark_overlap=overlap, chunk_rows=2)
    (source,) = list_source(database, options)
    chunks = list(read_chunks(source, options))
    assert sum(chunk.rows.num_rows for chunk in chunks) == 3
    mark = json.loads(json.dumps(chunks[-1].watermark))
    engine = sqlalchemy.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO reviews VALUES (4, 'Чайник', '2026-01-04 00:00:00.000000')"))
        connection.execute(sqlalchemy.text("INSERT INTO reviews VALUES (NULL, 'Кружка', NULL)"))
    engine.dispose()
    again = list(read_chunks(source, options, newer_than=mark))
    texts = [text for chunk in again for text in chunk.rows["text"].to_pylist()]
    # SQLite orders NULL first; 1 is too far below the watermark, and the watermark does not move back.
    assert texts == ["Кружка", None, "Плед", "Чайник"]
    assert again[0].watermark == mark
    assert again[-1].watermark == extra


def test_database_without_a_table_names_the_setting(database: str) -> None:
    with pytest.raises(SettingsError, match="REVIEWCLF_INGEST__TABLE"):
        list_source(database, OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (IngestSettings(table="missing_table"), "no such table"),
        (IngestSettings(table="SELECT review_id FROM reviews"), "no column 'text'"),
        (IngestSettings(table="reviews", watermark_column="age"), "age"),
    ],
)
def test_database_that_refuses_is_named(database: str, options: IngestSettings, message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        read(database, options)


def test_table_name_cannot_carry_a_statement(database: str) -> None:
    with pytest.raises(SettingsError, match="is no name of a table"):
        read(database, IngestSettings(table="reviews; DROP TABLE reviews"))


def test_password_is_never_shown() -> None:
    (source,) = list_source("postgresql://user:geheim@127.0.0.1:1/db", IngestSettings(table="reviews"))
    assert "geheim" not in source.uri + repr(source)


def test_airflow_connection_outside_airflow_is_explained() -> None:
    with pytest.raises(SettingsError, match="SQLAlchemy URL"):
        list_source("airflow://reviews_db", OPTIONS)


def test_real_reviews_are_read_whole(shared_data: Path) -> None:
    rows, bad = read(shared_data / "reviews.csv")
    assert (len(rows), len(bad)) == (5920, 0)
    assert rows["review_id"].is_unique
    assert isinstance(pa.Table.from_pandas(rows), pa.Table)
