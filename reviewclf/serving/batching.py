"""Micro-batching: what arrives while the model is busy goes through it together next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reviewclf.serving.metrics import Metrics
from reviewclf.serving.model import ServedModel
from reviewclf.serving.problems import unavailable

Floats = NDArray[np.float64]

# How much the newest batch counts in the estimate of texts per second.
_NEWEST = 0.2
# A model that reads its texts one by one gets as many at a time as take so long: one if it is slow, so that nobody waits for a
# neighbour, and several if it is so fast that handing each over to the thread would cost as much as the answer.
_TURN_SECONDS = 0.004


@dataclass(eq=False)
class _Job:
    """The texts of one request, and the answers to the first of them."""

    model: ServedModel
    texts: Sequence[str]
    done: asyncio.Future[Floats]
    arrived: float
    taken: int = 0
    answers: list[Floats] = field(default_factory=list)

    def take(self, count: int) -> Sequence[str]:
        self.taken += count
        return self.texts[self.taken - count : self.taken]


_Batch = list[tuple[_Job, Sequence[str]]]


class Batcher:
    """Runs the model in a thread, on the texts of several requests at a time. Asked from one event loop.

    A request of many texts goes back to the end of the queue after each batch, so that it does not hold up short ones. Every
    request is answered by one model, the one that it came with.

    Parameters
    ----------
    max_batch : int
        Texts of a batch.
    max_queue : int
        Texts that may wait; beyond it :meth:`submit` refuses. A request that alone is larger is let in when nothing waits.
    threads : int
        Texts that a model which reads them one by one works on at the same time.
    metrics : Metrics
        Told sizes and times.
    """

    def __init__(self, *, max_batch: int, max_queue: int, threads: int, metrics: Metrics) -> None:
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._threads = threads
        self._metrics = metrics
        self._queue: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None
        self._waiting = 0
        self._rate = 0.0
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether the model has nothing to do."""
        return not self._busy and not self._queue

    async def start(self) -> None:
        """Start to take from the queue."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Take no more. What still waits ends with :class:`asyncio.CancelledError`."""
        if self._task is not None:
            self._task.cancel()
        for job in self._queue:
            job.done.cancel()
        self._pool.shutdown(wait=False)

    async def submit(self, model: ServedModel, texts: Sequence[str]) -> Floats:
        """Probabilities of `texts` by `model`.

        Raises
        ------
        Problem
            503 with ``Retry-After``: too many texts wait already.
        Exception
            What the model raised on these texts.
        """
        if self._waiting and self._waiting + len(texts) > self._max_queue:
            raise unavailable(
                "overloaded",
                f"{self._waiting} texts are waiting already, at most {self._max_queue} may "
                "(REVIEWCLF_SERVING__MAX_QUEUE); come again later",
                retry_after=self._waiting / self._rate if self._rate else 1.0,
            )
        job = _Job(model, texts, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._queue.append(job)
        self._count(len(texts))
        self._arrived.set()
        return await job.done

    def _count(self, texts: int) -> None:
        self._waiting += texts
        self._metrics.queue_texts.set(self._waiting)

    async def _work(self) -> None:
        while True:
            self._busy = False
            await self._arrived.wait()
            self._arrived.clear()
            self._busy = True
            while self._queue:
                if batch := self._next_batch():
                    await self._answer(batch)

    def _next_batch(self) -> _Batch:
        """The texts at the head of the queue that are for the same model."""
        model, room = self._queue[0].model, self._max_batch
        if model.alone:
            room = min(room, max(self._threads, int(_TURN_SECONDS * self._rate)))
        batch: _Batch = []
        unfinished: list[_Job] = []
        while self._queue and room and self._queue[0].model is model:
            job = self._queue.popleft()
            left = len(job.texts) - job.taken
            if job.done.done():  # an earlier part has failed, or nobody waits for it any more
                self._count(-left)
                continue
            if not job.taken:
                self._metrics.queue_seconds.observe(time.perf_counter() - job.arrived)
            part = job.take(min(room, left))
            batch.append((job, part))
            room -= len(part)
            self._count(-len(part))
            if len(part) < left:
                unfinished.append(job)
        self._queue.extend(unfinished)
        return batch

    async def _answer(self, batch: _Batch) -> None:
        texts = [text for _, part in batch for text in part]
        started = time.perf_counter()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._pool, batch[0][0].model.answer, texts)
        except Exception as error:  # whatever a model raises
            if len(batch) == 1:
                _settle(batch[0][0], error)
                return
            for job, part in batch:  # one text that a model cannot take is no reason to fail the requests beside it
                await self._answer([(job, part)])
            return
        seconds = time.perf_counter() - started
        self._metrics.batch_texts.observe(len(texts))
        self._metrics.batch_seconds.observe(seconds)
        newest = len(texts) / max(seconds, 1e-6)
        self._rate = (1 - _NEWEST) * self._rate + _NEWEST * newest if self._rate else newest
        start = 0
        for job, part in batch:
            job.answers.append(answers[start : start + len(part)])
            start += len(part)
            if sum(map(len, job.answers)) == len(job.texts):
                _settle(job, job.answers[0] if len(job.answers) == 1 else np.concatenate(job.answers))


def _settle(job: _Job, outcome: Floats | Exception) -> None:
    """Give a request its answers, or what went wrong, unless it has ended."""
    if job.done.done():
        return
    if isinstance(outcome, Exception):
        job.done.set_exception(outcome)
    else:
        job.done.set_result(outcome)
