"""Night after night on sources that live: they grow, are edited, replaced, renumbered, read with other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy

from reviewclf.errors import QualityError
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import ingest as stages
from reviewclf.store import Store

THINGS = ["Платье", "Кружка", "Пылесос", "Сапоги", "Плед", "Кукла", "Серьги", "Наушники"]
TEXTS = [
    "Платье село отлично, но швы кривые",
    "Кружка пришла разбитой, деньги вернули",
    "Наушники хрипят на басах",
    "Пылесос тихий, мешки в комплекте",
    "Сапоги промокли через неделю",
    "Постельное бельё мягкое, не линяет",
    "Кукла понравилась дочке",
    "Серьги красивые, застёжка слабая",
]


def reviews(start: int, end: int) -> list[tuple[str, str]]:
    return [(str(n), f"{THINGS[n % len(THINGS)]} номер {n}, пришло за {n % 9} дней") for n in range(start, end)]


class Nights:
    """A store and a source; a night is lived through all stages of ingestion."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self._home = folder / "home"

    def settings(self, source: str | Path | None = None, **overrides: Any) -> Settings:
        return load_settings(_env_file=None, home=self._home, source=str(source or self.source), **overrides)

    def write(
        self, rows: list[tuple[str, str]], name: str = "reviews.csv", columns: tuple[str, ...] = ("review_id", "text")
    ) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)

    def live(self, source: str | Path | None = None, **overrides: Any) -> Manifest:
        settings = self.settings(source, **overrides)
        before = {name: len(frame) for name, frame in self.tables().items()}
        ingested = stages.ingest(settings)
        validated = stages.validate_raw(settings, ingested)
        cleaned = stages.clean(settings, ingested, validated)
        published = stages.publish(settings, ingested, validated, cleaned, stages.validate_clean(settings, cleaned))
        self._check(published, before)
        return published

    def tables(self) -> dict[str, pd.DataFrame]:
        store = Store(self.settings().store_uri)
        snapshot = store.snapshot()
        return {name: store.read_table(keys).to_pandas() for name in snapshot.tables if (keys := snapshot.keys(name))}

    def texts(self) -> dict[str, str]:
        clean = self.tables()["clean"]
        return dict(zip(clean["review_id"], clean["text"], strict=True))

    def _check(self, published: Manifest, before: dict[str, int]) -> None:
        """Nothing is lost or doubled, whatever the night held."""
        counts, tables = published.counts, self.tables()
        assert counts["rows_in"] == sum(counts[name] for name in ("known", "clean", "quarantined", "duplicates"))
        by_source: Any = published.details["by_source"]
        for name in ("rows_in", "known", "clean", "quarantined", "duplicates"):
            assert counts[name] == sum(found[name] for found in by_source.values())
        assert counts["quarantined"] == sum(published.details["reasons"].values())  # type: ignore[union-attr, arg-type]
        clean = tables.get("clean", pd.DataFrame({"review_id": [], "text_hash": []}))
        assert clean["review_id"].is_unique
        assert clean["text_hash"].is_unique
        grown = {
            name: len(tables.get(name, [])) - before.get(name, 0) for name in ("clean", "duplicates", "history", "quarantine")
        }
        assert grown == {
            "clean": counts["clean"] - counts["left_clean"] + counts["promoted"],
            "duplicates": counts["duplicates"] - counts["left_duplicates"],
            "history": counts["superseded"],
            "quarantine": counts["quarantined"],
        }
        if "duplicates" in tables:
            assert set(tables["duplicates"]["duplicate_of"]) <= set(clean["review_id"])


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def counted(manifest: Manifest, *names: str) -> tuple[int, ...]:
    return tuple(manifest.counts[name] for name in names)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.case(5)
def test_file_whose_rows_are_mostly_refused_fails_the_night_and_is_read_again(nights: Nights) -> None:
    (nights.source / "reviews.csv").write_text(
        "review_id,text\n" + "".join(f"{n},{text},x,y\n" for n, text in enumerate(TEXTS)), "utf-8"
    )
    message = r"reviews\.csv: 8 of 8 rows \(100%\).*too_many_fields 8.*row 1, .*Платье.*REVIEWCLF_INGEST__MAX_REFUSED_SHARE"
    for _ in range(2):
        with pytest.raises(QualityError, match=message):
            nights.live()
    assert Store(nights.settings().store_uri).snapshot().version == 0
    nights.write(reviews(0, 8))
    assert nights.live().counts["new"] == 8


def test_share_of_refused_rows_counts_all_rows_of_the_file(nights: Nights) -> None:
    good = "".join(f'{key},"{text}"\n' for key, text in reviews(0, 100))
    path = nights.source / "reviews.csv"
    path.write_text(f"review_id,text\n{good}", "utf-8")
    nights.live()
    # Two of the three new rows are bad, but only two of all 103.
    path.write_text(f"review_id,text\n{good}a,b,c\nd,e,f\n500,Плед мягкий\n", "utf-8")
    night = nights.live()
    assert counted(night, "known", "clean", "quarantined") == (100, 1, 2)
    assert night.details["reasons"] == {"too_many_fields": 2}
    with pytest.raises(QualityError, match="REVIEWCLF_INGEST__MAX_REFUSED_SHARE"):
        nights.live(ingest={"max_refused_share": 0.01, "encoding": "utf-8"})


def test_lone_bad_row_of_a_small_file_goes_to_quarantine(nights: Nights) -> None:
    (nights.source / "reviews.csv").write_text("review_id,text\n1,Плед\n2,a,b\n", "utf-8")
    assert counted(nights.live(), "clean", "quarantined") == (1, 1)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.case(6)
def test_no_review_is_lost_for_its_time(nights: Nights) -> None:
    times = [
        "01.02.26",
        "2026/02/01",
        "1 февраля 2026",
        "01.02.2026 12:30 +03:00",
        "01-02-2026",
        "0000-00-00",
        "46054",
        "вчера",
    ]
    pd.DataFrame({"review_id": range(8), "text": TEXTS, "created_at": times}).to_csv(nights.source / "reviews.csv", index=False)
    night = nights.live()
    assert counted(night, "clean", "quarantined", "unknown_dates") == (8, 0, 2)
    assert "'вчера' (reviews.csv, row 8)" in str(night.details["unknown_dates"])
    tables = nights.tables()
    days = dict(zip(tables["clean"]["review_id"], tables["clean"]["dt"].fillna(""), strict=True))
    assert days == {**dict.fromkeys("0126", "2026-01-31"), "3": "2026-02-01", **dict.fromkeys("457", "")}
    extra = dict(zip(tables["raw"]["review_id"], tables["raw"]["extra"], strict=True))
    assert json.loads(extra["7"]) == {"created_at": "вчера"}


@pytest.mark.case(70)
def test_days_as_excel_counts_them_are_times(nights: Nights) -> None:
    frame = pd.DataFrame({"review_id": ["1", "2"], "text": TEXTS[:2], "created_at": [46266.5, 46267.0]})
    frame.to_parquet(nights.source / "reviews.parquet")
    nights.live()
    assert nights.tables()["clean"]["created_at"].astype(str).tolist() == [
        "2026-09-01 09:00:00+00:00",
        "2026-09-01 21:00:00+00:00",
    ]


@pytest.mark.case(7)
def test_time_column_that_is_put_right_fills_the_times_of_known_reviews(nights: Nights) -> None:
    frame = pd.DataFrame({"review_id": range(8), "text": TEXTS, "shop": "Лавка", "written": "01.02.2026"})
    frame.to_csv(nights.source / "reviews.csv", index=False)
    assert nights.live(ingest={"created_at_column": "shop"}).counts["unknown_dates"] == 8
    night = nights.live(ingest={"created_at_column": "written"})
    assert counted(night, "rows_in", "known", "new", "superseded") == (8, 8, 0, 0)
    assert set(nights.tables()["clean"]["dt"]) == {"2026-01-31"}
    again = nights.live(ingest={"created_at_column": "written"})
    assert again.counts["rows_in"] == 0


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.case(8)
@pytest.mark.parametrize("spoilt", ["1,23457E+17", "1.23457E+17", "1E+17"])
def test_ids_spoilt_by_excel_are_none(nights: Nights, spoilt: str) -> None:
    nights.write([(spoilt, text) for text in TEXTS])
    assert counted(nights.live(), "clean", "quarantined", "duplicates") == (8, 0, 0)
    nights.write([(spoilt, text) for text in [*TEXTS, "Чайник течёт"]])
    assert counted(nights.live(), "known", "clean", "edited") == (8, 1, 0)


@pytest.mark.case(9)
def test_shops_that_number_their_reviews_from_1_share_a_folder(nights: Nights) -> None:
    for name, rows in (("ozon.csv", reviews(0, 8)), ("wb/ozon.csv", [(str(n), text) for n, text in enumerate(TEXTS)])):
        nights.write(rows, name)
    night = nights.live()
    assert counted(night, "clean", "quarantined", "duplicates") == (16, 0, 0)
    assert set(night.details["by_source"]) == {"ozon.csv", "wb/ozon.csv"}  # type: ignore[arg-type]
    # An edit in the second shop is one, though its ids were taken.
    nights.write([("0", "Платье село после стирки"), *((str(n), text) for n, text in enumerate(TEXTS) if n)], "wb/ozon.csv")
    assert counted(nights.live(), "known", "clean", "edited") == (7, 1, 1)
    assert len(nights.texts()) == 16


@pytest.mark.case(10)
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_ids_that_are_missing_as_nan_are_made_of_source_and_text(nights: Nights, kind: str) -> None:
    frame = pd.DataFrame({"review_id": [np.nan, 2.0] * 4, "text": TEXTS})
    frame["review_id"] = [np.nan, 2.0, np.nan, 4.0, np.nan, 6.0, np.nan, 8.0]
    if kind == "csv":
        frame.to_csv(nights.source / "reviews.csv", index=False, na_rep="nan")
    elif kind == "parquet":
        frame.to_parquet(nights.source / "reviews.parquet")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")]
        (nights.source / "reviews.jsonl").write_text("\n".join(lines), "utf-8")
    assert counted(nights.live(), "clean", "quarantined") == (8, 0)
    made = [key for key in nights.texts() if len(key) == 32]
    assert sorted(nights.texts().keys() - made) == ["2", "4", "6", "8"]


def test_number_of_the_product_is_no_id_of_a_review(nights: Nights, caplog: pytest.LogCaptureFixture) -> None:
    nights.write([("77" if n < 3 else "78", text) for n, text in enumerate(TEXTS[:6])])
    night = nights.live()
    assert counted(night, "clean", "edited") == (6, 0)
    assert night.details["ids_ignored"] == ["reviews.csv"]
    assert "set REVIEWCLF_INGEST__ID_COLUMN" in caplog.text
    nights.write([("77" if n < 3 else "78", text) for n, text in enumerate(TEXTS)])
    assert counted(nights.live(), "known", "clean", "edited") == (6, 2, 0)


def test_file_that_is_numbered_anew_each_day_loses_no_review(nights: Nights) -> None:
    nights.write(reviews(0, 8))
    nights.live()
    nights.write([(str(n), text) for n, text in enumerate(TEXTS)])
    assert counted(nights.live(), "clean", "superseded") == (8, 0)
    nights.write([(str(n), f"{text}, и ещё раз") for n, text in enumerate(TEXTS)])
    nights.live()
    assert len(nights.texts()) == 24


# -- edits -------------------------------------------------------------------------------------------------------------


def test_edited_review_has_its_newer_text_and_keeps_the_older_one_in_history(nights: Nights) -> None:
    rows = reviews(0, 30)
    nights.write(rows)
    nights.live()
    rows[3] = ("3", "Сапоги всё-таки промокли")
    nights.write(rows)
    night = nights.live()
    assert counted(night, "known", "clean", "edited", "superseded") == (29, 1, 1, 1)
    assert nights.texts()["3"] == "Сапоги всё-таки промокли"
    (old,) = nights.tables()["history"].to_dict("records")
    assert (old["review_id"], old["text"]) == reviews(3, 4)[0]
    assert old["replaced_by"] == nights.tables()["clean"].set_index("review_id")["text_hash"]["3"]


def test_review_that_is_edited_back_has_its_first_text_again(nights: Nights) -> None:
    first, second = reviews(0, 30), reviews(0, 30)
    second[3] = ("3", "Сапоги всё-таки промокли")
    for rows in (first, second, first, second, first):
        nights.write(rows)
        nights.live()
        assert nights.texts()["3"] == rows[3][1]
    assert len(nights.tables()["history"]) == 4
    # What has not changed is not edited again, whatever else is new.
    nights.write([*first, *reviews(40, 41)])
    assert counted(nights.live(), "known", "clean", "superseded") == (30, 1, 0)


def test_growing_file_that_holds_both_texts_settles_on_the_later_one(nights: Nights) -> None:
    rows = [*reviews(0, 30), ("3", "Сапоги всё-таки промокли")]
    nights.write(rows)
    assert counted(nights.live(), "clean", "edited", "left_clean") == (31, 1, 1)
    for more in (1, 2):
        nights.write([*rows, *reviews(40, 40 + more)])
        assert counted(nights.live(), "known", "clean", "superseded") == (30 + more, 1, 0)
    assert nights.texts()["3"] == "Сапоги всё-таки промокли"


def test_copy_takes_the_place_of_the_review_that_was_edited(nights: Nights) -> None:
    rows = [*reviews(0, 30), ("a", "Всё отлично"), ("b", "всё отлично!"), ("c", "ВСЁ ОТЛИЧНО")]
    nights.write(rows)
    assert counted(nights.live(), "clean", "duplicates") == (31, 2)
    rows[30] = ("a", "Передумал: плохо")
    nights.write(rows)
    assert counted(nights.live(), "clean", "promoted", "left_duplicates") == (1, 1, 1)
    assert nights.texts()["b"] == "всё отлично!"
    assert nights.tables()["duplicates"][["review_id", "duplicate_of"]].to_numpy().tolist() == [["c", "b"]]
    # A copy that is edited leaves the duplicates, and an edit may make a review a copy of another.
    rows[32], rows[0] = ("c", "Не моё"), ("0", "Всё отлично")
    nights.write(rows)
    assert counted(nights.live(), "clean", "duplicates", "left_clean", "left_duplicates") == (1, 1, 1, 1)
    assert nights.tables()["duplicates"][["review_id", "duplicate_of"]].to_numpy().tolist() == [["0", "b"]]


# -- volumes -----------------------------------------------------------------------------------------------------------


def test_file_that_grows_by_a_few_rows_stops_no_night(nights: Nights) -> None:
    for night, rows in enumerate((1000, 1010, 1020, 1030, 1031, 1050)):
        nights.write(reviews(0, rows))
        assert nights.live().counts["new"] == rows - (0, 1000, 1010, 1020, 1030, 1031)[night]


def test_small_daily_files_after_a_large_first_load_stop_no_night(nights: Nights) -> None:
    nights.write(reviews(0, 3000), "2026-01.csv")
    nights.live()
    for day in range(1, 7):
        nights.write(reviews(3000 + 10 * day, 3000 + 10 * day + day), f"2026-02-{day:02}.csv")
        assert nights.live().counts["new"] == day


def test_file_that_was_cut_off_fails_the_night(nights: Nights) -> None:
    nights.write(reviews(0, 1000))
    nights.live()
    nights.write(reviews(0, 12))
    with pytest.raises(
        QualityError, match=r"reviews\.csv: holds 12 rows, but it held 1,000.*REVIEWCLF_QUALITY__MAX_VOLUME_RATIO"
    ):
        nights.live()
    assert nights.live(quality={"max_volume_ratio": 100}).counts["known"] == 12


def test_empty_day_is_no_measure_of_the_days_to_come(nights: Nights) -> None:
    nights.write([])
    nights.live()
    nights.write(reviews(0, 150))
    assert counted(nights.live(), "rows_in", "clean") == (150, 150)
    nights.write([])
    nights.live()
    nights.write(reviews(0, 160))
    assert counted(nights.live(), "rows_in", "known", "clean") == (160, 150, 10)
    nights.write([])
    nights.live()
    nights.write(reviews(0, 3))
    with pytest.raises(QualityError, match="held 160"):
        nights.live()


def test_text_column_that_is_put_right_replaces_what_the_wrong_one_held(nights: Nights) -> None:
    rows = [(number, "Пять звёзд, всё хорошо", text) for number, text in reviews(0, 10)]
    nights.write(rows, columns=("review_id", "text", "comment"))  # type: ignore[arg-type]
    nights.live()
    published = nights.live(ingest={"text_column": "comment"})
    assert counted(published, "clean", "edited", "superseded") == (10, 10, 10)
    assert nights.texts() == dict(reviews(0, 10))


def test_flood_of_new_rows_fails_the_night(nights: Nights) -> None:
    for night in range(5):
        nights.write(reviews(0, 100 + 10 * night))
        nights.live()
    nights.write(reviews(0, 1500))
    with pytest.raises(QualityError, match="volume"):
        nights.live()


def test_five_new_rows_of_which_two_are_empty_stop_no_night(nights: Nights) -> None:
    nights.write(reviews(0, 100))
    nights.live()
    nights.write([*reviews(0, 103), ("a", ""), ("b", " ")])
    assert counted(nights.live(), "clean", "quarantined") == (3, 2)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.case(7)
@pytest.mark.parametrize("option", [{"id_column": "key"}, {"source_name": "shop"}, {"separator": ","}, {"encoding": "utf-8"}])
def test_changed_settings_read_a_known_file_again_and_the_same_ones_do_not(nights: Nights, option: dict[str, str]) -> None:
    nights.write([(key, text, f"k{key}") for key, text in reviews(0, 8)], columns=("review_id", "text", "key"))
    nights.live()
    assert nights.live(ingest=option).counts["rows_in"] == 8
    assert nights.live(ingest={**option, "chunk_rows": 7, "max_refused_share": 0.5}).counts["rows_in"] == 0
    assert len(nights.texts()) == 8


def test_files_that_go_come_back_and_are_copied_change_nothing(nights: Nights) -> None:
    nights.write(reviews(0, 8), "a.csv")
    nights.write(reviews(10, 18), "b.csv")
    nights.live()
    (nights.source / "a.csv").rename(nights.source / ".hidden")
    assert nights.live().counts["rows_in"] == 0
    (nights.source / ".hidden").rename(nights.source / "a.csv")
    shutil.copy(nights.source / "a.csv", nights.source / "copy of a.csv")
    assert counted(nights.live(), "rows_in", "duplicates") == (8, 8)
    assert len(nights.texts()) == 16


def test_columns_that_come_and_go_change_nothing_of_known_reviews(nights: Nights) -> None:
    nights.write(reviews(0, 8))
    nights.live()
    nights.write([(5, text, key) for key, text in reviews(0, 9)], columns=("stars", "text", "review_id"))
    assert counted(nights.live(), "known", "clean") == (8, 1)
    nights.write(reviews(0, 10))
    assert counted(nights.live(), "known", "clean") == (9, 1)


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., str]:
    url = f"sqlite:///{tmp_path / 'reviews.db'}"
    engine = sqlalchemy.create_engine(url)

    def insert(table: str, **columns: list[Any]) -> str:
        pd.DataFrame(columns).to_sql(table, engine, index=False, if_exists="append")
        engine.dispose()
        return url

    return insert


@pytest.mark.case(62)
def test_rows_with_the_same_an_older_or_no_mark_are_read_the_next_night(nights: Nights, fill: Callable[..., str]) -> None:
    options = {"table": "reviews", "watermark_column": "seen_at"}
    url = fill("reviews", review_id=[1, 2], text=TEXTS[:2], seen_at=["2026-02-01 10:00:00", "2026-02-03 10:00:00"])
    nights.live(url, ingest=options)
    fill("reviews", review_id=[3, 4, 5, 6], text=TEXTS[2:6],
         seen_at=["2026-02-03 10:00:00", "2026-02-02 11:00:00", None, "2026-02-04 10:00:00"])  # fmt: skip
    assert counted(nights.live(url, ingest=options), "clean", "duplicates") == (4, 0)
    fill("reviews", review_id=[7], text=TEXTS[6:7], seen_at=[None])
    assert nights.live(url, ingest=options).counts["clean"] == 1
    assert set(nights.texts()) == set("1234567")
    version = Store(nights.settings().store_uri).snapshot().version
    assert nights.live(url, ingest=options).counts["new"] == 0
    assert Store(nights.settings().store_uri).snapshot().version == version


def test_row_that_is_updated_in_the_database_is_an_edit(nights: Nights, fill: Callable[..., str]) -> None:
    options = {"table": "reviews", "watermark_column": "seen_at"}
    url = fill("reviews", review_id=[1, 2], text=TEXTS[:2], seen_at=["2026-02-01", "2026-02-03"])
    nights.live(url, ingest=options)
    for day, text in (("2026-02-05", "Платье полиняло"), ("2026-02-06", TEXTS[0])):
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            values = {"text": text, "day": day}
            connection.execute(sqlalchemy.text("UPDATE reviews SET text = :text, seen_at = :day WHERE review_id = 1"), values)
            if day == "2026-02-06":
                connection.execute(sqlalchemy.text("ALTER TABLE reviews ADD COLUMN stars INTEGER"))
        engine.dispose()
        assert nights.live(url, ingest=options).counts["edited"] == 1
        assert nights.texts()["1"] == text


# -- stores of earlier versions ----------------------------------------------------------------------------------------


def test_store_that_remembers_plain_fingerprints_reads_its_files_once_more(nights: Nights) -> None:
    nights.write(reviews(0, 8))
    nights.live()
    store = Store(nights.settings().store_uri)
    base = store.snapshot()
    sources: Any = base.state["sources"]
    plain = {uri: entry["fingerprint"] for uri, entry in sources.items()}
    store.commit(base, key="earlier", state={"sources": plain, "volumes": [8]})
    assert counted(nights.live(), "rows_in", "known") == (8, 8)
    assert nights.live().counts["rows_in"] == 0


# -- texts that were misread ---------------------------------------------------------------------------------------------


@pytest.mark.case(58)
@pytest.mark.parametrize("wrong", ["cp1251", "latin-1"])
def test_text_that_was_misread_before_it_came_is_read_again(nights: Nights, wrong: str) -> None:
    misread = [text.encode().decode(wrong, "surrogateescape") for text in TEXTS]
    nights.write([(str(n), text) for n, text in enumerate(misread) if text.isprintable() or wrong == "latin-1"])
    night = nights.live()
    assert night.counts["repaired"] == night.counts["rows_in"] > 0
    clean = nights.tables()["clean"]
    assert set(clean["text_clean"]) <= set(TEXTS)


def test_edit_in_one_file_leaves_another_that_uses_the_same_ids_alone(nights: Nights) -> None:
    nights.write(reviews(1, 20), "shop.csv")
    nights.write([(str(n), f"Плед другого магазина номер {n}, мягкий") for n in range(1, 20)], "market.csv")
    nights.live()
    edited = [(key, text if key != "7" else "Наушники перестали заряжаться через месяц") for key, text in reviews(1, 20)]
    nights.write(edited, "shop.csv")
    assert nights.live().counts["edited"] == 1
    nights.write([(str(n), f"Плед другого магазина номер {n}, мягкий") for n in range(1, 22)], "market.csv")
    counts = nights.live().counts
    assert (counts["known"], counts["clean"], counts["duplicates"], counts["edited"]) == (19, 2, 0, 0)


def test_files_that_are_read_anew_for_another_setting_are_no_unusual_volume(nights: Nights) -> None:
    columns = ("review_id", "text", "order")
    for end in (300, 305, 310, 315, 320):
        nights.write([(*row, f"o{row[0]}") for row in reviews(0, end)], columns=columns)  # type: ignore[misc]
        nights.live()
    again = nights.live(ingest={"id_column": "order"})
    assert (again.counts["rows_in"], again.counts["clean"], again.counts["duplicates"]) == (320, 0, 320)
    # Nor do they count among the nights that later ones are compared with.
    assert Store(nights.settings().store_uri).snapshot().state["new_rows"] == [5, 5, 5, 5]
