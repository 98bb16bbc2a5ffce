"""The challenger beside the champion: answers a share of the requests after their clients have theirs, to be compared."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reviewclf.serving.batching import Batcher
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.model import ServedModel
from reviewclf.serving.schema import ShadowState
from reviewclf.settings import ServingSettings

logger = logging.getLogger(__name__)

# Texts that may wait for the challenger.
_MAX_WAITING = 1000
_LOOK_AGAIN = 0.005


class _Sampled(NamedTuple):
    champion: ServedModel
    challenger: ServedModel
    text: str
    label: str


class Shadow:
    """Compares both on a sample. It answers only while the champion has nothing to do, and drops what has no room.

    Parameters
    ----------
    settings : ServingSettings
        The share of the requests, and how often the log says what was found.
    metrics : Metrics
        Told the figures.
    batcher : Batcher
        Runs the champion.
    chance : callable
        A number in [0, 1).
    """

    def __init__(
        self, settings: ServingSettings, metrics: Metrics, batcher: Batcher, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._share = settings.shadow_share
        self._log_seconds = settings.shadow_log_seconds
        self._metrics = metrics
        self._batcher = batcher
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

    def compare(self, champion: str, challenger: str) -> ShadowState:
        """What all processes of the server have counted about these two versions."""
        pair = {"champion": champion, "challenger": challenger}
        compared, disagreements = (
            self._metrics.total(counter, **pair)
            for counter in (self._metrics.shadow_compared, self._metrics.shadow_disagreements)
        )
        return ShadowState(
            model_version=challenger,
            compared=compared,
            disagreements=disagreements,
            disagreement_rate=disagreements / compared if compared else None,
        )

    async def _work(self) -> None:
        while True:
            sampled = await self._queue.get()
            while not self._batcher.idle:
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
            (champion, challenger), self._pair = self._pair, None
            seen = self.compare(champion, challenger)
            counts = {"compared": seen.compared, "disagreements": seen.disagreements}
            logger.info(
                "challenger %s disagrees with champion %s on %d of %d texts (%.1f%%)",
                *(challenger, champion, seen.disagreements, seen.compared, 100 * (seen.disagreement_rate or 0.0)),
                extra={"fields": {"event": "shadow", "champion": champion, "challenger": challenger, **counts}},
            )
