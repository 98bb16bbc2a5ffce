"""Secrets of the platform: drawn by chance, kept, and shown to nobody."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from infra import make_secrets


def values(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_every_secret_is_made_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    make_secrets.main(path)
    made = values(path)
    assert made.keys() == {*make_secrets.SECRETS, "PROMETHEUS_BASIC"}
    assert all(len(value) >= 20 for value in made.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [".env"]


def test_two_platforms_share_no_secret(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_secrets.main(tmp_path / name)
    assert not set(values(tmp_path / "a").values()) & set(values(tmp_path / "b").values())


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    make_secrets.main(path)
    before = path.read_bytes()
    make_secrets.main(path)
    assert path.read_bytes() == before


def test_secret_that_a_release_adds_is_added_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nREVIEWCLF_BIND=0.0.0.0\nREDIS_PASSWORD=kept\nMLFLOW_ADMIN_PASSWORD=\n")
    path.chmod(0o644)
    make_secrets.main(path)
    made = values(path)
    assert made["REDIS_PASSWORD"] == "kept"
    assert made["REVIEWCLF_BIND"] == "0.0.0.0"  # noqa: S104
    assert len(made["MLFLOW_ADMIN_PASSWORD"]) >= 20, "an empty one is none"
    assert path.read_text().startswith("# mine\n")
    assert path.read_text().count("MLFLOW_ADMIN_PASSWORD") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_header_follows_its_password(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    make_secrets.main(path)
    path.write_text(path.read_text().replace(values(path)["PROMETHEUS_PASSWORD"], "another"))
    make_secrets.main(path)
    assert base64.b64decode(values(path)["PROMETHEUS_BASIC"]) == b"metrics:another"


def test_names_are_shown_and_values_never(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".env"
    make_secrets.main(path)
    shown = capsys.readouterr().out
    assert "REDIS_PASSWORD" in shown
    assert not [value for value in values(path).values() if value in shown]


def test_values_need_no_quotes_anywhere(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    make_secrets.main(path)
    letters = set("".join(values(path).values()))
    assert all(letter.isalnum() or letter in "-_=+/" for letter in letters)
    addressed = {name: value for name, value in values(path).items() if name.endswith("_PASSWORD")}
    assert all(letter.isalnum() or letter in "-_" for letter in "".join(addressed.values()))
