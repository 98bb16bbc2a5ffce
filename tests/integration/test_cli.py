"""The command line after a night: predict, leaderboard, doctor."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reviewclf.settings import load_settings
from tests.integration.test_stages import run_retrain

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, labelled_sample: str) -> Path:
    """A home with a champion, trained on the bundled sample."""
    folder = tmp_path_factory.mktemp("ночь 1")
    shutil.copytree(labelled_sample, folder / "store")
    run_retrain(load_settings(_env_file=None, home=folder))
    return folder


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("REVIEWCLF_HOME", str(home))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return subprocess.run(
            [sys.executable, "-m", "reviewclf.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    return run


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_predict_keeps_the_columns_and_adds_its_own(command: Command, home: Path, tmp_path: Path, ending: str) -> None:
    from reviewclf.data.frames import read_frame, write_frame

    frame = pd.DataFrame(
        {
            "id": ["007", "8", "9"],
            "отзыв": ["Сковорода с антипригарным покрытием", None, "Наушники хрипят, зарядка не держится"],
            "stars": ["5", "4", "3"],
        }
    )
    write_frame(frame, str(tmp_path / f"in 1.{ending}"))
    done = command("predict", f"in 1.{ending}", f"out.{ending}", "--text-column", "отзыв", home=home)
    assert done.returncode == 0, done.stderr
    answers = read_frame(str(tmp_path / f"out.{ending}"))
    assert answers.columns.tolist() == ["id", "отзыв", "stars", "predicted_label", "confidence", "model_version"]
    assert answers["id"].tolist() == ["007", "8", "9"]
    assert answers["predicted_label"].tolist()[::2] == ["посуда", "электроника"]
    assert answers["confidence"].astype(float).between(0, 1).all()
    assert answers["model_version"].nunique() == 1


@pytest.mark.case(20)
@pytest.mark.case(22)
def test_predict_keeps_every_value_as_it_came(command: Command, home: Path, tmp_path: Path) -> None:
    line = '{"id": 12345678901234567890123, "text": "Туфли жмут", "price": 0.1, "tags": ["a", {"b": null}], "ok": true}'
    (tmp_path / "in.jsonl").write_text(line + "\n", encoding="utf-8")
    (tmp_path / "in.csv").write_text("id;text;note\n007;Туфли жмут;nan\n1,50;Плед мягкий; NA \n", encoding="cp1251")
    table = pa.table(
        {
            "text": pa.array(["Туфли жмут", "Плед мягкий"], pa.string()).dictionary_encode(),
            "at": pa.array([0, None], pa.timestamp("ms", "UTC")),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "n": pa.array([7, None], pa.int16()),
            "review_id": ["r0", "r1"],
        }
    ).replace_schema_metadata({"pandas": json.dumps({"index_columns": ["review_id"], "columns": [], "column_indexes": []})})
    pq.write_table(table, tmp_path / "in.parquet")
    for ending in ("jsonl", "csv", "parquet"):
        done = command("predict", f"in.{ending}", f"out.{ending}", home=home)
        assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {name: row[name] for name in json.loads(line)} == json.loads(line)
    assert row["predicted_label"] == "обувь"
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [cells[:3] for cells in rows] == [
        ["id", "text", "note"],
        ["007", "Туфли жмут", "nan"],
        ["1,50", "Плед мягкий", " NA "],
    ]
    out = pq.ParquetFile(tmp_path / "out.parquet").read()
    assert out.schema.names == [*table.schema.names, "predicted_label", "confidence", "model_version"]
    assert [out.schema.field(name).type for name in table.schema.names if name != "text"] == [
        field.type for field in table.schema if field.name != "text"
    ]
    assert pa.types.is_dictionary(out.schema.field("text").type)
    assert out.select(table.schema.names).to_pylist() == table.to_pylist()


@pytest.mark.case(58)
@pytest.mark.case(81)
def test_predict_reads_misread_texts_again_and_writes_no_formulas_on_demand(
    command: Command, home: Path, tmp_path: Path
) -> None:
    misread = "Туфли жмут, подошва скользкая".encode().decode("cp1251", "replace")
    lost = "????? ????, ??????? ?????????"
    (tmp_path / "in.csv").write_text(f'id,text\n=1+1,"{misread}"\n2,"{lost}"\n-3,Туфли жмут\n', encoding="utf-8")
    done = command("predict", "in.csv", "out.csv", "--excel-safe", home=home)
    assert done.returncode == 0, done.stderr
    assert "in.csv: 1 texts were saved in a wrong encoding and cannot be read again, the first in row 2" in done.stderr
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["'=1+1", "2", "-3"]
    assert [row["text"] for row in rows] == [misread, lost, "Туфли жмут"]
    assert [row["predicted_label"] for row in rows] == ["обувь", "", "обувь"]
    assert rows[1]["confidence"] == ""


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("id,review\n1,a\n", [], r"in.csv: no column 'text'; found id, review. Name it with --text-column"),
        ("text,confidence\na,1\n", [], r"in.csv: has the column(s) confidence already"),
        (None, [], "in.csv: cannot be read"),
    ],
)
def test_predict_says_what_is_wrong_without_a_traceback(
    command: Command, home: Path, tmp_path: Path, content: str | None, arguments: list[str], message: str
) -> None:
    if content is not None:
        (tmp_path / "in.csv").write_text(content, encoding="utf-8")
    done = command("predict", "in.csv", "out.csv", *arguments, home=home)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_predict_without_a_champion_says_how_to_get_one(command: Command, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")
    done = command("predict", "in.csv", "out.csv", home=tmp_path / "new")
    assert done.returncode == 1
    assert "no version of 'review-classifier' carries the alias 'champion'" in done.stderr
    assert "make run" in done.stderr


def test_leaderboard_as_table_and_as_json(command: Command, home: Path) -> None:
    board = json.loads(command("leaderboard", "--json", home=home).stdout)
    assert {row["candidate"] for row in board["rows"]} == {"logreg", "linear-svc"}
    (champion,) = [row for row in board["rows"] if "champion" in row["aliases"]]
    assert champion["version"] == board["champion"]
    assert champion["gate"] == "passed"
    assert 0 < champion["seconds_per_example_p95"] < 5
    table = command("leaderboard", home=home).stdout
    for row in board["rows"]:
        assert row["candidate"] in table
        assert f"{row['weighted_f1']:.3f} [{row['weighted_f1_low']:.3f}, {row['weighted_f1_high']:.3f}]" in table


def test_leaderboard_before_the_first_night_is_empty_and_says_so(command: Command, tmp_path: Path) -> None:
    done = command("leaderboard", home=tmp_path / "new")
    assert done.returncode == 0
    assert "no retrain yet" in done.stdout


def test_doctor_finds_nothing_missing_after_a_night(command: Command, home: Path) -> None:
    done = command("doctor", home=home)
    assert done.returncode == 0, done.stdout
    assert "missing" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    for subject in ("python", "packages", "taxonomy", "source", "gold", "votes", "candidates", "store", "registry", "serving"):
        assert f"{subject}: " in done.stdout


def test_doctor_names_what_is_missing(command: Command, tmp_path: Path) -> None:
    done = command("doctor", home=tmp_path / "new", REVIEWCLF_SOURCE="nowhere.csv", REVIEWCLF_TAXONOMY="none.yaml")
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing")]
    assert any("nowhere.csv" in line and "REVIEWCLF_SOURCE" in line for line in missing)
    assert any("none.yaml" in line and "REVIEWCLF_TAXONOMY" in line for line in missing)


def test_help_starts_without_heavy_packages() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from reviewclf.cli import app; "
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0; "
        "heavy = {'torch', 'transformers', 'mlflow', 'sklearn', 'pandas', 'great_expectations', 'airflow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
