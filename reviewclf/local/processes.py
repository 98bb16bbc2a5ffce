"""Child processes that start quietly, stop wholly, and never outlive their supervisor unnoticed.

Each child leads a session of its own, so that everything it starts (Airflow forks workers and tasks, each task in its
own process group) can be found by the session's id. The ids and start times are kept in a file: a supervisor that was
killed leaves its children behind, and the next one ends exactly those.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from reviewclf.errors import ReviewclfError

# Two clocks are compared: the kernel's start time and the same value after a round trip through JSON.
START_TIME_TOLERANCE = 0.05


class LocalError(ReviewclfError):
    """The local servers cannot be started, or a run they were asked for failed."""


@dataclass(frozen=True)
class Child:
    """A process started here, the leader of its session."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """The children of one supervisor.

    Parameters
    ----------
    record : Path
        File that holds ids and start times while children run.
    logs : Path
        Folder for what they print, one file each, begun anew at each start.
    """

    def __init__(self, *, record: Path, logs: Path) -> None:
        self._record = record
        self._logs = logs
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str]) -> Child:
        """Start a child in the current folder and record it."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        child = Child(name, process, log)
        self._children.append(child)
        self._save()
        return child

    def check(self) -> None:
        """Raise when a child has ended by itself.

        Raises
        ------
        LocalError
            Naming the child, how it ended, and the last lines it printed.
        """
        for child in self._children:
            if (code := child.process.poll()) is not None:
                raise LocalError(f"{child.name} ended by itself ({_ending(code)}). {_end_of(child)}")

    def finish(self, child: Child, *, timeout: float) -> int:
        """Wait for a child that is to end by itself, forget it, and return its exit code.

        Raises
        ------
        LocalError
            When it takes longer than `timeout` seconds; it is ended then.
        """
        try:
            code = child.process.wait(timeout)
        except subprocess.TimeoutExpired:
            end_sessions({child.process.pid: None}, grace=2)
            raise LocalError(f"{child.name} took longer than {timeout:.0f} s. {_end_of(child)}") from None
        finally:
            self._children.remove(child)
            self._save()
        return code

    def stop(self, *, grace: float = 10.0) -> None:
        """End all children and what they started: politely, then after `grace` seconds by force."""
        end_sessions({child.process.pid: None for child in self._children}, grace=grace)
        for child in self._children:
            child.process.wait()
        self._children.clear()
        self._record.unlink(missing_ok=True)

    def end_leftovers(self, *, grace: float = 5.0) -> int:
        """End what a killed supervisor left behind; return how many processes that were."""
        try:
            entries = json.loads(self._record.read_text())
            sessions = {int(entry["pid"]): float(entry["started"]) for entry in entries}
        except (OSError, ValueError, TypeError, KeyError):
            sessions = {}
        ended = end_sessions(sessions, grace=grace)
        self._record.unlink(missing_ok=True)
        return ended

    def _save(self) -> None:
        entries = []
        for child in self._children:
            pid = child.process.pid
            try:
                entries.append({"name": child.name, "pid": pid, "started": psutil.Process(pid).create_time()})
            except psutil.Error:
                continue
        self._record.parent.mkdir(parents=True, exist_ok=True)
        draft = self._record.with_suffix(".tmp")
        draft.write_text(json.dumps(entries))
        draft.replace(self._record)


def end_sessions(sessions: Mapping[int, float | None], *, grace: float) -> int:
    """End every process of the given sessions.

    Parameters
    ----------
    sessions : mapping of int to float or None
        Session ids, each with the start time of its leader (seconds since the epoch), or None for our own children.
        A number that the system has given to another process since then is left alone.
    grace : float
        Seconds between SIGTERM and SIGKILL.

    Returns
    -------
    int
        How many processes there were.
    """
    found = left = list(_members(sessions))
    asked: set[int] = set()
    deadline = time.monotonic() + grace
    while left and time.monotonic() < deadline:
        # The leaders first: Airflow's scheduler and MLflow's server end their workers in good order. Then the orphans.
        for process in [process for process in left if process.pid in sessions] or left:
            if process.pid not in asked:
                asked.add(process.pid)
                _signal(process, signal.SIGTERM)
        time.sleep(0.1)
        left = list(_members(sessions))
    for process in left:
        _signal(process, signal.SIGKILL)
    return len(found)


def _members(sessions: Mapping[int, float | None]) -> Iterator[psutil.Process]:
    mine = os.getuid()
    for process in psutil.process_iter():
        try:
            session = os.getsid(process.pid)
            if session not in sessions or process.uids().real != mine or not _alive(process):
                continue
            started = sessions[session]
            if started is None or _same_session(session, started, member=process):
                yield process
        except (psutil.Error, OSError):
            continue


def _same_session(session: int, started: float, *, member: psutil.Process) -> bool:
    """Whether a session's number still stands for the session whose leader started then, and not for a later one.

    The system does not give away the number of a session that has members left, so a missing leader is no objection.
    """
    if member.create_time() < started - START_TIME_TOLERANCE:
        return False
    try:
        return bool(abs(psutil.Process(session).create_time() - started) <= START_TIME_TOLERANCE)
    except psutil.NoSuchProcess:
        return True


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def _end_of(child: Child) -> str:
    return f"The end of {child.log}:\n{tail(child.log)}"


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a text file; nothing when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock as long as this process lives; the system frees it even after SIGKILL.

    Raises
    ------
    LocalError
        When another process holds it, naming its id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LocalError(
                f"reviewclf is already running in {path.parent.parent} (process {file.read().strip() or 'unknown'}). "
                "Stop it first with Ctrl-C, or set REVIEWCLF_HOME to another folder."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def free_port(preferred: int, *, avoid: Sequence[int] = (), span: int = 100) -> int:
    """Find a free port of 127.0.0.1: the preferred one, else the next, else any."""
    for port in range(preferred, min(preferred + span, 65536)):
        if port not in avoid and _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    # Somebody may listen on all addresses: some systems let 127.0.0.1 be bound all the same, and mix up the answers.
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
