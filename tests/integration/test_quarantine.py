"""Quarantine is a place, not a grave: what was refused can be seen, and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reviewclf.settings import Settings
from reviewclf.stages.quarantine import refused_rows, replay
from reviewclf.store import Store
from tests.integration.test_living_sources import Nights, counted, reviews
from tests.stores import killed_after


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def write_lines(nights: Nights, *lines: str, name: str = "reviews.csv") -> None:
    good = "".join(f"{key};{text}\n" for key, text in reviews(0, 60))
    (nights.source / name).write_text(f"review_id;text\n{good}" + "".join(f"{line}\n" for line in lines), "utf-8")


def test_rows_that_pass_now_leave_quarantine_and_the_others_stay_as_they_came(nights: Nights) -> None:
    write_lines(nights, '61;"Плед\\"уютный\\" и мягкий; советую"', "62;Кружка;треснула;вчера")
    assert counted(nights.live(ingest={"quoting": "standard"}), "clean", "quarantined") == (60, 2)
    before = refused_rows(nights.settings())
    assert replay(nights.settings(ingest={"quoting": "standard"})).counts["left"] == 2
    assert refused_rows(nights.settings()) == before

    settings = nights.settings(ingest={"quoting": "backslash"})
    done = replay(settings)
    assert counted(done, "rows_in", "clean", "duplicates", "known", "left") == (2, 1, 0, 0, 1)
    assert done.details["reasons"] == {"too_many_fields": 1}
    assert nights.texts()["61"] == 'Плед"уютный" и мягкий; советую'
    (raw,) = nights.tables()["raw"].query("review_id == '61'").to_dict("records")
    assert (raw["source"], raw["row_number"]) == ("reviews.csv", 61)
    assert refused_rows(settings) == [row for row in before if row["payload"].startswith("62")]
    # Again it changes nothing, and the file brings nothing that was taken in already.
    version = Store(settings.store_uri).snapshot().version
    assert counted(replay(settings), "rows_in", "clean", "left") == (1, 0, 1)
    assert Store(settings.store_uri).snapshot().version == version
    night = nights.live(ingest={"quoting": "backslash"})
    assert counted(night, "known", "clean", "duplicates") == (62, 0, 0)


@pytest.mark.case(7)
def test_changed_settings_read_refused_rows_again_by_themselves(nights: Nights) -> None:
    write_lines(nights, '61;"Плед \\"уютный\\"; мягкий"', '62;"Кружка \\"Мечта\\"; треснула"')
    nights.live(ingest={"quoting": "standard"})
    assert counted(nights.live(ingest={"quoting": "backslash"}), "known", "clean") == (60, 2)
    # What stands in quarantine of them is known now.
    assert counted(replay(nights.settings(ingest={"quoting": "backslash"})), "known", "left") == (2, 0)
    assert refused_rows(nights.settings()) == []


def test_row_refused_by_a_limit_is_taken_in_under_another_one(nights: Nights) -> None:
    long = "Очень длинный отзыв о пледе. " * 40
    nights.write([*reviews(0, 60), ("61", long), ("62", ""), ("63", "👍")])
    assert nights.live(quality={"max_text_length": 1000}).details["reasons"] == {
        "text_missing": 1,
        "text_empty_after_cleaning": 1,
        "text_too_long": 1,
    }
    done = replay(nights.settings(), reason="text_too_long")
    assert counted(done, "rows_in", "clean", "left") == (1, 1, 0)
    assert nights.texts()["61"] == long
    assert counted(replay(nights.settings()), "rows_in", "left") == (2, 2)


def test_text_that_was_shortened_since_stays_when_the_refused_one_is_read_again(nights: Nights) -> None:
    long, longer = "Плед мягкий и тёплый. " * 40, "Юбка длинная и пышная. " * 40
    nights.write([("60", "Юбка хорошая"), ("61", long)])
    nights.live(quality={"max_text_length": 500})
    nights.write([("60", longer), ("61", "Плед мягкий")])
    nights.live(quality={"max_text_length": 500})
    assert counted(replay(nights.settings()), "clean", "superseded", "left") == (2, 2, 0)
    assert nights.texts() == {"60": longer, "61": "Плед мягкий"}
    assert set(nights.tables()["history"]["text"]) == {long, "Юбка хорошая"}


def test_replayed_copy_is_a_duplicate_with_its_own_row_number(nights: Nights) -> None:
    nights.write([("0", "Плед мягкий " * 60), *reviews(1, 60)], "a.csv")
    nights.live()
    nights.write([*reviews(100, 160), ("161", "плед мягкий " * 60)], "b.csv")
    nights.live(quality={"max_text_length": 300})
    assert counted(replay(nights.settings()), "clean", "duplicates") == (0, 1)
    (copy,) = nights.tables()["duplicates"].to_dict("records")
    assert (copy["review_id"], copy["row_number"], copy["duplicate_of"]) == ("161", 61, "0")


def test_rows_refused_by_earlier_versions_are_read_by_the_layout_of_their_file(nights: Nights) -> None:
    write_lines(nights)
    nights.live()
    store = Store(nights.settings().store_uri)
    base = store.snapshot()
    import pyarrow as pa

    rows = {"review_id": [None], "row_number": [61], "reason": ["bad_created_at: 'вчера'"], "payload": ["61;Плед мягкий"]}
    part = pa.table({**rows, "source": ["reviews.csv"]})
    store.commit(base, key="earlier", append={"quarantine": [store.put_table(part)]})
    assert counted(replay(nights.settings()), "clean", "left") == (1, 0)
    assert nights.texts()["61"] == "Плед мягкий"


def test_replay_that_is_killed_at_any_write_ends_like_an_undisturbed_one(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(nights, '61;"Плед \\"уютный\\"; мягкий"', '62;"Кружка \\"Мечта\\"; треснула"', "63;a;b")
    nights.live(ingest={"quoting": "standard"})
    settings: Settings = nights.settings(ingest={"quoting": "backslash"})
    for survived in range(0, 20, 3):
        killed_after(survived, lambda: replay(settings))
    replay(settings)
    assert {nights.texts()[key] for key in ("61", "62")} == {'Плед "уютный"; мягкий', 'Кружка "Мечта"; треснула'}
    assert [row["payload"] for row in refused_rows(settings)] == ["63;a;b"]


def test_commands_show_what_was_refused_and_read_it_again(
    nights: Nights, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reviewclf import cli

    def run(*arguments: str, **environment: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("REVIEWCLF_HOME", str(nights.settings().home)), ("REVIEWCLF_SOURCE", str(nights.source))):
                patch.setenv(name, value)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr("sys.argv", ["reviewclf", "quarantine", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    write_lines(nights, '61;"Плед \\"уютный\\"; мягкий"', "62;Кружка;треснула;вчера")
    nights.live(ingest={"quoting": "standard"})
    shown = run("list")
    assert "malformed_quotes" in shown
    assert "62;Кружка;треснула" in shown
    assert "malformed_quotes" not in run("list", "--reason", "too_many_fields")
    assert "nothing is in quarantine like that" in run("list", "--source", "b.csv")
    rows: list[dict[str, Any]] = json.loads(run("list", "--json"))
    assert [row["row_number"] for row in rows] == [61, 62]
    said = run("replay", REVIEWCLF_INGEST__QUOTING="backslash")
    assert "2 rows read again: 1 new reviews, 0 duplicates, 0 known already, 1 still refused" in said
    assert "too_many_fields: 1" in said
