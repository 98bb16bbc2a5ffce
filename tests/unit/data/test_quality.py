"""Data checks: bad rows go to quarantine, bad batches stop the run, the log stays readable."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

import pandas as pd
import pytest

from reviewclf import tables
from reviewclf.errors import QualityError
from reviewclf.settings import QualitySettings

LIMITS = QualitySettings()
RUSSIAN = [f"Платье номер {number}, сидит хорошо" for number in range(40)]


def raw(texts: list[str | None], **columns: object) -> pd.DataFrame:
    frame = pd.DataFrame({"text": texts}).assign(
        review_id=[str(number) for number in range(len(texts))],
        source="reviews.csv",
        created_at=pd.Timestamp("2026-01-02T03:04:05Z"),
        extra="{}",
        row_number=range(1, len(texts) + 1),
        **columns,  # type: ignore[arg-type]
    )
    import pyarrow as pa

    return pa.Table.from_pandas(frame[tables.RAW_SCHEMA.names], schema=tables.RAW_SCHEMA).to_pandas()


@pytest.fixture
def check(tmp_path: Path):  # type: ignore[no-untyped-def]
    from reviewclf.data.quality import check_table

    def run(
        frame: pd.DataFrame,
        table: str = "raw",
        *,
        limits: QualitySettings = LIMITS,
        history: tuple[int, ...] = (),
        name: str = "run",
        others: int = 0,
    ):  # type: ignore[no-untyped-def]
        docs = tmp_path / "доки с пробелом"
        return check_table(table, frame, limits, history=history, docs=docs, run_name=name, others=others)  # type: ignore[arg-type]

    return run


def broken(report) -> list[str]:  # type: ignore[no-untyped-def]
    names = [rule.name for rule in report.rules if not rule.passed]
    assert report.passed == (not names)
    return names


def test_good_batch_passes_and_its_page_lists_every_rule(check) -> None:  # type: ignore[no-untyped-def]
    report = check(raw(RUSSIAN))
    assert broken(report) == []
    assert report.failed_rows == ()
    page = Path(unquote(urlparse(report.docs).path)).read_text(encoding="utf-8")
    for rule in report.rules:
        assert rule.name in page


def test_rows_that_break_a_rule_go_to_quarantine_without_stopping_the_run(check) -> None:  # type: ignore[no-untyped-def]
    texts = [*RUSSIAN, None, "  \t ", "а" * 10_001]
    report = check(raw(texts))
    assert broken(report) == []
    assert [tuple(row) for row in report.failed_rows] == [(40, "text_missing"), (41, "text_blank"), (42, "text_too_long")]


def test_parts_of_a_table_are_told_as_one(check) -> None:  # type: ignore[no-untyped-def]
    from reviewclf.data.quality import merged

    first = check(raw([*RUSSIAN, None]), history=(80, 80, 80), others=42, name="run-1")
    second = check(raw(["  ", *RUSSIAN, None]), history=(80, 80, 80), others=41, name="run-2")
    whole = merged([first, second])
    assert (broken(whole), whole.rows) == ([], 83)
    assert [tuple(row) for row in whole.failed_rows] == [(40, "text_missing"), (41, "text_blank"), (82, "text_missing")]
    assert {rule.name: rule.failed_rows for rule in whole.rules}["text_missing"] == 2
    # Each part alone would be far too few rows; of both together there are ten times too many.
    assert broken(check(raw(RUSSIAN), history=(900, 900, 900), name="alone")) == ["volume"]
    bad = merged([first, check(raw([None] * 42), history=(80, 80, 80), others=41, name="run-3")])
    assert "text_missing" in broken(bad)
    assert bad.docs != first.docs
    flood = check(raw(RUSSIAN), history=(80, 80, 80), others=10_000, name="flood")
    assert broken(flood) == ["volume"]
    assert "of which 10000 are in other parts" in next(rule.limit for rule in flood.rules if rule.name == "volume")


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ([*RUSSIAN[:20], *([None] * 20)], "text_missing"),
        ([*RUSSIAN[:20], *(f"Nice dress {number}" for number in range(20))], "not_russian"),
        (["Всё отлично"] * 39 + ["Спасибо"], "text_repeats"),
    ],
)
def test_batch_that_breaks_a_rule_stops_with_rule_limit_and_setting(check, texts: list[str | None], rule: str) -> None:  # type: ignore[no-untyped-def]
    from reviewclf.data.quality import raise_for

    report = check(raw(texts))
    assert broken(report) == [rule]
    with pytest.raises(QualityError, match=rf"table raw, 40 rows.*{rule}.*limit.*REVIEWCLF_QUALITY__"):
        raise_for(report)


def test_missing_or_strange_column_stops_the_run(check) -> None:  # type: ignore[no-untyped-def]
    assert "columns" in broken(check(raw(RUSSIAN).assign(price=1.0)))


def test_wrong_type_stops_the_run(check) -> None:  # type: ignore[no-untyped-def]
    frame = raw(RUSSIAN)
    assert broken(check(frame.assign(row_number=frame["row_number"].astype("float64")))) == ["type_of_row_number"]


@pytest.mark.parametrize(("history", "expected"), [((1000, 1000, 1000), ["volume"]), ((40, 50, 30), []), ((1000, 1000), [])])
def test_volume_is_judged_against_the_last_runs(check, history: tuple[int, ...], expected: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert broken(check(raw(RUSSIAN), history=history)) == expected


def test_repeated_text_among_clean_rows_stops_the_run(check) -> None:  # type: ignore[no-untyped-def]
    from reviewclf.text import text_hash

    frame = raw(RUSSIAN).assign(text_clean=RUSSIAN, text_hash=[text_hash(text) for text in RUSSIAN], dt="2026-01-02")
    frame = frame[tables.CLEAN_SCHEMA.names]
    assert broken(check(frame, "clean")) == []
    frame.loc[1, "text_hash"] = frame.loc[0, "text_hash"]
    assert broken(check(frame, "clean", name="again")) == ["text_hash_repeats"]


def test_night_without_new_rows_passes(check) -> None:  # type: ignore[no-untyped-def]
    report = check(raw([]))
    assert (report.passed, report.rows, report.docs) == (True, 0, None)


def test_repeated_run_keeps_one_entry_and_other_runs_stay(check, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(raw(RUSSIAN), name="night-1")
    check(raw(RUSSIAN), name="night-2")
    check(raw(RUSSIAN), name="night-1")
    pages = sorted(path.parent.parent.name for path in tmp_path.rglob("validations/raw/*/*/*.html"))
    assert pages == ["night-1", "night-2"]
    index = next(tmp_path.rglob("local_site/index.html")).read_text(encoding="utf-8")
    assert "night-1" in index
    assert "night-2" in index


def test_nothing_is_printed(check, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    check(raw(RUSSIAN))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert [record.message for record in caplog.records if record.name.startswith("great_expectations")] == []


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_half_written_files_of_the_data_docs_stop_no_later_run(check, tmp_path: Path, kept: float) -> None:  # type: ignore[no-untyped-def]
    check(raw(RUSSIAN), name="killed")
    check(raw(RUSSIAN), name="whole")
    project = tmp_path / "доки с пробелом" / "gx"
    (result,) = (project / "uncommitted" / "validations" / "raw" / "killed").rglob("*.json")
    settings = [project / "great_expectations.yml", project / "uncommitted" / "config_variables.yml"]
    parts = [project / folder / "raw.json" for folder in ("expectations", "validation_definitions", "checkpoints")]
    for path in (*settings, *parts, result):
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
    report = check(raw(RUSSIAN), name="after")
    assert broken(report) == []
    pages = project / "uncommitted" / "data_docs" / "local_site" / "validations" / "raw"
    assert {path.name for path in pages.iterdir()} >= {"whole", "after"}
