"""The challenger beside the champion: answers a share of the requests after their clients have theirs, to be compared."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from reviewclf.serving.metrics import Metrics
from reviewclf.serving.model import ServedModel

logger = logging.getLogger(__name__)

# Texts that may wait for the challenger.
_MAX_WAITING = 1000
_LOOK_AGAIN = 0.005


class _Sampled(NamedTuple):
    champion: ServedModel
    challenger: ServedModel
    text: str
    label: str


@dataclass(frozen=True)
class Comparison:
    """How one pair of versions compares so far, on all texts that any process of the server had both answer."""

    champion: str
    challenger: str
    compared: int
    disagreements: int

    @property
    def rate(self) -> float | None:
        """Share of texts on which they disagree; None before the first."""
        return self.disagreements / self.compared if self.compared else None


class Shadow:
    """Compares both on a sample. It answers only while the champion has nothing to do, and drops what has no room.

    Parameters
    ----------
    share : float
        Of the requests.
    idle : callable
        Whether the champion has nothing to do right now.
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
        idle: Callable[[], bool],
        metrics: Metrics,
        log_seconds: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._share = share
        self._idle = idle
        self._metrics = metrics
        self._log_seconds = log_seconds
        self._chance = chance
        self._queue: asyncio.Queue[_Sampled] = asyncio.Queue(_MAX_WAITING)
        self._tasks: list[asyncio.Task[None]] = []
        self._pair: tuple[str, str] | None = None

    def start(self) -> None:
        """Start to compare; call it inside the event loop."""
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._report())]

    def stop(self) -> None:
        """Compare no more; what waits is dropped."""
        for task in self._tasks:
            task.cancel()

    def offer(self, champion: ServedModel, challenger: ServedModel | None, texts: Sequence[str], labels: Sequence[str]) -> None:
        """Take the texts of a request and the champion's `labels` into the sample, or not. Returns at once."""
        if challenger is None or challenger.info.identity == champion.info.identity or self._chance() >= self._share:
            return
        if self._queue.qsize() + len(texts) > _MAX_WAITING:
            self._metrics.shadow_skipped.labels("busy").inc(len(texts))
            return
        for text, label in zip(texts, labels, strict=True):
            self._queue.put_nowait(_Sampled(champion, challenger, text, label))

    def compare(self, champion: str, challenger: str) -> Comparison:
        """What all processes have counted about these two versions."""
        pair = {"champion": champion, "challenger": challenger}
        counters = self._metrics.shadow_compared, self._metrics.shadow_disagreements
        return Comparison(champion, challenger, *(self._metrics.total(counter, **pair) for counter in counters))

    async def _work(self) -> None:
        while True:
            sampled = await self._queue.get()
            while not self._idle():
                await asyncio.sleep(_LOOK_AGAIN)
            challenger = sampled.challenger
            try:
                label = (await asyncio.to_thread(challenger.labels, [sampled.text]))[0]
            except Exception as error:  # the challenger is on trial; what it breaks is its own record
                self._metrics.shadow_skipped.labels("failed").inc()
                logger.warning("challenger %s failed on a sampled text: %s", challenger.version, type(error).__name__)
                continue
            pair = self._pair = sampled.champion.version, challenger.version
            self._metrics.shadow_compared.labels(*pair).inc()
            if label != sampled.label:
                self._metrics.shadow_disagreements.labels(*pair, sampled.label, label).inc()

    async def _report(self) -> None:
        """Write a line now and then, where this process has compared anything since the last one."""
        while True:
            await asyncio.sleep(self._log_seconds)
            if self._pair is None:
                continue
            found, self._pair = self.compare(*self._pair), None
            logger.info(
                "challenger %s disagrees with champion %s on %d of %d texts (%.1f%%)",
                *(found.challenger, found.champion, found.disagreements, found.compared, 100 * (found.rate or 0.0)),
                extra={"fields": {"event": "shadow", **asdict(found)}},
            )
