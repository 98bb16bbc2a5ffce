"""The local supervisor's parts: processes that end wholly, locks, ports, keys, what it says about tasks."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from reviewclf.local.airflow import airflow_environment, child_environment, load_keys
from reviewclf.local.mlflow import server_command, server_environment
from reviewclf.local.processes import LocalError, Processes, free_port, locked
from reviewclf.local.progress import log_lines, summary
from reviewclf.orchestration.messages import failure_summary

ROOT = Path(__file__).resolve().parents[3]

# A server that starts a worker, which (as Airflow's task processes do) leads a process group of its own.
SERVER = """
import os, pathlib, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
pathlib.Path(sys.argv[1]).write_text(str(worker.pid))
time.sleep(600)
"""


def processes_in(folder: Path) -> Processes:
    return Processes(home=folder, logs=folder / "logs")


def until(path: Path) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not runs(pid)


@contextmanager
def listening(host: str) -> Iterator[int]:
    with socket.socket() as server:
        server.bind((host, 0))
        server.listen()
        yield server.getsockname()[1]


def test_stop_ends_what_the_children_started_too(tmp_path: Path) -> None:
    processes = processes_in(tmp_path)
    child = processes.start("server", [sys.executable, "-c", SERVER, str(tmp_path / "worker")], env=os.environ)
    worker = int(until(tmp_path / "worker"))

    processes.stop(grace=2)

    assert child.process.returncode is not None
    assert gone(worker)


def test_child_that_ignores_sigterm_is_ended_by_force(tmp_path: Path) -> None:
    stubborn = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    stubborn += "pathlib.Path(sys.argv[1]).write_text('1'); time.sleep(600)"
    processes = processes_in(tmp_path)
    child = processes.start("stubborn", [sys.executable, "-c", stubborn, str(tmp_path / "up")], env=os.environ)
    until(tmp_path / "up")

    processes.stop(grace=0.5)

    assert child.process.returncode == -signal.SIGKILL


def supervisor_killed_in(folder: Path) -> tuple[int, int]:
    """Let a supervisor start a server and be killed; the ids of the server and its worker, which live on."""
    script = f"""
import os, sys, time
from pathlib import Path
from reviewclf.local.processes import Processes
processes = Processes(home=Path(sys.argv[1]), logs=Path(sys.argv[1]) / "logs")
child = processes.start("server", [sys.executable, "-c", {SERVER!r}, sys.argv[1] + "/worker"], env=os.environ)
Path(sys.argv[1], "server").write_text(str(child.process.pid))
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT)
    worker = int(until(folder / "worker"))
    server = int(until(folder / "server"))
    supervisor.kill()
    supervisor.wait()
    assert runs(server)
    assert runs(worker)
    return server, worker


def test_next_start_ends_what_a_killed_supervisor_left_behind(tmp_path: Path) -> None:
    server, worker = supervisor_killed_in(tmp_path)
    assert processes_in(tmp_path).end_all(grace=2) == 2
    assert gone(server)
    assert gone(worker)
    assert processes_in(tmp_path).end_all() == 0


def test_orphaned_worker_is_ended_although_its_server_is_gone(tmp_path: Path) -> None:
    server, worker = supervisor_killed_in(tmp_path)
    os.kill(server, signal.SIGKILL)
    assert gone(server)
    assert processes_in(tmp_path).end_all(grace=2) == 1
    assert gone(worker)


@pytest.fixture
def unmarked(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A server and its worker as version 0.1.0 started them: without a mark, in a session of their own."""
    command = [sys.executable, "-c", SERVER, str(tmp_path / "worker")]
    with subprocess.Popen(command, start_new_session=True) as server:
        worker = int(until(tmp_path / "worker"))
        yield server.pid, worker
        for pid in (server.pid, worker):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def record(folder: Path, server: int, *, started: float) -> Path:
    (folder / "run").mkdir()
    path = folder / "run" / "children.json"
    path.write_text(json.dumps([{"name": "scheduler", "pid": server, "started": started}]))
    return path


@pytest.mark.parametrize("server_is_gone", [False, True])
def test_what_a_killed_supervisor_of_version_0_1_left_behind_is_ended(
    tmp_path: Path, unmarked: tuple[int, int], server_is_gone: bool
) -> None:
    server, worker = unmarked
    path = record(tmp_path, server, started=psutil.Process(server).create_time())
    if server_is_gone:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    assert processes_in(tmp_path).end_all(grace=2) == 2 - server_is_gone
    assert gone(worker)
    assert gone(server)
    assert not path.exists()


@pytest.mark.parametrize("earlier", [60.0, 10 * 365 * 86_400.0])
def test_process_that_was_given_the_number_of_a_recorded_one_is_left_alone(
    tmp_path: Path, unmarked: tuple[int, int], earlier: float
) -> None:
    server, worker = unmarked
    record(tmp_path, server, started=psutil.Process(server).create_time() - earlier)
    if earlier > time.time() - psutil.boot_time():  # recorded before the machine was started anew: also without the leader
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    assert processes_in(tmp_path).end_all(grace=0.2) == 0
    assert runs(worker)


def test_servers_of_another_home_are_left_alone(tmp_path: Path) -> None:
    other = processes_in(tmp_path / "other")
    child = other.start("server", [sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ)
    try:
        assert processes_in(tmp_path).end_all(grace=0.2) == 0
        assert child.process.poll() is None
    finally:
        other.stop(grace=2)


def test_supervisor_that_was_started_by_a_task_of_its_home_does_not_end_itself(tmp_path: Path) -> None:
    script = "import pathlib, sys; from reviewclf.local.processes import Processes; home = pathlib.Path(sys.argv[1]); "
    script += "Processes(home=home, logs=home).end_all(grace=0.2)"
    marked = {**os.environ, "STARTED_BY_REVIEWCLF_IN": str(tmp_path.resolve())}
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=marked, check=False).returncode == 0


def test_process_that_gives_itself_a_title_is_ended_too(tmp_path: Path) -> None:
    titled = "import pathlib, setproctitle, sys, time; setproctitle.setproctitle('airflow scheduler' * 50); "
    titled += "pathlib.Path(sys.argv[1]).write_text('1'); time.sleep(600)"
    processes = processes_in(tmp_path)
    processes.start("titled", [sys.executable, "-c", titled, str(tmp_path / "up")], env=os.environ)
    until(tmp_path / "up")
    assert processes_in(tmp_path).end_all(grace=2) == 1


def test_death_of_a_child_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    processes = processes_in(tmp_path)
    child = processes.start("scheduler", [sys.executable, "-c", "print('no space left'); raise SystemExit(3)"], env={})
    child.process.wait()
    with pytest.raises(LocalError, match=r"scheduler ended by itself \(exit code 3\)(.|\n)*no space left"):
        processes.check()
    processes.stop()


def test_second_supervisor_of_one_home_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    with locked(lock):
        try_it = "import sys; from pathlib import Path; from reviewclf.local.processes import locked\n"
        try_it += "with locked(Path(sys.argv[1])): pass"
        second = subprocess.run(
            [sys.executable, "-c", try_it, str(lock)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert f"already running in {tmp_path} (process {os.getpid()})" in second.stderr
    with locked(lock):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what others may do
def test_taken_port_is_avoided(host: str) -> None:
    with listening(host) as taken:
        port = free_port(taken)
        assert port != taken
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_free_port_is_kept_and_one_promised_to_another_server_is_not() -> None:
    with listening("127.0.0.1") as taken:
        pass
    assert free_port(taken) == taken
    assert free_port(taken, avoid=[taken]) != taken


def test_keys_are_made_once_and_only_the_user_can_read_them(tmp_path: Path) -> None:
    keys, new = load_keys(tmp_path)
    again, new_again = load_keys(tmp_path)
    assert (new, new_again) == (True, False)
    assert keys == again
    assert len(set(keys.values())) == 4
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert json.loads((tmp_path / "passwords.json").read_text()) == {"admin": keys["password"]}


def test_damaged_keys_are_made_anew(tmp_path: Path) -> None:
    load_keys(tmp_path)
    (tmp_path / "secrets.json").write_text('{"password": ')
    _, new = load_keys(tmp_path)
    assert new


def test_everything_listens_on_this_machine_only(tmp_path: Path) -> None:
    keys, _ = load_keys(tmp_path)
    env = airflow_environment(home=tmp_path, dags=ROOT / "dags", plugins=ROOT / "plugins", port=8123, keys=keys)
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8123/execution/"
    assert all(isinstance(value, str) for value in env.values())
    command = server_command(tmp_path, port=5123)
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_artifacts_of_a_home_with_spaces_and_cyrillic_are_addressed_as_a_valid_uri() -> None:
    command = server_command(Path("/мой дом/mlflow"), port=5000)
    root = command[command.index("--default-artifact-root") + 1]
    assert root.isascii()
    assert " " not in root
    assert root.startswith("file:///")


def test_children_find_the_servers_past_a_proxy_and_the_server_does_not_follow_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    env = child_environment(home=tmp_path, tracking_uri="http://127.0.0.1:5123")
    assert env["NO_PROXY"].split(",") == ["intranet", "127.0.0.1", "localhost"]
    assert env["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5123"
    assert env["REVIEWCLF_HOME"] == str(tmp_path)
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert "MLFLOW_TRACKING_URI" not in server_environment(env)


def test_summary_of_a_manifest_shows_its_counts() -> None:
    assert summary({"stage": "clean", "counts": {"clean": 897, "quarantined": 3}}) == "clean=897 quarantined=3"
    assert summary({"counts": {}, "details": {"passed": True, "report": {"rules": []}}}) == "passed=True"
    assert summary(["logreg", "linear-svc"]) == "logreg, linear-svc"
    assert summary([{"part": 0}, {"part": 1}]) == "2 parts"
    assert summary(None) == ""


def test_log_is_told_without_airflows_own_messages_and_frames(tmp_path: Path) -> None:
    log = tmp_path / "attempt=1.log"
    entries = [
        {"event": "::group::Pre Execute", "logger": "task"},
        {"event": "Filling up the DagBag", "logger": "airflow.dag_processing.dagbag.BundleDagBag"},
        {"event": "read 900 rows", "logger": "reviewclf.stages.ingest"},
        {
            "event": "Task failed with exception",
            "logger": "task",
            "error_detail": [{"exc_type": "AirflowFailException", "exc_value": "no column text", "frames": [{}] * 9}],
        },
    ]
    log.write_text("\n".join(json.dumps(entry) for entry in entries) + "\nnot JSON\n")
    assert log_lines(log) == "read 900 rows\nAirflowFailException: no column text\nnot JSON"
    assert log_lines(log, 1) == "not JSON"


def test_failure_summary_names_task_run_attempt_and_reason() -> None:
    ti = SimpleNamespace(
        dag_id="reviews_retrain", task_id="train", map_index=1, run_id="manual", try_number=2, log_url="http://log"
    )
    said = failure_summary({"ti": ti, "exception": ValueError("singular matrix")})
    assert said == ("FAILED reviews_retrain.train[1], run manual, attempt 2: ValueError: singular matrix\nLog: http://log")


def test_failure_summary_of_a_whole_run_gives_its_reason() -> None:
    run = SimpleNamespace(dag_id="reviews_label", run_id="scheduled")
    said = failure_summary({"dag_run": run, "reason": "timed_out"})
    assert said == "FAILED reviews_label, run scheduled: timed_out"
