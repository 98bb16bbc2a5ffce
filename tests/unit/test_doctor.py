"""`reviewclf doctor`: short lines, everything on demand, and what is missing named with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reviewclf.cli import app


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"HOME": "var", "SOURCE": "nowhere.csv", "GOLD": "", "SERVING__HOST": "reviews"}.items():
        monkeypatch.setenv(f"REVIEWCLF_{name}", value)


def doctor(*options: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *options])


@pytest.mark.usefixtures("broken")
def test_lines_are_short_and_name_what_is_missing() -> None:
    done = doctor()
    lines = done.stdout.splitlines()
    assert done.exit_code == 1
    assert max(map(len, lines)) <= 120
    assert "missing source: nowhere.csv: there is no such file or folder; check REVIEWCLF_SOURCE" in lines
    assert [line.split()[1] for line in lines if line.startswith("note")][:2] == ["gold:", "candidates:"]


@pytest.mark.usefixtures("broken")
def test_details_and_json_leave_nothing_out() -> None:
    details = doctor("--details").stdout
    assert "e5-small: encoder intfloat/multilingual-e5-small" in details
    assert "or let REVIEWCLF_SERVING__HOST be 127.0.0.1" in details
    found = {finding["subject"]: finding for finding in json.loads(doctor("--json").stdout)}
    assert found["source"]["mark"] == "missing"
    assert len(found["candidates"]["text"].splitlines()) == 1 + 5


def test_wrong_setting_is_missing_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_SEED", "many")
    done = doctor()
    assert done.exit_code == 1
    assert "REVIEWCLF_SEED='many'" in done.stdout
