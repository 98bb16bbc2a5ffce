"""A person's review is erased after a finished night: nothing of it is left in any file, and it does not come back."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from rich.console import Console
from typer.testing import CliRunner

from reviewclf.cli import app
from reviewclf.manifest import Manifest
from reviewclf.night import run_night
from reviewclf.settings import Settings, load_settings
from reviewclf.stages.erase import erase
from reviewclf.store import StageResult, Store
from reviewclf.text import clean_text, text_hash
from tests.integration.test_nights import CANDIDATE, GOLD, TRAIN, rows_of
from tests.integration.test_open_tables import check_counts
from tests.integration.test_stages import run_ingest
from tests.stores import Killed, before_each_write, killed_after

SECRET = 'Сапоги "Вестфалика" жмут Маргарите Львовне в подъёме,\nно кожа мягкая; цвет как на фото'
EARLIER = "Сапоги от Маргариты Львовны пришли без стелек, жду обмена"
REFUSED = "Маргарита Львовна и её сапоги, " * 400
SHARED = "платье понравилось мужу Маргариты Львовны, спасибо"
# What nobody else has written.
MARK = "аргарит"


def write_source(path: Path, *more: tuple[str, str], secret: str = SECRET) -> None:
    rows = [(f"r{n}", text) for n, (text, _) in enumerate(rows_of(TRAIN))]
    person = [("m1", secret), ("m2", SHARED), ("m3", REFUSED)]
    pd.DataFrame([*rows, *person, ("other", SHARED.upper()), *more], columns=["review_id", "text"]).to_csv(path, index=False)


def settings_in(folder: Path, **more: Any) -> Settings:
    files = {name: str(folder / f"{name}.csv") for name in ("votes", "gold")}
    source, candidates = str(folder / "shop.csv"), folder / "candidates.yaml"
    given = {"home": folder / "home", "source": source, "synthetic": None, "candidates": candidates, **files, **more}
    return load_settings(_env_file=None, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nights: on the second the person's review has another text."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        votes = [(f"r{n}", "reader", label, 0.9) for n, (_, label) in enumerate(rows_of(TRAIN))]
        votes += [(own, "reader", label, 0.9) for own, label in (("m1", "обувь"), ("m2", "одежда"))]
        pd.DataFrame(votes, columns=["review_id", "annotator", "label", "confidence"]).to_csv(folder / "votes.csv", index=False)
        pd.DataFrame(rows_of(GOLD), columns=["text", "label"]).to_csv(folder / "gold.csv", index=False)
        (folder / "candidates.yaml").write_text(CANDIDATE.format(words=2000), encoding="utf-8")
        write_source(folder / "shop.csv", secret=EARLIER)
        run_ingest(settings_in(folder))
        write_source(folder / "shop.csv")
        report = run_night(settings_in(folder), who="night", console=Console(file=io.StringIO()))
        assert not report.failed
        yield folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "night"
    shutil.copytree(finished, folder)
    store = Store(settings_in(folder).store_uri)
    # What a killed labelling, and a look at production, may have left.
    store.append_lines("journal/votes/a.jsonl", [json.dumps({"text_hash": text_hash(clean_text(SECRET)), "label": "обувь"})], 0)
    store.append_lines("journal/unreadable/votes/a.jsonl", [json.dumps({"raw": SECRET}), '{"raw": "Юбка"}'], 0)
    store.run_stage("monitor", 1, {"n": 1}, lambda: StageResult(details={"alarm": f"moved:\n  «{clean_text(SECRET)}»"}))
    return folder


def traces_in(root: Path) -> list[str]:
    """Files that hold something of the person: by their bytes, and what is in Parquet by its values."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            said = data.decode(errors="replace").replace("\\\\", "\\")
            if path.suffix == ".parquet":
                said += str(pq.read_table(io.BytesIO(data)).to_pylist())
            if MARK in said.lower() or json.dumps(MARK)[1:-1] in said:
                found.append(str(path.relative_to(root)))
    return found


def rows(settings: Settings, name: str) -> list[dict[str, Any]]:
    store = Store(settings.store_uri)
    return store.read(store.snapshot(), name).to_pylist()


def test_other_tools_read_every_table_of_a_finished_night(folder: Path) -> None:
    store = Store(settings_in(folder).store_uri)
    assert {"raw", "clean", "history", "quarantine", "duplicates", "votes", "labels", "predictions", "health"} <= (
        store.snapshot().tables.keys()
    )
    check_counts(store)


def test_no_file_of_the_store_holds_the_texts_any_more(folder: Path) -> None:
    settings = settings_in(folder)
    root = folder / "home" / "store"
    before = traces_in(root)
    for kind in ("tables/clean", "tables/history", "tables/quarantine", "tables/raw", "objects", "stages/monitor", "journal"):
        assert any(name.startswith(kind) for name in before), kind
    assert any("_delta_log" in name for name in before), "statistics in the log show short texts"
    others = {name: len(rows(settings, name)) for name in ("clean", "votes", "labels", "predictions", "raw")}
    done = erase(settings, ["m1", "m2", "m3", "other", "nobody"])
    assert traces_in(root) == []
    assert done.counts["reviews"] == 4
    assert done.details["unknown"] == ["nobody"]
    gone = done.details["rows"]
    assert gone["raw"] == 5, "both texts of m1, m2, m3 and the copy"
    assert (gone["clean"], gone["duplicates"], gone["history"], gone["quarantine"]) == (2, 1, 1, 1)
    assert {name: others[name] - len(rows(settings, name)) for name in others} == {name: gone[name] for name in others}
    assert gone["votes"] >= gone["labels"] == gone["predictions"] == 2
    assert done.counts["lines"] == 2
    # The dataset is readable without them, and says so.
    store = Store(settings.store_uri)
    ((_, dataset),) = store.manifests("dataset")
    assert dataset.details["erased_rows"] == 2
    assert not set(store.read(dataset, "dataset")["review_id"].to_pylist()) & {"m1", "m2", "other"}
    assert done.details["datasets"] == [dataset.digest]
    assert done.details["versions"] == ["1 (champion)"]
    for name, held in store.snapshot().tables.items():
        table = DeltaTable(store.delta.uri(name))
        assert (table.version(), table.to_pyarrow_table().num_rows) == (held.version, len(rows(settings, name)))


def test_text_that_another_person_has_written_stays_as_hers(folder: Path) -> None:
    settings = settings_in(folder)
    done = erase(settings, ["m1", "m2", "m3"])
    assert done.counts["shared"] == 1
    (heir,) = [row for row in rows(settings, "clean") if MARK in row["text_clean"].lower()]
    assert (heir["review_id"], heir["text"]) == ("other", SHARED.upper())
    assert not rows(settings, "duplicates")
    assert {row["review_id"] for row in rows(settings, "raw")} & {"m1", "m2", "m3"} == set()
    assert any(row["text_hash"] == heir["text_hash"] for row in rows(settings, "labels"))


def test_it_does_not_come_back_from_a_source_that_still_holds_it(folder: Path) -> None:
    settings = settings_in(folder)
    erase(settings, ["m1", "m2", "m3", "other"])
    # The file is another one, so it is read again; its person has edited the review, and writes the old text under a new id.
    write_source(
        folder / "shop.csv", ("m9", f" {SECRET}!"), ("n1", "Блузка линяет, шов кривой"), secret=EARLIER + " до сих пор"
    )
    report = run_night(settings, who="later", console=Console(file=io.StringIO()))
    assert not report.failed
    assert report.rows is not None
    assert (report.rows.counts["clean"], report.rows.counts["quarantined"]) == (1, 0)
    assert report.rows.counts["rows_in"] == report.rows.counts["known"] + 1
    assert traces_in(folder / "home" / "store") == []
    assert [row["review_id"] for row in rows(settings, "clean")][-1] == "n1"


def test_second_time_finds_nothing_and_changes_nothing(folder: Path) -> None:
    settings = settings_in(folder)
    erase(settings, ["m1"])
    store = Store(settings.store_uri)
    before = store.snapshot()
    again = erase(settings, ["m1"])
    assert (again.counts["reviews"], again.counts["rows"]) == (0, 0)
    assert store.snapshot() == before


def test_dry_run_says_what_there_is(folder: Path) -> None:
    settings = settings_in(folder)
    before = traces_in(folder / "home" / "store")
    done = erase(settings, ["m1"], dry_run=True)
    assert (done.counts["reviews"], done.details["rows"]["clean"]) == (1, 1)
    assert traces_in(folder / "home" / "store") == before


@pytest.mark.parametrize("writes", [0, 2, 7])
def test_killed_run_is_finished_by_the_next_one(folder: Path, writes: int) -> None:
    settings = settings_in(folder)
    ids = ["m1", "m2", "m3", "other"]
    killed_after(writes, lambda: erase(settings, ids))
    assert len(rows(settings, "clean")) in (60, 62)
    erase(settings, ids)
    assert len(rows(settings, "clean")) == 60
    assert traces_in(folder / "home" / "store") == []


@pytest.mark.parametrize("steps", [1, 6, 20, 40])
def test_run_that_was_killed_while_it_removed_is_finished_by_the_next_one(folder: Path, steps: int) -> None:
    settings = settings_in(folder)
    ids = ["m1", "m2", "m3", "other"]
    left = iter(range(steps))

    def counted(work: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: Any) -> None:
            if next(left, None) is None:
                raise Killed
            work(*arguments)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("remove", "overwrite"):
            patch.setattr(Store, name, counted(getattr(Store, name)))
        with pytest.raises(Killed):
            erase(settings, ids)
    erase(settings, ids)
    assert len(rows(settings, "clean")) == 60
    assert traces_in(folder / "home" / "store") == []


def test_night_that_publishes_meanwhile_loses_nothing(folder: Path) -> None:
    settings = settings_in(folder)
    came: list[Manifest] = []

    def publish_once(number: int) -> None:
        if number == 3 and not came:
            came.append(Manifest(stage="x", digest="x"))
            write_source(folder / "shop.csv", ("n1", "Блузка линяет, шов кривой"))
            came.append(run_ingest(settings))

    with before_each_write(publish_once):
        erase(settings, ["m1"])
    assert came[1].counts["clean"] == 1
    ids = {row["review_id"] for row in rows(settings, "clean")}
    assert "n1" in ids
    assert "m1" not in ids


def test_command_takes_ids_from_a_file_and_says_what_is_left_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(folder)
    names = ("home", "source", "votes", "gold", "candidates")
    for name in names:
        monkeypatch.setenv(f"REVIEWCLF_{name.upper()}", str(getattr(settings, name)))
    (folder / "ids.txt").write_text("m1\n\nm3\nnobody\n")
    said = CliRunner().invoke(app, ["erase", "--from", str(folder / "ids.txt")])
    assert said.exit_code == 0, said.output
    assert "2 reviews found" in said.output
    assert "not found: nobody" in said.output
    assert "version 1 (champion)" in said.output
    assert CliRunner().invoke(app, ["erase"]).exit_code == 2
