"""Nights on a table of a database, whose rows come late, without a mark, and edited."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from reviewclf.night import run_night
from reviewclf.settings import load_settings
from reviewclf.store import Store
from tests.nights.books import Books, Row
from tests.nights.child import killed_night
from tests.nights.diary import environment, visible_in
from tests.nights.test_forty_nights import SEEDS
from tests.nights.words import reviews, write_taxonomy

_NIGHTS = 16
_SOURCE = "marketplace"
_BEGINNING = datetime(2026, 3, 1, 12, 0)


class Database:
    """A table `reviews` in SQLite, and every row that it ever held."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._chance = random.Random(f"database of {seed}")
        self._texts = reviews(seed)
        self._id = 0
        self.latest = _BEGINNING
        self.rows: list[Row] = []
        self._change("CREATE TABLE reviews (review_id INTEGER, text TEXT, created_at TEXT, updated_at TEXT)")

    def add(self, *marks: datetime | None) -> None:
        """Insert a review for each mark."""
        for mark in marks:
            self._id += 1
            self._insert(self._id, mark)

    def edit(self, mark: datetime) -> None:
        """A review that somebody has written anew: the row is changed in its place, with a new mark."""
        row = self._chance.choice(self.rows)
        text = next(self._texts)
        self._change(
            "UPDATE reviews SET text = ?, created_at = ?, updated_at = ? WHERE review_id = ?", text, mark, mark, row.id
        )
        self.rows = [each for each in self.rows if each.id != row.id]
        self.rows.append(row._replace(text=text))

    def gain_column(self) -> None:
        """The schema grows."""
        self._change("ALTER TABLE reviews ADD COLUMN stars INTEGER")

    def night(self, number: int) -> None:
        """What happens between two nights: new rows always, and something that readers of watermarks trip over."""
        before, self.latest = self.latest, self.latest + timedelta(days=1)
        self.add(*(before + timedelta(hours=self._chance.randrange(1, 24)) for _ in range(8)), self.latest)
        # With the very mark that was read last, somewhat below it, and with none at all.
        late = [before, before - timedelta(hours=self._chance.randrange(1, 40)), None]
        self.add(*(mark for mark in late if self._chance.random() < 0.7))
        if number % 3 == 0:
            self.edit(self.latest)
        if number == _NIGHTS // 2:
            self.gain_column()

    def _insert(self, review_id: int, mark: datetime | None) -> None:
        text = next(self._texts)
        self.rows.append(Row(str(review_id), "", text))
        statement = "INSERT INTO reviews (review_id, text, created_at, updated_at) VALUES (?, ?, ?, ?)"
        self._change(statement, review_id, text, mark, mark)

    def _change(self, statement: str, *values: object) -> None:
        written = [value.isoformat(sep=" ") if isinstance(value, datetime) else value for value in values]
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute(statement, written)


@pytest.mark.parametrize("seed", SEEDS)
def test_late_unmarked_and_edited_rows_of_a_database_are_all_read_once(tmp_path: Path, seed: int) -> None:
    database, books = Database(tmp_path / "shop.sqlite", seed), Books()
    write_taxonomy(tmp_path / "taxonomy.yaml", edition=1)
    variables = {
        "REVIEWCLF_HOME": str(tmp_path / "home"),
        "REVIEWCLF_SOURCE": f"sqlite:///{tmp_path / 'shop.sqlite'}",
        "REVIEWCLF_GOLD": "",
        "REVIEWCLF_TAXONOMY": str(tmp_path / "taxonomy.yaml"),
        "REVIEWCLF_INGEST__TABLE": "reviews",
        "REVIEWCLF_INGEST__WATERMARK_COLUMN": "updated_at",
        "REVIEWCLF_INGEST__SOURCE_NAME": _SOURCE,
    }
    for number in range(1, _NIGHTS + 1):
        database.night(number)
        if number == _NIGHTS // 4:
            assert killed_night(variables, ["ingest"], "commit-reviews") == -9
        with environment(variables):
            settings = load_settings(_env_file=None)
            report = run_night(settings, who=f"night {number}", console=Console(file=StringIO()), steps=["ingest"])
            assert not report.failed, f"night {number}: {report.steps}"
            assert report.rows is not None
            counts, told = report.rows.counts, books.publish({_SOURCE: database.rows})[_SOURCE]
            parts = ("known", "clean", "quarantined", "duplicates")
            assert counts["rows_in"] == sum(counts[part] for part in parts), f"night {number}: {counts}"
            assert (counts["clean"], counts["duplicates"]) == (told.clean, told.duplicates), f"night {number}: {counts}"
            assert counts["edited"] == books.edited, f"night {number}: {counts}"
            assert visible_in(Store(settings.store_uri)) == books.visible, f"night {number}"
        # What was read long ago is not read again.
        assert counts["rows_in"] < max(60, len(database.rows)), f"night {number}"
