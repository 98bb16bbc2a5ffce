"""Other tools read the tables of a store as they are: every table, and the guide's questions by its own code."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pytest
from deltalake import DeltaTable

from reviewclf.settings import load_settings
from reviewclf.store import Store
from tests.integration.test_stages import run_ingest, run_label

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "open-tables.md"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with reviews of this week and of another time, and refused ones."""
    folder = tmp_path_factory.mktemp("open")
    now = datetime.now(UTC)
    rows = [
        ("r1", "Деньги вернули быстро, товар так и не приехал", now - timedelta(days=2)),
        ("r2", "Продавец не отвечает вторую неделю, спор открыт", now - timedelta(days=3)),
        ("r3", "Доставка шла месяц, посылку потеряли", now - timedelta(days=30)),
        ("r4", "Сапоги жмут, но кожа мягкая", now - timedelta(days=1)),
        ("r5", "", now),
    ]
    pd.DataFrame(rows, columns=["review_id", "text", "created_at"]).to_csv(folder / "reviews.csv", index=False)
    votes = [("r1", "anna"), ("r1", "boris"), ("r2", "anna"), ("r3", "anna")]
    frame = pd.DataFrame(votes, columns=["review_id", "annotator"]).assign(label="нет товара", confidence=0.9)
    frame.loc[len(frame)] = ("r4", "anna", "обувь", 0.9)
    frame.to_csv(folder / "votes.csv", index=False)
    (folder / "gold.csv").write_text("text,label\nТелефон греется,электроника\n")
    files = {name: str(folder / f"{name}.csv") for name in ("votes", "gold")}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = load_settings(_env_file=None, home=folder / "var", source=str(folder / "reviews.csv"), **files)
        run_ingest(settings)
        run_label(settings)
    return folder


def test_questions_of_the_guide_have_one_answer_in_all_tools(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), found)  # noqa: S102
    answers = [found["by_pandas"], found["by_duckdb"], found["by_polars"].to_pandas()]
    for answer in answers:
        rows = answer.sort_values("review_id")
        assert rows["review_id"].tolist() == ["r1", "r2"]
        assert [re.sub(r"keywords@\w+, |, keywords@\w+", "", who) for who in rows["who"]] == ["anna, boris", "anna"]
        assert rows["confidence"].between(0.5, 1).all()
    assert found["refused_by_pandas"].to_dict() == {("reviews.csv", "text_missing"): 1}
    assert found["refused_by_duckdb"].to_numpy().tolist() == [["reviews.csv", "text_missing", 1]]
    assert found["refused_by_polars"].rows() == [("reviews.csv", "text_missing", 1)]


def test_every_table_has_as_many_rows_in_other_tools(home: Path) -> None:
    store = Store(str(home / "var" / "store"))
    snapshot = store.snapshot()
    assert {"raw", "clean", "quarantine", "seen", "votes", "labels"} <= snapshot.tables.keys()
    check_counts(store)
    ((_, published),) = store.manifests("publish")
    counts = {name: store.delta.rows(name, held.version) for name, held in snapshot.tables.items()}
    assert (counts["clean"], counts["quarantine"]) == (published.counts["clean"], published.counts["quarantined"])
    assert counts["raw"] + counts["quarantine"] >= published.counts["rows_in"]
    ((_, aggregated),) = store.manifests("aggregate")
    assert (counts["votes"], counts["labels"]) == (aggregated.counts["new_votes"], aggregated.counts["labels"])


def check_counts(store: Store) -> None:
    """`deltalake`, DuckDB and Polars find the rows that the store has."""
    snapshot = store.snapshot()
    for name, held in snapshot.tables.items():
        expected = sum(part.num_rows for part in store.iter_tables(snapshot.keys(name)))
        table = DeltaTable(store.delta.uri(name), version=held.version)
        files = table.file_uris()
        by_duckdb = duckdb.sql(f"SELECT count(*) FROM read_parquet({files})").fetchall() if files else [(0,)]  # noqa: S608
        by_polars = pl.scan_delta(store.delta.uri(name), version=held.version).select(pl.len()).collect().item()
        assert (table.to_pyarrow_table().num_rows, by_duckdb, by_polars) == (expected, [(expected,)], expected), name
