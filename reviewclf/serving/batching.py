"""Micro-batching: what arrives while the model is busy goes through it together next."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
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
# A model that answers texts one after the other gets as many at a time as take so long: fewer for a slow one, so that nobody
# waits for a neighbour, and more for one so fast that handing over each alone would cost as much.
_TURN_SECONDS = 0.001


class Model(Protocol):
    """What answers: see :class:`reviewclf.serving.served.ServedModel`."""

    @property
    def most_together(self) -> int | None:
        """Texts that go through it together at most, of those that :meth:`answer` is given; None: any number."""

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


_Outcome = tuple[_Part, Floats | Exception]


class Batcher:
    """Runs models in threads, several requests at a time. Asked from one event loop.

    A batch takes what waits, shared out among the threads that are free, `max_batch` texts at most. A request of many texts
    gives up its place in the queue after each batch, so that it does not hold up short ones. Every request is answered by one
    model, the one that it came with.

    The threads take from the queue themselves and hand each batch's answers to the event loop at once: for a model that answers
    within a millisecond, tasks and executors in between would cost as much as the answer.

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
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the event loop: what came since it last looked round.
        self._arrived: list[_Job] = []
        # All below belongs to whoever holds the lock.
        self._lock = threading.Condition(threading.Lock())
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._busy = 0
        self._last_size = 1
        self._last_requests = 1
        self._rate = 0.0
        self._stopped = False
        metrics.queue_texts.set_function(lambda: self._waiting)

    @property
    def spare(self) -> bool:
        """Whether a thread is free and nothing waits."""
        return self._waiting == 0 and self._busy < self._workers

    def start(self) -> None:
        """Start to take from the queue; call it inside the event loop."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._workers):
            threading.Thread(target=self._work, name=f"model_{number}").start()

    async def stop(self) -> None:
        """Take no more. What still waits ends with :class:`asyncio.CancelledError`, so drain first."""
        with self._lock:
            self._stopped = True
            left = [*self._queue, *self._arrived]
            self._queue.clear()
            self._lock.notify_all()
        self._arrived.clear()
        for job in left:
            job.done.cancel()

    async def submit(self, model: Model, texts: Sequence[str]) -> Floats:
        """Probabilities of `texts` by `model`.

        Raises
        ------
        Problem
            503 with ``Retry-After``: too many texts wait already.
        Exception
            What the model raised on these texts.
        """
        _refuse_beyond(self._max_queue, self._waiting, len(texts), self._rate)
        loop = asyncio.get_running_loop()
        job = _Job(model, texts, loop.create_future(), time.perf_counter())
        # What arrives within one turn of the loop is let in together, so that the threads can share it.
        if not self._arrived:
            loop.call_soon(self._let_in)
        self._arrived.append(job)
        with self._lock:
            self._waiting += len(texts)
        return await job.done

    def _let_in(self) -> None:
        arrived, self._arrived = self._arrived, []
        with self._lock:
            if not self._stopped:
                self._queue.extend(arrived)
                self._lock.notify(len(arrived))
                return
        for job in arrived:  # nobody is left to answer them
            job.done.cancel()

    def _work(self) -> None:
        """What each thread does."""
        while batch := self._next():
            try:
                outcomes = self._run(batch)
            except Exception:  # a bug here must not end the thread: then the server would stand still
                logger.exception("a batch was lost")
                outcomes = [(part, RuntimeError("the batch was lost")) for part in batch]
            with self._lock:
                self._busy -= 1
            try:
                self._loop.call_soon_threadsafe(_deliver, outcomes)  # type: ignore[union-attr]
            except RuntimeError:  # the loop has ended, and nobody waits any more
                return
            del batch, outcomes  # nothing here keeps a model that has been replaced

    def _next(self) -> list[_Part]:
        """Wait for the next batch; an empty one ends the thread."""
        with self._lock:
            while not self._stopped:
                if not self._queue:
                    self._lock.wait()
                    continue
                self._gather()
                if batch := self._take():
                    self._busy += 1
                    if self._queue:
                        self._lock.notify()
                    return batch
            return []

    def _gather(self) -> None:
        """Under load, wait a moment for as many texts as the last batch had."""
        if self._last_requests < 2 or not self._max_wait:
            return
        until = time.perf_counter() + self._max_wait
        while self._waiting < self._last_size and not self._stopped and (left := until - time.perf_counter()) > 0:
            self._lock.wait(left)

    def _take(self) -> list[_Part]:
        """The next batch: jobs of one model from the head of the queue, this free thread's share of what waits."""
        if not self._queue:  # another thread was faster
            return []
        free = max(1, self._workers - self._busy)
        size = min(self._max_batch, max(1, ceil(self._waiting / free)))
        if alone := self._queue[0].model.most_together:
            size = min(size, max(alone, int(_TURN_SECONDS * self._rate / self._workers)))
        now = time.perf_counter()
        batch: list[_Part] = []
        unfinished: list[_Job] = []
        while self._queue and size > 0:
            job = self._queue[0]
            if batch and job.model is not batch[0].job.model:
                break
            self._queue.popleft()
            if job.done.done():  # failed in an earlier part, or nobody waits for it any more
                self._waiting -= job.left
                continue
            if job.taken == 0:
                self._metrics.queue_seconds.observe(now - job.arrived)
            count = min(size, job.left)
            batch.append(_Part(job, job.taken, job.texts[job.taken : job.taken + count]))
            job.taken += count
            size -= count
            self._waiting -= count
            if job.left:
                unfinished.append(job)
        self._queue.extend(unfinished)
        if batch:
            self._last_size, self._last_requests = sum(len(part.texts) for part in batch), len(batch)
        return batch

    def _run(self, batch: list[_Part]) -> list[_Outcome]:
        texts = [text for part in batch for text in part.texts]
        started = time.perf_counter()
        try:
            answers = batch[0].job.model.answer(texts)
        except Exception as error:  # whatever a model raises
            if len(batch) == 1:
                return [(batch[0], error)]
            # One text that a model cannot take is no reason to fail the requests beside it.
            return [outcome for part in batch for outcome in self._run([part])]
        seconds = time.perf_counter() - started
        self._metrics.batch_texts.observe(len(texts))
        self._metrics.batch_seconds.observe(seconds)
        with self._lock:
            self._rate = _smoothed(self._rate, self._workers * len(texts) / max(seconds, 1e-6))
        if len(batch) == 1:
            return [(batch[0], answers)]
        ends = np.cumsum([len(part.texts) for part in batch])
        return list(zip(batch, np.split(answers, ends[:-1]), strict=True))


class Turns:
    """Runs models in the event loop itself, one request a turn: for a process that has nothing else to do.

    Nothing is handed to another thread and back, which takes half as long as a small encoder's answer. The loop sends and reads
    between two turns, so a model that takes long holds up requests that have nothing to do with it by one turn.

    Parameters
    ----------
    max_queue : int
        Texts that may wait; see :class:`Batcher`.
    metrics : Metrics
        Told sizes and times.
    """

    def __init__(self, *, max_queue: int, metrics: Metrics) -> None:
        self._max_queue = max_queue
        self._metrics = metrics
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._rate = 0.0
        metrics.queue_texts.set_function(lambda: self._waiting)

    async def submit(self, model: Model, texts: Sequence[str]) -> Floats:
        """Probabilities of `texts` by `model`; raises as :meth:`Batcher.submit` does."""
        _refuse_beyond(self._max_queue, self._waiting, len(texts), self._rate)
        loop = asyncio.get_running_loop()
        job = _Job(model, texts, loop.create_future(), time.perf_counter())
        self._queue.append(job)
        self._waiting += len(texts)
        if len(self._queue) == 1:
            loop.call_soon(self._turn, loop)
        return await job.done

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        job = self._queue[0]
        try:
            if not job.done.done():  # else nobody waits for it any more
                self._answer(job)
        finally:
            self._queue.popleft()
            self._waiting -= len(job.texts)
            if self._queue:
                loop.call_soon(self._turn, loop)

    def _answer(self, job: _Job) -> None:
        started = time.perf_counter()
        self._metrics.queue_seconds.observe(started - job.arrived)
        try:
            answers = job.model.answer(job.texts)
        except Exception as error:  # whatever a model raises
            job.done.set_exception(error)
            return
        seconds = time.perf_counter() - started
        self._metrics.batch_texts.observe(len(job.texts))
        self._metrics.batch_seconds.observe(seconds)
        self._rate = _smoothed(self._rate, len(job.texts) / max(seconds, 1e-6))
        job.done.set_result(answers)


def _refuse_beyond(limit: int, waiting: int, count: int, rate: float) -> None:
    """Raise :class:`Problem` where `count` texts find no room; the time to come again is that of those who wait."""
    if waiting and waiting + count > limit:
        raise unavailable(
            "overloaded",
            f"{waiting} texts are waiting already, at most {limit} may (REVIEWCLF_SERVING__MAX_QUEUE); come again later",
            retry_after=waiting / rate if rate else 1.0,
        )


def _smoothed(rate: float, newest: float) -> float:
    return newest if not rate else (1 - _NEWEST) * rate + _NEWEST * newest


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    """Give the answers of a batch to those who wait for them, in the event loop."""
    for part, outcome in outcomes:
        job = part.job
        if job.done.done():
            continue
        if isinstance(outcome, BaseException):
            job.done.set_exception(outcome)
            continue
        if len(outcome) == len(job.texts):
            job.done.set_result(outcome)
            continue
        job.parts[part.start] = outcome
        if sum(map(len, job.parts.values())) == len(job.texts):
            job.done.set_result(np.concatenate([job.parts[start] for start in sorted(job.parts)]))
