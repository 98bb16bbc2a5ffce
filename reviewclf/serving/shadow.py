"""The challenger beside the champion: answers a share of the requests after their clients have theirs, to be compared."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from reviewclf.serving.metrics import Metrics
from reviewclf.serving.served import ServedModel

logger = logging.getLogger(__name__)

# Texts that may wait for the challenger, and that it gets at once: few, since a batch cannot be interrupted.
_MAX_WAITING = 1000
_PIECE = 4
_LOOK_AGAIN = 0.005


@dataclass
class Comparison:
    """How one pair of versions compares so far."""

    champion: str
    challenger: str
    compared: int = 0
    disagreements: int = 0

    @property
    def rate(self) -> float | None:
        """Share of texts on which they disagree; None before the first."""
        return self.disagreements / self.compared if self.compared else None


class Shadow:
    """Compares both on a sample. It takes a thread only while the champion leaves one free, and drops what has no room.

    Parameters
    ----------
    share : float
        Of the requests.
    spare : callable
        Whether the champion leaves a thread free right now.
    metrics : Metrics
        Told the figures.
    log_seconds : float
        Between two lines in the log.
    chance : callable
        A number in [0, 1).
    """

    def __init__(
        self,
        *,
        share: float,
        spare: Callable[[], bool],
        metrics: Metrics,
        log_seconds: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._share = share
        self._spare = spare
        self._metrics = metrics
        self._log_seconds = log_seconds
        self._chance = chance
        self._queue: deque[tuple[ServedModel, ServedModel, str, str]] = deque()
        self._arrival = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._tasks: list[asyncio.Task[None]] = []
        self.comparison: Comparison | None = None

    def start(self) -> None:
        """Start to compare; call it inside the event loop."""
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._tell())]

    async def stop(self) -> None:
        """Compare no more; what waits is dropped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def offer(self, champion: ServedModel, challenger: ServedModel | None, texts: Sequence[str], labels: Sequence[str]) -> None:
        """Take the texts of a request and the champion's `labels` into the sample, or not. Returns at once."""
        if challenger is None or challenger.info.identity == champion.info.identity or self._chance() >= self._share:
            return
        room = _MAX_WAITING - len(self._queue)
        if room < len(texts):
            self._metrics.shadow_skipped.labels("busy").inc(len(texts))
            return
        self._queue.extend((champion, challenger, text, label) for text, label in zip(texts, labels, strict=True))
        self._arrival.set()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._arrival.clear()
                await self._arrival.wait()
            while not self._spare():
                await asyncio.sleep(_LOOK_AGAIN)
            await self._ask_both()

    async def _ask_both(self) -> None:
        """Take a piece from the queue."""
        champion, challenger = self._queue[0][:2]
        piece: list[tuple[str, str]] = []
        while self._queue and len(piece) < _PIECE and self._queue[0][0] is champion and self._queue[0][1] is challenger:
            piece.append(self._queue.popleft()[2:])
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._pool, challenger.answer, [text for text, _ in piece]
            )
            labels = challenger.classifier.answers(answers)
        except Exception as error:  # the challenger is on trial; what it breaks is its own record
            self._metrics.shadow_skipped.labels("failed").inc(len(piece))
            logger.warning("challenger %s failed on a sampled request: %s", challenger.version, type(error).__name__)
            return
        self._compare(champion.version, challenger.version, [label for _, label in piece], labels)

    def _compare(self, champion: str, challenger: str, expected: Sequence[str], labels: Sequence[str]) -> None:
        seen = self.comparison
        if seen is None or (seen.champion, seen.challenger) != (champion, challenger):
            seen = self.comparison = Comparison(champion, challenger)
        for ours, theirs in zip(expected, labels, strict=True):
            seen.compared += 1
            if ours != theirs:
                seen.disagreements += 1
                self._metrics.shadow_disagreements.labels(champion, challenger, ours, theirs).inc()
        self._metrics.shadow_compared.labels(champion, challenger).inc(len(labels))
        self._metrics.shadow_rate.labels(champion, challenger).set(seen.disagreements / seen.compared)

    async def _tell(self) -> None:
        told: Comparison | None = None
        compared = 0
        while True:
            await asyncio.sleep(self._log_seconds)
            seen = self.comparison
            if seen is None or (seen is told and seen.compared == compared):
                continue
            told, compared = seen, seen.compared
            logger.info(
                "challenger %s disagrees with champion %s on %d of %d texts (%.1f%%)",
                *(seen.challenger, seen.champion, seen.disagreements, seen.compared, 100 * (seen.rate or 0.0)),
                extra={"fields": {"event": "shadow", **vars(seen)}},
            )
