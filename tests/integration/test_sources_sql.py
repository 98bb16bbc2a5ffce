"""Reviews in a database: streamed, above a watermark, whatever the user's own query holds."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy

from reviewclf.data.sources import Chunk, SqlSource, list_source, read_chunks
from reviewclf.settings import IngestSettings

Fill = Callable[..., None]


@pytest.fixture
def database(tmp_path: Path) -> tuple[str, Fill]:
    url = f"sqlite:///{tmp_path / 'reviews.db'}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE reviews (review_id INTEGER, text TEXT, seen_at TEXT)")
    engine.dispose()

    def fill(*rows: tuple[Any, ...]) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO reviews VALUES (?, ?, ?)", list(rows))
        engine.dispose()

    return url, fill


def chunks(url: str, options: IngestSettings, newer_than: Any = None) -> list[Chunk]:
    (source,) = list_source(url, options)
    assert isinstance(source, SqlSource)
    return list(read_chunks(source, options, newer_than=newer_than))


def ids(parts: list[Chunk]) -> list[str]:
    return [review_id for part in parts for review_id in part.rows["review_id"].to_pylist()]


def test_rows_come_in_the_order_of_the_watermark_whatever_the_table_s_order(database: tuple[str, Fill]) -> None:
    url, fill = database
    fill((3, "Плед", "2026-01-03"), (1, "Туфли", "2026-01-01"), (2, "Чайник", "2026-01-02"))
    parts = chunks(url, IngestSettings(table="reviews", watermark_column="seen_at", chunk_rows=2))
    assert ids(parts) == ["1", "2", "3"]
    assert [part.watermark for part in parts] == ["2026-01-02", "2026-01-03"]


def test_nights_in_a_row_read_what_is_new_and_the_overlap(database: tuple[str, Fill]) -> None:
    url, fill = database
    options = IngestSettings(table="reviews", watermark_column="review_id", watermark_overlap=2, chunk_rows=3)
    mark, read = None, []
    for night in range(4):
        fill(*((night * 10 + number, "Плед", None) for number in range(1, 6)))
        parts = chunks(url, options, newer_than=mark)
        read.append(ids(parts))
        # What a store keeps of it between nights is JSON.
        mark = json.loads(json.dumps(parts[-1].watermark))
    assert read[0] == ["1", "2", "3", "4", "5"]
    assert read[1] == ["3", "4", "5", "11", "12", "13", "14", "15"]
    assert read[3] == ["23", "24", "25", "31", "32", "33", "34", "35"]
    assert ids(chunks(url, options, newer_than=mark)) == ["33", "34", "35"]


@pytest.mark.case(63)
@pytest.mark.parametrize(
    ("created", "setting"),
    [
        ("отзывы", "отзывы"),
        ("Отзывы 2026", "Отзывы 2026"),
        ("order", "order"),
        ("a.b", '"a.b"'),
        ('so "called', 'SELECT * FROM "so ""called"'),
        ("main.отзывы", "main.отзывы"),
    ],
)
def test_table_of_any_name_is_read(tmp_path: Path, created: str, setting: str) -> None:
    url = f"sqlite:///{tmp_path / 'reviews.db'}"
    engine = sqlalchemy.create_engine(url)
    rows = pd.DataFrame({"review_id": [1], "text": ["Плед"], "дата записи": ["2026-01-01"]})
    rows.to_sql(created.removeprefix("main."), engine, index=False)
    engine.dispose()
    assert ids(chunks(url, IngestSettings(table=setting))) == ["1"]
    assert ids(chunks(url, IngestSettings(table=setting, watermark_column="дата записи"), newer_than="2026-01-02")) == ["1"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM reviews WHERE text <> 'размер :xl'",
        "SELECT * FROM reviews WHERE text LIKE 'П%'",
        "SELECT * FROM reviews WHERE text = 'Плед' -- без :xl",
        "WITH few AS (SELECT * FROM reviews WHERE review_id = 2) SELECT * FROM few;",
    ],
)
@pytest.mark.parametrize("watermark", [None, "review_id"])
def test_query_may_hold_colons_percents_and_comments(database: tuple[str, Fill], query: str, watermark: str | None) -> None:
    url, fill = database
    fill((1, "размер :xl", None), (2, "Плед", None))
    assert ids(chunks(url, IngestSettings(table=query, watermark_column=watermark))) == ["2"]


def test_rows_are_streamed(database: tuple[str, Fill]) -> None:
    url, fill = database
    text = "Платье село отлично, но швы кривые; " * 30

    def peak() -> tuple[int, int]:
        options = IngestSettings(table="reviews", watermark_column="review_id", chunk_rows=500)
        (source,) = list_source(url, options)
        tracemalloc.start()
        rows = sum(chunk.rows.num_rows for chunk in read_chunks(source, options))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return rows, most

    fill(*((number, text, None) for number in range(3_000)))
    peak()  # What is imported and cached on the first use is not what is measured.
    few, small = peak()
    fill(*((number, text, None) for number in range(3_000, 24_000)))
    many, large = peak()
    assert (few, many) == (3_000, 24_000)
    assert large < 1.2 * small


def test_reader_that_stops_early_leaves_the_database_free(database: tuple[str, Fill]) -> None:
    url, fill = database
    fill(*((number, "Плед", None) for number in range(5_000)))
    options = IngestSettings(table="reviews", chunk_rows=10)
    (source,) = list_source(url, options)
    reading = read_chunks(source, options)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 0})
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE reviews")
    engine.dispose()
