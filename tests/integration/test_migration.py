"""A store of an earlier version, taken over: ``tests/inputs/stores`` holds two, made by the ingest and labelling of then."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from uuid import uuid4

import fsspec
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reviewclf.cli import app
from reviewclf.errors import StoreError
from reviewclf.settings import load_settings
from reviewclf.store import Store
from reviewclf.store.migration import migrate
from reviewclf.text import text_hash
from tests.integration.conftest import S3
from tests.integration.test_stages import run_ingest, run_label
from tests.stores import held, killed_after

EARLIER = sorted((Path(__file__).parents[1] / "inputs" / "stores").glob("*.zip"))
# What both were made from, in two nights.
REVIEWS = [
    ("1", "Платье село после первой стирки, цвет хороший", "2026-01-05"),
    ("2", "Наушники хрипят на большой громкости", "2026-01-05"),
    ("3", "платье село после первой стирки, цвет хороший!!!", "2026-01-06"),
    ("4", "Деньги вернули быстро, товар так и не приехал", "2026-01-06"),
    ("5", "Сапоги жмут, но кожа мягкая и тёплая", "2026-01-07"),
    ("6", "", "2026-01-07"),
    ("7", "Кружка пришла разбитой, упаковка тонкая", "2026-01-07"),
    ("8", "Чайник кипятит быстро, но шумит", "2026-01-08"),
    ("9", "Наволочка линяет, швы ровные и крепкие, ткань плотная", "2026-01-09"),
    ("10", "Наволочка линяет, швы ровные и крепкие, ткань плотнаяя", "2026-01-09"),
    ("5", "Сапоги жмут, и кожа через неделю треснула", "2026-01-09"),
]


def unpack(archive: Path, uri: str) -> None:
    files = fsspec.get_mapper(uri)
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            files[name] = packed.read(name)


def rows_of_then(archive: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of each table, read without any code of the store."""
    with zipfile.ZipFile(archive) as packed:
        newest = max(name for name in packed.namelist() if name.startswith("log/"))
        named = json.loads(packed.read(newest))["tables"]
        parts = {name: [pq.read_table(io.BytesIO(packed.read(key))) for key in keys] for name, keys in named.items()}
    return {name: [row for part in found for row in part.to_pylist()] for name, found in parts.items() if name != "signatures"}


@pytest.fixture(params=EARLIER, ids=lambda path: path.stem)
def archive(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def uri(archive: Path, tmp_path: Path) -> str:
    uri = str(tmp_path / "home" / "store")
    unpack(archive, uri)
    return uri


def check(archive: Path, uri: str) -> None:
    """All rows, keys of commits and facts of then are there now."""
    store = Store(uri)
    snapshot = store.snapshot()
    expected = rows_of_then(archive)
    assert set(snapshot.tables) == set(expected)
    for name, rows in expected.items():
        found = store.read(snapshot, name).to_pylist()
        if name == "seen":
            rows = [{"row": int(row["row"]) - 2**64 if int(row["row"]) >= 2**63 else row["row"]} for row in rows]  # type: ignore[call-overload]
        # A column that came later is empty.
        assert [{column: row[column] for column in before} for row, before in zip(found, rows, strict=True)] == rows
        assert not any(value for row, before in zip(found, rows, strict=True) for value in [*map(row.get, row.keys() - before)])
    with zipfile.ZipFile(archive) as packed:
        newest = json.loads(packed.read(max(name for name in packed.namelist() if name.startswith("log/"))))
    assert snapshot.applied[:-1] == newest["applied"]
    assert snapshot.state == newest["state"]


def test_all_rows_are_taken_over(archive: Path, uri: str) -> None:
    with pytest.raises(StoreError, match="reviewclf store migrate"):
        Store(uri).snapshot()
    version, rows = migrate(Store(uri))
    assert version == 4
    assert rows == {name: len(found) for name, found in rows_of_then(archive).items()}
    check(archive, uri)


def test_second_time_changes_nothing(archive: Path, uri: str) -> None:
    _, rows = migrate(Store(uri))
    before = held(uri)
    assert migrate(Store(uri)) == (0, rows)
    assert held(uri) == before


def test_killed_at_any_write_it_ends_like_one_that_was_not(archive: Path, uri: str, tmp_path: Path) -> None:
    migrate(Store(uri))
    whole, writes = held(uri), 0
    while True:
        again = str(tmp_path / f"killed {writes}")
        unpack(archive, again)
        was_killed = killed_after(writes, lambda again=again: migrate(Store(again)))  # type: ignore[misc]
        migrate(Store(again))
        assert held(again) == whole
        if not was_killed:
            break
        writes += 1
    assert writes > len(whole[-1])
    check(archive, again)


def test_next_night_takes_in_what_is_new(archive: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    migrate(Store(uri))
    source, gold, votes = (tmp_path / name for name in ("reviews.csv", "gold.csv", "votes.csv"))
    new = [("11", "Кроссовки лёгкие, подошва не скользит"), ("12", "кружка пришла разбитой, упаковка тонкая")]
    rows = [*REVIEWS, *((*row, "2026-01-10") for row in new)]
    pd.DataFrame(rows, columns=["review_id", "text", "created_at"]).to_csv(source, index=False)
    gold.write_text("review_id,text,label\ng1,Телефон греется,электроника\n")
    votes.write_text("review_id,annotator,prompt,draw,label,confidence\n11,reader-a@1,guideline@1,0,обувь,0.9\n")
    settings = load_settings(_env_file=None, home=tmp_path / "home", source=str(source), gold=str(gold), votes=str(votes))
    counts = run_ingest(settings).counts
    assert (counts["rows_in"], counts["known"], counts["clean"], counts["duplicates"]) == (13, len(REVIEWS), 1, 1)
    store = Store(uri)
    known = len(rows_of_then(archive)["votes"])
    run_label(settings)
    snapshot = store.snapshot()
    recorded = [row for row in store.read(snapshot, "votes").to_pylist()[known:] if row["annotator"].startswith("reader-")]
    assert [(row["text_hash"], row["label"]) for row in recorded] == [(text_hash(new[0][1]), "обувь")]
    assert store.read(snapshot, "duplicates").to_pylist()[-1]["duplicate_of"] == "7"


def test_on_s3(s3: S3) -> None:
    uri = f"s3://{s3.bucket}/{uuid4().hex}"
    unpack(EARLIER[0], uri)
    migrate(Store(uri))
    check(EARLIER[0], uri)


def test_command_says_how_many_rows(archive: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_STORE", uri)
    said = CliRunner().invoke(app, ["store", "migrate"])
    assert said.exit_code == 0, said.output
    assert "version 4 is taken over" in said.output
    assert "votes" in said.output
    assert "nothing is left to be taken over" in CliRunner().invoke(app, ["store", "migrate"]).output
