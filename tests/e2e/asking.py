"""A client that asks the server all the time and keeps what it was told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

# Two clients at this pace are a steady stream, and leave the cores to what is tested beside them.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes
    ----------
    client : str
        Which of the two.
    asked, answered : datetime
        UTC.
    status : int
        0: there was no answer at all, and `problem` says why.
    version : str
        Of the model that answered; empty without an answer.
    predictions : tuple
        Label and confidence of each text.
    """

    client: str
    asked: datetime
    answered: datetime
    status: int
    version: str = ""
    predictions: tuple[tuple[str, float], ...] = ()
    problem: str = ""


class Asking:
    """Two clients of ``POST /predict``: one keeps its connection, the other makes a new one for each request.

    Parameters
    ----------
    address : str
        Of the server.
    texts : sequence of str
        Asked about in every request.
    """

    def __init__(self, address: str, texts: Sequence[str]) -> None:
        self._address = address
        self._texts = list(texts)
        self._stop = threading.Event()
        self._answers: list[Answer] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(name, kept), daemon=True) for name, kept in (("kept", 1), ("new", 0))
        ]

    @property
    def answers(self) -> list[Answer]:
        """All answers so far, in the order they came."""
        return sorted(self._answers, key=lambda answer: answer.answered)

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, name: str, kept: int) -> None:
        # Nothing is tried again: what would make a client try again is an error here.
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=kept)
        with httpx.Client(base_url=self._address, trust_env=False, timeout=30, limits=limits) as client:
            while not self._stop.wait(PAUSE_SECONDS):
                self._answers.append(self._answer(name, client))

    def _answer(self, name: str, client: httpx.Client) -> Answer:
        asked = datetime.now(UTC)
        try:
            response = client.post("/predict", json={"texts": self._texts})
        except httpx.HTTPError as error:
            return Answer(name, asked, datetime.now(UTC), 0, problem=repr(error))
        answered = datetime.now(UTC)
        if response.status_code != 200:
            return Answer(name, asked, answered, response.status_code, problem=response.text)
        body = response.json()
        said = tuple((item["label"], item["confidence"]) for item in body["predictions"])
        return Answer(name, asked, answered, 200, body["model_version"], said)
