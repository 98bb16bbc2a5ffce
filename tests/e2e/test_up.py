"""`reviewclf up --once` as a user runs it: real Airflow, real MLflow, the bundled sample, an awkward folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "reviews_ingest": ("ingest", "validate_raw", "clean", "validate_clean", "publish"),
    "reviews_label": ("select", "shards", "annotate", "aggregate"),
    "reviews_retrain": ("build_dataset", "candidates", "train", "evaluate", "gate", "promote"),
    "reviews_score": ("select", "shards", "score", "publish", "monitor", "alarm"),
}
LIMIT_SECONDS = 420


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("мои отзывы") / "за ночь"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module", autouse=True)
def usual_ports_are_taken() -> Iterator[None]:
    taken = []
    for port in (8080, 5000):
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
            server.listen()
        except OSError:  # taken by somebody else: just as good
            server.close()
            continue
        taken.append(server)
    yield
    for server in taken:
        server.close()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "reviewclf.cli", *arguments]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REVIEWCLF_", "MLFLOW_", "AIRFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


def reviewclf(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def servers_of(folder: Path) -> list[str]:
    """Command lines of servers and tasks that belong to the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def state_of(said: str, dag_id: str, task: str) -> list[str]:
    lines = [line.split() for line in said.splitlines() if line.startswith(f"{dag_id} ")]
    shown = {"done", "skipped", "failed", "retry", "not"}
    return [next(word for word in words[2:] if word in shown) for words in lines if words[1] == task]


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """A folder in which a first run was killed in the middle of its work."""
    process = subprocess.Popen(
        command("up", "--once"), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("reviews_ingest"):
            break
    else:
        raise AssertionError("the run ended before its first task was done:\n" + "".join(seen))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert servers_of(folder), "servers should have outlived their supervisor"
    return folder


@pytest.fixture(scope="module")
def first(killed: Path) -> tuple[Path, str]:
    answer = reviewclf(killed, "up", "--once")
    assert answer.returncode == 0, answer.stdout
    return killed, answer.stdout


def champion_of(folder: Path) -> str:
    """The champion's version, read straight from the files: no server runs any more."""
    answer = reviewclf(folder, "leaderboard", "--json")
    assert answer.returncode == 0, answer.stdout
    version = json.loads(answer.stdout[answer.stdout.index("{") :])["champion"]
    assert version
    return str(version)


def test_after_a_killed_run_reviews_become_a_champion(first: tuple[Path, str]) -> None:
    _, said = first
    assert "Ended " in said
    assert "an earlier, killed run had left behind" in said
    for dag_id, tasks in STAGES.items():
        for task in tasks:
            states = state_of(said, dag_id, task)
            assert states, f"{dag_id}.{task} is not told:\n{said}"
            # What the killed run had published already is not new any more.
            assert set(states) <= {"done", "skipped"}, said
    assert state_of(said, "reviews_retrain", "promote") == ["done"]
    assert len(state_of(said, "reviews_retrain", "train")) >= 2


def test_taken_ports_are_avoided_and_addresses_printed(first: tuple[Path, str]) -> None:
    _, said = first
    assert "Port 8080 is taken" in said
    assert "Port 5000 is taken" in said
    assert "http://127.0.0.1:" in said


def test_nothing_is_left_running_and_keys_stay_private(first: tuple[Path, str]) -> None:
    folder, _ = first
    deadline = time.monotonic() + 5
    while servers_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert servers_of(folder) == []
    for name in ("secrets.json", "passwords.json"):
        assert stat.S_IMODE((folder / "var" / "airflow" / name).stat().st_mode) == 0o600


def test_second_run_promotes_nothing_new(first: tuple[Path, str]) -> None:
    folder, _ = first
    before = champion_of(folder)
    answer = reviewclf(folder, "up", "--once")
    assert answer.returncode == 0, answer.stdout
    for dag_id, task in (("reviews_ingest", "publish"), ("reviews_label", "aggregate"), ("reviews_retrain", "promote")):
        assert state_of(answer.stdout, dag_id, task) == ["skipped"], answer.stdout
    assert champion_of(folder) == before


def test_source_without_texts_ends_the_run_at_once_and_says_what_to_do(first: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = first
    source = tmp_path / "reviews.csv"
    source.write_text("id,body\n1,Платье село после стирки\n", encoding="utf-8")
    answer = reviewclf(folder, "up", "--once", REVIEWCLF_SOURCE=str(source), REVIEWCLF_HOME=str(tmp_path / "дом"))
    assert answer.returncode == 1, answer.stdout
    assert state_of(answer.stdout, "reviews_ingest", "ingest") == ["failed"], answer.stdout
    assert "DataContractError" in answer.stdout
    assert "reviews.csv" in answer.stdout
    assert "Traceback" not in answer.stdout
    assert "/tasks/ingest" in answer.stdout
    assert servers_of(folder) == []
