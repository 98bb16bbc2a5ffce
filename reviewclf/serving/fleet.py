"""The processes beside the server that answer short requests: started, told which version answers, given connections."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reviewclf.serving.channel import Channel, Message
from reviewclf.serving.keys import ApiKeys
from reviewclf.serving.metrics import Snapshot, add_up
from reviewclf.settings import ServingSettings

if TYPE_CHECKING:
    from reviewclf.registry.deployment import Version

logger = logging.getLogger(__name__)

_MODULE = "reviewclf.serving.answerer"
# Larger models take so long for a text that processes of their own make nothing faster, and each would hold a copy of it.
_LARGE_BYTES = 128 << 20
# A new champion waits so long for those that load it; who takes longer answers when it has it.
_LOAD_SECONDS = 60.0
_RETRY_SECONDS = 60.0
_FIGURES_SECONDS = 1.0
# One that takes none of the connections that it was given for so long hangs.
_HANG_SECONDS = 30.0
_END_SECONDS = 2.0
# One that ends is started again at once, then after twice as long each time, until it has lived so long.
_FIRST_PAUSE = 0.5
_LAST_PAUSE = 30.0
_STEADY_SECONDS = 60.0
_NOT_FOR_OTHERS = ("REVIEWCLF_", "MLFLOW_", "AWS_")


class Fleet:
    """As many processes as there are cores, each with a copy of the champion.

    Python runs one thread at a time, so that one process answers small encoders and linear models no faster than a core and a
    half can. What is asked of this object is asked in the event loop, but for :meth:`prepare` and :meth:`use`.

    Parameters
    ----------
    count : int
        Processes.
    settings : ServingSettings
        Limits and keys, which hold there as here.
    back : str
        Unix socket of the server, for what they do not answer.
    """

    def __init__(self, count: int, settings: ServingSettings, back: str) -> None:
        content = settings.model_dump(mode="json", exclude={"api_keys"})
        content["api_keys"] = ApiKeys(settings.api_keys).digests
        content["max_queue"] = ceil(settings.max_queue / count)
        self._begin: Message = {"do": "start", "settings": content, "back": back}
        self._count = count
        self._members: list[_Member] = []
        self._turn = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Identity, number and folder of the version that they are to have, and the identity of the one that answers.
        self._wanted: tuple[str, str, str] | None = None
        self._used: str | None = None
        self._stopping = False
        self._past: Snapshot = []

    # -- in the event loop

    def start(self) -> None:
        """Start the processes."""
        self._loop = asyncio.get_running_loop()
        self._members = [_Member(self) for _ in range(self._count)]
        for member in self._members:
            member.start()

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [member.pid for member in self._members if member.pid is not None]

    def take(self, connection: socket.socket) -> bool:
        """Give a new connection to the one that has the fewest; False where there is none with the champion."""
        if self._used is None or self._stopping:
            return False
        ready = [member for member in self._members if member.uses == self._used and member.responds()]
        if not ready:
            return False
        first = next(self._turn) % len(ready)
        member = min(ready[first:] + ready[:first], key=lambda member: member.connections)
        return member.take(connection)

    async def figures(self) -> list[Snapshot]:
        """What they have counted, and what those counted that have ended."""
        asked = [member.figures() for member in self._members]
        return [self._past, *(found for found in await asyncio.gather(*asked) if found)]

    def drain(self) -> None:
        """Let them answer what they have taken, and end."""
        self._stopping = True
        for member in self._members:
            member.send({"do": "drain"})

    async def stop(self) -> None:
        """End those that have not ended by themselves."""
        self._stopping = True
        for member in self._members:
            member.hang_up()
        await asyncio.gather(*(asyncio.to_thread(member.end) for member in self._members))

    # -- in the follower's thread

    def prepare(self, info: Version, folder: Path) -> None:
        """Have all that run load a version, and wait until they have, or cannot. A large one they leave to the server."""
        self._wanted = (info.identity, info.version, str(folder)) if _size(folder) <= _LARGE_BYTES else None
        for member in self._members:
            member.settled.clear()
        if not self._call(self._load_all):
            return
        deadline = time.monotonic() + _LOAD_SECONDS
        for member in self._members:
            member.settled.wait(max(0.0, deadline - time.monotonic()))

    def use(self) -> None:
        """Have them answer with what they were prepared for."""
        self._used = self._wanted[0] if self._wanted is not None else None
        self._call(self._use_all)

    def _load_all(self) -> None:
        for member in self._members:
            member.load()

    def _use_all(self) -> None:
        for member in self._members:
            member.use()

    def _call(self, work: Callable[[], object]) -> bool:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(work)
        except RuntimeError:  # it has ended
            return False
        return self._loop is not None


class _Member:
    """One of the processes, and this end of the channel to it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._pause = 0.0
        self._started_at = 0.0
        self._handed = self._taken = self._open = 0
        self._behind_since = 0.0
        self._has: set[str] = set()
        self._asked: dict[int, asyncio.Future[Snapshot]] = {}
        self._last: Snapshot | None = None
        self.uses: str | None = None
        # Whether it has, or has failed to load, what it was last told to.
        self.settled = threading.Event()
        self.settled.set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def connections(self) -> int:
        """Open ones, with those that it has been handed and not told of yet."""
        return self._open + self._handed - self._taken

    def start(self) -> None:
        if self._fleet._stopping:
            return
        try:
            ours = self._launch()
        except OSError as error:  # no memory or no files for another process just now
            pause = self._next_pause()
            logger.error("no answering process can be started, the next attempt is in %.1f s: %s", pause, error)  # noqa: TRY400
            asyncio.get_running_loop().call_later(pause, self.start)
            return
        ours.setblocking(False)
        self._channel = Channel(ours)
        self._started_at = time.monotonic()
        self._handed = self._taken = self._open = 0
        asyncio.get_running_loop().add_reader(ours.fileno(), self._receive)
        self.send(self._fleet._begin)
        self.load()

    def _launch(self) -> socket.socket:
        """Start the process; this end of the channel to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=_environment()
                )
            except OSError:
                ours.close()
                raise
        return ours

    def _next_pause(self) -> float:
        """Seconds until it is started again."""
        steady = time.monotonic() - self._started_at >= _STEADY_SECONDS
        self._pause = _FIRST_PAUSE if steady or not self._pause else min(_LAST_PAUSE, 2 * self._pause)
        return self._pause

    def send(self, message: Message, file: int | None = None) -> bool:
        """Whether it went off."""
        if self._channel is None:
            return False
        try:
            self._channel.send(message, file)
        except BlockingIOError:  # it has not read for long
            self._kill()
            return False
        except OSError:  # it has ended, which the reader sees
            return False
        return True

    def take(self, connection: socket.socket) -> bool:
        if not self.send({"do": "take"}, connection.fileno()):
            return False
        if self._handed == self._taken:
            self._behind_since = time.monotonic()
        self._handed += 1
        return True

    def responds(self) -> bool:
        """Whether it takes what it is given; one that does not is ended."""
        if self._handed == self._taken or time.monotonic() - self._behind_since < _HANG_SECONDS:
            return True
        self._kill()
        return False

    def load(self) -> None:
        wanted = self._fleet._wanted
        if wanted is None or self._channel is None or wanted[0] in self._has:
            self.settled.set()
            return
        identity, version, folder = wanted
        self.settled.clear()
        if not self.send({"do": "load", "identity": identity, "version": version, "folder": folder}):
            self.settled.set()

    def use(self) -> None:
        used = self._fleet._used
        # Without it, it answers nothing by itself.
        self.uses = used if used is not None and used in self._has else None
        wanted = self._fleet._wanted
        self._has &= {used, wanted[0] if wanted is not None else None}
        self.send({"do": "use", "identity": self.uses, "keep": sorted(self._has)})

    async def figures(self) -> Snapshot | None:
        loop = asyncio.get_running_loop()
        number = next(self._fleet._turn)
        asked = self._asked[number] = loop.create_future()
        if self.send({"do": "figures", "number": number}):
            with suppress(TimeoutError):
                self._last = await asyncio.wait_for(asked, _FIGURES_SECONDS)
        self._asked.pop(number, None)
        return self._last

    def _receive(self) -> None:
        assert self._channel is not None  # noqa: S101 - else nothing is read
        try:
            for message, _ in self._channel.receive():
                self._hear(message)
        except (EOFError, OSError):
            self._mourn()

    def _hear(self, message: Message) -> None:
        match message["is"]:
            case "open":
                self._open, self._taken = message["open"], message["taken"]
                self._behind_since = time.monotonic()
            case "loaded":
                self._has.add(message["identity"])
                self._settle(message["identity"])
            case "failed":
                logger.error(
                    "answering process %s goes without a model, and tries again in %.0f s: %s",
                    *(self.pid, _RETRY_SECONDS, message["reason"]),
                )
                self._settle(message["identity"])
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.load)
            case "figures":
                asked = self._asked.get(message["number"])
                if asked is not None and not asked.done():
                    asked.set_result(message["figures"])

    def _settle(self, identity: str) -> None:
        if identity == self._fleet._used:
            self.use()
        wanted = self._fleet._wanted
        if wanted is not None and identity == wanted[0]:
            self.settled.set()

    def _mourn(self) -> None:
        """It has ended."""
        assert self._process is not None  # noqa: S101 - it has been started
        loop = asyncio.get_running_loop()
        self.hang_up()
        self._has.clear()
        self.settled.set()
        if self._last is not None:
            counted = [row for row in self._last if row[1] != "gauge"]
            self._fleet._past = add_up([self._fleet._past, counted])
            self._last = None
        if self._fleet._stopping:
            return
        process = self._process
        loop.run_in_executor(None, _see_off, process).add_done_callback(lambda _: self._start_again(process))

    def hang_up(self) -> None:
        """Close the channel, at whose end it ends."""
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
        self._channel, self.uses = None, None

    def _start_again(self, process: subprocess.Popen[bytes]) -> None:
        code = process.returncode
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        pause = self._next_pause()
        logger.error("answering process %s ended %s; it is started again in %.1f s", process.pid, how, pause)
        asyncio.get_running_loop().call_later(pause, self.start)

    def _kill(self) -> None:
        if self._process is not None:
            logger.error("answering process %s does not respond; it is ended", self._process.pid)
            self.uses = None
            self._process.kill()

    def end(self) -> None:
        if self._process is not None:
            _see_off(self._process)


def _size(folder: Path) -> int:
    """Bytes of a model, without the folders that are for further training."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:  # those that load it will say what is wrong
        return 0


def _see_off(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """They find this package where this process did. Settings come through the channel, keys of other services not at all."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_OTHERS)}
    # Texts come one at a time there.
    return {**kept, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
