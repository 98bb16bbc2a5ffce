"""Micro-batching: what arrives while the model is busy goes through it together next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reviewclf.serving.metrics import Metrics
from reviewclf.serving.problems import unavailable

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# How much the newest batch counts in the estimate of texts per second.
_NEWEST = 0.2


class Model(Protocol):
    """What answers: see :class:`reviewclf.serving.served.ServedModel`."""

    @property
    def most_together(self) -> int | None:
        """Texts that may go through it together; None: any number."""

    def answer(self, texts: Sequence[str]) -> Floats:
        """Probabilities, shape (texts, classes)."""


@dataclass(eq=False)
class _Job:
    """The texts of one request, all for one model, and what has been answered of them."""

    model: Model
    texts: Sequence[str]
    done: asyncio.Future[Floats]
    arrived: float
    taken: int = 0
    parts: dict[int, Floats] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return len(self.texts) - self.taken


@dataclass(frozen=True)
class _Part:
    """A stretch of a job's texts in a batch."""

    job: _Job
    start: int
    texts: Sequence[str]


class Batcher:
    """Runs models in threads, several requests at a time. Used from one event loop.

    A batch takes what waits, shared out among the threads that are free, `max_batch` texts at most. A request of many texts
    gives up its place in the queue after each batch, so that it does not hold up short ones. Every request is answered by one
    model, the one that it came with.

    Parameters
    ----------
    workers : int
        Batches that run side by side, each in a thread.
    max_batch : int
        Texts of a batch.
    max_wait : float
        Seconds that a batch waits for as many texts as the last one had, when that one had several requests. Without load
        nothing waits.
    max_queue : int
        Texts that may wait; beyond it :meth:`submit` refuses. A request that alone is larger is let in when nothing waits.
    metrics : Metrics
        Told sizes and times.
    """

    def __init__(self, *, workers: int, max_batch: int, max_wait: float, max_queue: int, metrics: Metrics) -> None:
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._metrics = metrics
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="model")
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._busy = 0
        self._last_size = 1
        self._last_requests = 1
        self._rate = 0.0
        self._arrival = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def spare(self) -> bool:
        """Whether a thread is free and nothing waits."""
        return self._waiting == 0 and self._busy < self._workers

    def start(self) -> None:
        """Start to take from the queue; call it inside the event loop."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]

    async def stop(self) -> None:
        """Take no more. What still waits ends with :class:`asyncio.CancelledError`, so drain first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in self._queue:
            job.done.cancel()
        self._queue.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def submit(self, model: Model, texts: Sequence[str]) -> Floats:
        """Probabilities of `texts` by `model`.

        Raises
        ------
        Problem
            503 with ``Retry-After``: too many texts wait already.
        Exception
            What the model raised on these texts.
        """
        if self._waiting and self._waiting + len(texts) > self._max_queue:
            seconds = self._waiting / self._rate if self._rate else 1.0
            raise unavailable(
                "overloaded",
                f"{self._waiting} texts are waiting already, at most {self._max_queue} may (REVIEWCLF_SERVING__MAX_QUEUE); "
                "come again later",
                retry_after=seconds,
            )
        loop = asyncio.get_running_loop()
        job = _Job(model, texts, loop.create_future(), time.perf_counter())
        self._queue.append(job)
        self._count(len(texts))
        self._arrival.set()
        return await job.done

    def _count(self, change: int) -> None:
        self._waiting += change
        self._metrics.queue_texts.set(self._waiting)

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._arrival.clear()
                await self._arrival.wait()
            await self._gather()
            batch = self._take()
            if not batch:
                continue
            self._busy += 1
            try:
                await self._run(batch)
            except Exception:  # a bug here must not end the worker: then the server would stand still
                logger.exception("a batch was lost")
                for part in batch:
                    if not part.job.done.done():
                        part.job.done.set_exception(RuntimeError("the batch was lost"))
            finally:
                self._busy -= 1

    async def _gather(self) -> None:
        """Under load, wait a moment for as many texts as the last batch had."""
        if self._last_requests < 2 or not self._max_wait:
            return
        until = time.perf_counter() + self._max_wait
        while self._waiting < self._last_size and (left := until - time.perf_counter()) > 0:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Part]:
        """The next batch: jobs of one model from the head of the queue, this free thread's share of what waits."""
        if not self._queue:  # another worker was faster
            return []
        free = max(1, self._workers - self._busy)
        most = self._queue[0].model.most_together or self._max_batch
        size = min(self._max_batch, most, max(1, ceil(self._waiting / free)))
        now = time.perf_counter()
        batch: list[_Part] = []
        unfinished: list[_Job] = []
        while self._queue and size > 0:
            job = self._queue[0]
            if batch and job.model is not batch[0].job.model:
                break
            self._queue.popleft()
            if job.done.done():  # failed in an earlier part, or nobody waits for it any more
                self._count(-job.left)
                continue
            if job.taken == 0:
                self._metrics.queue_seconds.observe(now - job.arrived)
            count = min(size, job.left)
            batch.append(_Part(job, job.taken, job.texts[job.taken : job.taken + count]))
            job.taken += count
            size -= count
            self._count(-count)
            if job.left:
                unfinished.append(job)
        self._queue.extend(unfinished)
        return batch

    async def _run(self, batch: list[_Part]) -> None:
        model = batch[0].job.model
        texts = [text for part in batch for text in part.texts]
        self._last_size, self._last_requests = len(texts), len(batch)
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        try:
            answers = await loop.run_in_executor(self._pool, model.answer, texts)
        except Exception as error:  # whatever a model raises
            if len(batch) == 1:
                self._fail(batch[0].job, error)
                return
            # One text that a model cannot take is no reason to fail the requests beside it.
            for part in batch:
                await self._run([part])
            return
        seconds = time.perf_counter() - started
        self._metrics.batch_texts.observe(len(texts))
        self._metrics.batch_seconds.observe(seconds)
        rate = self._workers * len(texts) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else (1 - _NEWEST) * self._rate + _NEWEST * rate
        start = 0
        for part in batch:
            self._deliver(part, answers[start : start + len(part.texts)])
            start += len(part.texts)

    @staticmethod
    def _deliver(part: _Part, answers: Floats) -> None:
        job = part.job
        job.parts[part.start] = answers
        if job.done.done() or sum(map(len, job.parts.values())) < len(job.texts):
            return
        whole = [job.parts[start] for start in sorted(job.parts)]
        job.done.set_result(whole[0] if len(whole) == 1 else np.concatenate(whole))

    @staticmethod
    def _fail(job: _Job, error: BaseException) -> None:
        if not job.done.done():
            job.done.set_exception(error)
