"""Child processes that start quietly, stop wholly, and never outlive their supervisor unnoticed.

Whatever a child starts (Airflow forks workers and tasks, each in a process group of its own) inherits its environment, and
with it a mark that names the home it works for. So all of it can be found: by the supervisor that stops, and by the next one
after a supervisor that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from reviewclf.errors import ReviewclfError

_MARK = "STARTED_BY_REVIEWCLF_IN"
_TICKS = 0.05


class LocalError(ReviewclfError):
    """The local servers cannot be started, or a run they were asked for failed."""


@dataclass(frozen=True)
class Child:
    """A process started here."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """The children of one supervisor.

    Parameters
    ----------
    home : Path
        What they work for; two supervisors of one home at the same time are for :func:`locked` to prevent.
    logs : Path
        Folder for what they print, one file each, begun anew at each start.
    """

    def __init__(self, *, home: Path, logs: Path) -> None:
        self._mark = str(home.resolve())
        # Up to version 0.1.0 children were found by the sessions that they led, which were recorded here.
        self._record = home / "run" / "children.json"
        self._logs = logs
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str]) -> Child:
        """Start a child in the current folder."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        # setproctitle, which Airflow calls, would write the title of the process over its environment.
        marked = {**env, _MARK: self._mark, "SPT_NOENV": "1"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=marked, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        child = Child(name, process, log)
        self._children.append(child)
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
                how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
                raise LocalError(f"{child.name} ended by itself ({how}). {_end_of(child)}")

    def finish(self, child: Child, *, timeout: float) -> int:
        """Wait for a child that is to end by itself, forget it, and return its exit code.

        Raises
        ------
        LocalError
            When it takes longer than `timeout` seconds; it is ended then.
        """
        try:
            return child.process.wait(timeout)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
            raise LocalError(f"{child.name} took longer than {timeout:.0f} s. {_end_of(child)}") from None
        finally:
            self._children.remove(child)

    def stop(self, *, grace: float = 10.0) -> None:
        """End all children and what they started: politely, then after `grace` seconds by force."""
        self.end_all(grace=grace)
        for child in self._children:
            child.process.kill()
            child.process.wait()
        self._children.clear()

    def end_all(self, *, grace: float = 5.0) -> int:
        """End every process that works for this home, whoever started it; return how many processes those were."""
        found = list(self._marked())
        pids = {process.pid for process in found}
        # The servers first, so that Airflow's scheduler and MLflow end their workers in good order; then the orphans.
        servers = [process for process in found if _parent_of(process) not in pids]
        for group in (servers, found):
            for process in group:
                _signal(process, signal.SIGTERM)
            psutil.wait_procs(group, timeout=grace / 2)
        for process in self._marked():
            _signal(process, signal.SIGKILL)
        self._record.unlink(missing_ok=True)
        return len(found)

    def _marked(self) -> Iterator[psutil.Process]:
        recorded = _recorded_sessions(self._record)
        for process in psutil.process_iter():
            # Other users' processes do not show their environment.
            with suppress(psutil.Error, OSError):
                if (
                    process.pid != os.getpid()
                    and process.status() != psutil.STATUS_ZOMBIE
                    and (_is_of(process, recorded) or process.environ().get(_MARK) == self._mark)
                ):
                    yield process


def _recorded_sessions(record: Path) -> dict[int, float]:
    """Sessions that version 0.1.0 recorded since this machine was started, and when their leaders began."""
    try:
        sessions = {int(entry["pid"]): float(entry["started"]) for entry in json.loads(record.read_text())}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {session: started for session, started in sessions.items() if started > psutil.boot_time()}


def _is_of(process: psutil.Process, sessions: Mapping[int, float]) -> bool:
    """Whether a process belongs to one of the sessions, and not to a later one that was given the same number."""
    session = os.getsid(process.pid)
    if session not in sessions:
        return False
    # The number is not given anew while the session has members, so a leader that is gone is no objection.
    leader = psutil.Process(session).create_time() if psutil.pid_exists(session) else sessions[session]
    # The kernel's clock has ticks of a hundredth of a second.
    return abs(leader - sessions[session]) < _TICKS and process.create_time() > sessions[session] - _TICKS


def _parent_of(process: psutil.Process) -> int | None:
    with suppress(psutil.Error):
        return int(process.ppid())
    return None


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def _end_of(child: Child) -> str:
    text = child.log.read_text(encoding="utf-8", errors="replace") if child.log.exists() else ""
    return f"The end of {child.log}:\n" + "\n".join(text.splitlines()[-15:])


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
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def free_port(preferred: int, *, avoid: Sequence[int] = (), span: int = 100) -> int:
    """Find a free port of 127.0.0.1: the preferred one, else one of the next."""
    for port in range(preferred, min(preferred + span, 65536)):
        if port not in avoid and _is_free(port):
            return port
    raise LocalError(f"None of the ports {preferred} to {preferred + span - 1} of 127.0.0.1 is free.")


def _is_free(port: int) -> bool:
    # Somebody may listen on all addresses: some systems let 127.0.0.1 be bound all the same, and mix up the answers.
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False
