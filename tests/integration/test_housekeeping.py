"""Keeping house after real nights: what production needs stays, the next night goes on, on a folder and on S3."""

from __future__ import annotations

import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from reviewclf.cli import app
from reviewclf.night import run_night
from reviewclf.settings import MaintenanceSettings, load_settings
from reviewclf.stages.erase import erase
from reviewclf.stages.maintain import maintain
from reviewclf.store import StageResult, Store
from reviewclf.store.compaction import compact
from reviewclf.store.retention import remove_old
from tests.integration.conftest import S3
from tests.integration.test_erasure import finished, rows, settings_in, write_source
from tests.integration.test_open_tables import check_counts
from tests.integration.test_stages import run_ingest

__all__ = ["finished"]

MUCH_LATER = datetime.now(UTC) + timedelta(days=400)


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copytree(finished, tmp_path / "night"))


def test_production_and_the_next_night_have_all_that_they_need(folder: Path) -> None:
    settings = settings_in(folder, maintenance=MaintenanceSettings(keep_snapshots=1, keep_datasets=1))
    store = Store(settings.store_uri)
    before = {name: rows(settings, name) for name in store.snapshot().tables}
    ((_, champion),) = store.manifests("dataset")
    # A newer training set, which would be the only one kept.
    store.run_stage("dataset", 1, {"n": 1}, StageResult)
    found = store.find("snapshots")
    events = sorted(store.find("stages/promotions"))
    checkpoint = settings.home / "checkpoints" / "abc" / "job-1"
    checkpoint.mkdir(parents=True)
    done = maintain(settings, now=MUCH_LATER)
    # The newest one stays, and the one that the champion's training set was made from.
    assert done.details["files"]["snapshots"] == len(found) - 2
    assert not checkpoint.exists()
    assert done.details["kept_datasets"] == [champion.digest]
    assert store.read(champion, "dataset").num_rows > 0
    assert sorted(store.find("stages/promotions")) == events
    assert {name: rows(settings, name) for name in store.snapshot().tables} == before
    check_counts(store)
    assert maintain(settings, now=MUCH_LATER).counts == {"fewer_parts": 0, "removed": 0, "freed_bytes": 0}
    write_source(folder / "shop.csv", ("n1", "Блузка линяет, шов кривой"))
    report = run_night(settings, who="later", console=Console(file=io.StringIO()))
    assert not report.failed
    assert report.rows is not None
    assert report.rows.counts["clean"] == 1


def test_info_says_what_the_store_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(folder)
    monkeypatch.setenv("REVIEWCLF_STORE", settings.store_uri)
    found = json.loads(CliRunner().invoke(app, ["store", "info", "--json"]).output)
    assert {name: table["rows"] for name, table in found["tables"].items()} == {
        name: len(rows(settings, name)) for name in found["tables"]
    }
    assert found["others"]["datasets"]["files"] == 2
    said = CliRunner().invoke(app, ["store", "info"]).output
    assert "predictions" in said
    assert "outputs of stages" in said


def test_dry_run_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(folder, maintenance=MaintenanceSettings(keep_snapshots=1))
    before = Store(settings.store_uri).files()
    monkeypatch.setenv("REVIEWCLF_HOME", str(settings.home))
    monkeypatch.setenv("REVIEWCLF_MAINTENANCE__KEEP_DAYS", "1")
    assert "nothing is to be done" in CliRunner().invoke(app, ["store", "maintain", "--dry-run"]).output
    assert maintain(settings, dry_run=True, now=MUCH_LATER).details["files"]["snapshots"] > 1
    assert Store(settings.store_uri).files() == before


def test_on_s3(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, source = f"s3://{s3.bucket}/{uuid4().hex}", tmp_path / "reviews.csv"
    settings = load_settings(_env_file=None, home=tmp_path, store=uri, source=str(source), gold=None)
    written = [(f"r{n}", f"Сапоги номер {n} жмут в подъёме, но кожа мягкая") for n in range(5)]
    for count in range(1, 6):
        pd.DataFrame(written[:count], columns=["review_id", "text"]).to_csv(source, index=False)
        run_ingest(settings)
    store = Store(uri)
    assert compact(store)["clean"] == 4
    remove_old(store, MaintenanceSettings(keep_snapshots=1), datasets=(), now=MUCH_LATER)
    assert len(store.find("snapshots")) == 1
    assert {name: store.delta.rows(name, held.version) for name, held in store.snapshot().tables.items()} == {
        name: len(rows(settings, name)) for name in store.snapshot().tables
    }
    assert erase(settings, ["r3"]).details["rows"]["clean"] == 1
    assert [row["review_id"] for row in rows(settings, "clean")] == ["r0", "r1", "r2", "r4"]
    held = [store.read_bytes(key) for key in store.files() if not key.endswith(".parquet")]
    assert not any("номер 3".encode() in data for data in held)
    assert run_ingest(settings).counts["new"] == 0
