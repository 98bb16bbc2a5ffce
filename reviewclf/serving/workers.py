"""A linear model in processes of its own.

Its work is mostly Python's, and threads of one process take turns with the interpreter's lock; encoders run outside it. Texts
and answers go through a pipe: JSON there, 64-bit floats back, no pickle.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from reviewclf.errors import RegistryError, ServingError
from reviewclf.training.model import TextClassifier, load_model

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

_MODULE = "reviewclf.serving.workers"
# The first byte of an answer.
_ANSWERS, _READY, _FAULT = range(3)
# Reading and checking a model from a slow disk takes a while; beyond this something hangs.
_START_SECONDS = 300.0
_END_SECONDS = 5.0
_NOT_FOR_WORKERS = ("REVIEWCLF_", "MLFLOW_", "AWS_")


class WorkerLostError(ServingError):
    """The process ended while it was asked."""


class _About(BaseModel):
    """What a worker tells about its model once it is loaded: see :class:`TextClassifier`."""

    model_config = ConfigDict(frozen=True)

    classes: list[str]
    chosen: dict[str, JsonValue]
    abstain: dict[str, float]
    exported: dict[str, JsonValue]


class ProcessClassifier(TextClassifier):
    """A saved classifier that answers in other processes, each with a copy of it.

    They end when this object is no longer used, and when this process ends, however it does.

    Parameters
    ----------
    folder : Path
        See :func:`reviewclf.training.model.load_model`.
    processes : int
        Calls that are answered side by side; more wait for each other.

    Raises
    ------
    RegistryError
        The classifier cannot be loaded, or its process ended or hung while it tried.
    """

    def __init__(self, folder: Path, processes: int) -> None:
        self._folder = folder
        self._workers = [_Worker(folder, quiet=number > 0) for number in range(processes)]
        weakref.finalize(self, _end, self._workers)
        try:
            # They load side by side.
            abouts = [worker.wait() for worker in self._workers]
        except BaseException:
            _end(self._workers)
            raise
        about = abouts[0]
        self.classes = about.classes
        self.chosen = about.chosen
        self.abstain = about.abstain
        self.exported = about.exported
        self.validation_probabilities = None
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [worker.pid for worker in self._workers]

    def predict_proba(self, texts: Sequence[str | None]) -> Floats:
        """See :meth:`TextClassifier.predict_proba`.

        Raises
        ------
        ServingError
            The model failed on these texts; its process has logged where.
        WorkerLostError
            Two processes after another ended over them.
        """
        worker = self._free.get()
        try:
            try:
                answers = worker.ask(texts)
            except WorkerLostError as error:
                # Whoever ended it, these texts need not be the reason.
                logger.error("%s; it is started again", error)  # noqa: TRY400 - said in words
                worker.start_again()
                answers = worker.ask(texts)
        finally:
            self._free.put(worker)
        return answers.reshape(len(texts), -1 if texts else len(self.classes))

    def save(self, folder: Path) -> None:
        """Copy the files that it was loaded from."""
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)


class _Worker:
    """One process, and this end of the pipe to it."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self._folder = folder
        self._quiet = quiet
        self._pipe, self._process = self._open()

    def _open(self) -> tuple[Connection, subprocess.Popen[bytes]]:
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(self._folder)]
            command += ["quiet"] if self._quiet else []
            return ours, subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=_environment())

    @property
    def pid(self) -> int:
        return self._process.pid

    def start_again(self) -> None:
        self.end()
        self._pipe, self._process = self._open()
        self.wait()

    def wait(self) -> _About:
        """Until it is ready."""
        if not self._pipe.poll(_START_SECONDS):
            raise RegistryError(f"it was not loaded within {_START_SECONDS:.0f} s; try it with `reviewclf predict`")
        try:
            kind, content = _split(self._pipe.recv_bytes())
            if kind == _READY:
                return _About.model_validate_json(content)
        except (EOFError, OSError) as error:
            ended = f"{self._how_it_ended()} while it was loaded"
            raise RegistryError(f"{ended}; train it anew, or give the server more memory") from error
        except ValidationError as error:
            raise RegistryError(f"it does not describe itself: {error}; train it anew") from error
        raise RegistryError(str(content, "utf-8"))

    def ask(self, texts: Sequence[str | None]) -> Floats:
        """All probabilities, one text's after the other's."""
        try:
            self._pipe.send_bytes(json.dumps(list(texts), ensure_ascii=False).encode("utf-8", "surrogatepass"))
            kind, content = _split(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerLostError(f"{self._how_it_ended()} while it answered") from error
        if kind != _ANSWERS:
            raise ServingError(str(content, "utf-8"))
        return np.frombuffer(content, dtype=np.float64)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return f"the model's process {self.pid} hung up"
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return f"the model's process {self.pid} ended {how}"

    def end(self) -> None:
        """It ends when it finds the pipe closed."""
        self._pipe.close()
        if self._process.poll() is None:
            threading.Thread(target=_see_off, args=(self._process,), daemon=True).start()


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()


def _see_off(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """The worker finds this package where this process did, and knows no keys and passwords of the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_WORKERS)}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _split(message: bytes) -> tuple[int, bytes]:
    return message[0], message[1:]


# -- in the other process ----------------------------------------------------------------------------------------------


def main(descriptor: int, folder: Path, *, quiet: bool) -> None:
    """Load the classifier of `folder` and answer what comes through the pipe, until it is closed."""
    from reviewclf.serving.logs import configure_logging

    # Both go to the whole group or unit. The server decides when it has answered all, and closes the pipe.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    configure_logging()
    if quiet:  # the first one has said it
        logging.getLogger().setLevel(logging.ERROR)
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, ConnectionError):
        try:
            classifier = load_model(folder, threads=1)
            about = _About(
                classes=classifier.classes,
                chosen=classifier.chosen,
                abstain=dict(classifier.abstain),
                exported=dict(classifier.exported),
            )
        except Exception as error:  # whatever a damaged one raises
            words = str(error) if isinstance(error, RegistryError) else f"it cannot be loaded: {error!r:.300}; train it anew"
            pipe.send_bytes(bytes([_FAULT]) + words.encode("utf-8", "replace"))
            return
        pipe.send_bytes(bytes([_READY]) + about.model_dump_json().encode())
        while True:
            pipe.send_bytes(_answer(classifier, pipe.recv_bytes()))


def _answer(classifier: TextClassifier, asked: bytes) -> bytes:
    try:
        texts = json.loads(asked.decode("utf-8", "surrogatepass"))
        answers = np.ascontiguousarray(classifier.predict_proba(texts), dtype=np.float64)
    except Exception as error:  # whatever a model raises
        _tell_fault(error)
        return bytes([_FAULT]) + f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    return bytes([_ANSWERS]) + answers.tobytes()


def _tell_fault(error: Exception) -> None:
    """Where it failed, without its words, which may quote a review."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    fields = {"event": "model_fault", "error": type(error).__name__, "frames": frames}
    logger.error("the model failed", extra={"fields": fields})


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), quiet="quiet" in sys.argv[3:])
