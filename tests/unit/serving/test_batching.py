"""Micro-batching: what waits goes together, nobody waits for a large request, a full queue says so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from reviewclf.serving.batching import Batcher
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.problems import Problem


class Recorder:
    """A model that notes its batches, can be held back, and answers each text's own number."""

    def __init__(self, *, poison: str | None = None, alone: bool = False, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()
        self.poison = poison
        self.alone = alone
        self.seconds = seconds

    def answer(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        assert self.go.wait(10)
        time.sleep(self.seconds)
        if self.poison in texts:
            raise ValueError("cannot read this one")
        return np.array([[float(text)] for text in texts])


def run(scenario: Callable[[Batcher], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def whole() -> None:
        settings = {"max_batch": 8, "max_queue": 100, "threads": 1, **options}
        batcher = Batcher(metrics=Metrics(), **settings)
        await batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher), 20)
        finally:
            await batcher.stop()

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_single_request_goes_through_at_once_and_alone() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        assert (await batcher.submit(model, ["7"])).tolist() == [[7.0]]
        assert model.batches == [["7"]]

    run(scenario)


def test_what_arrives_while_the_model_is_busy_goes_together_and_everybody_gets_their_own() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.submit(model, ["0"]))
        await until(lambda: len(model.batches) == 1)
        others = [asyncio.create_task(batcher.submit(model, [str(n), str(n + 100)])) for n in range(1, 5)]
        await asyncio.sleep(0.01)
        model.go.set()
        assert (await first).tolist() == [[0.0]]
        assert [(await other).ravel().tolist() for other in others] == [[n, n + 100] for n in range(1, 5)]
        assert model.batches[1:] == [["1", "101", "2", "102", "3", "103", "4", "104"]]

    run(scenario)


def test_a_large_request_lets_short_ones_pass_between_its_batches() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        large = asyncio.create_task(batcher.submit(model, [str(n) for n in range(40)]))
        await until(lambda: len(model.batches) == 1)
        short = asyncio.create_task(batcher.submit(model, ["1000"]))
        await asyncio.sleep(0.01)
        model.go.set()
        await short
        assert (await large).ravel().tolist() == list(range(40))
        assert max(map(len, model.batches)) <= 8
        assert [("1000" in batch) for batch in model.batches] == [False, False, True, False, False, False]

    run(scenario)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_that_reads_texts_alone_is_given_as_many_as_take_a_few_milliseconds(threads: int) -> None:
    fast, slow = Recorder(alone=True), Recorder(alone=True, seconds=0.01)

    async def scenario(batcher: Batcher) -> None:
        for model in (slow, fast):
            for _ in range(30):  # until the batcher knows how fast it is
                await batcher.submit(model, ["0"])
            model.batches.clear()
            model.go.clear()
            tasks = [asyncio.create_task(batcher.submit(model, ["0"]))]
            await until(lambda model=model: len(model.batches) == 1)  # type: ignore[misc]
            tasks += [asyncio.create_task(batcher.submit(model, [str(n)])) for n in range(1, 7)]
            await asyncio.sleep(0.01)
            model.go.set()
            assert [answer.item() for answer in await asyncio.gather(*tasks)] == list(range(7))
        assert max(map(len, slow.batches)) == threads
        assert max(map(len, fast.batches)) > threads

    run(scenario, threads=threads)


def test_a_full_queue_refuses_with_the_time_to_come_again_and_loses_nothing_it_took() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.submit(model, ["0"]))]
        await until(lambda: len(model.batches) == 1)
        tasks += [asyncio.create_task(batcher.submit(model, [str(n)])) for n in range(1, 6)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="REVIEWCLF_SERVING__MAX_QUEUE") as caught:
            await batcher.submit(model, ["9"])
        assert caught.value.status == 503
        assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        model.go.set()
        assert [answer.item() for answer in await asyncio.gather(*tasks)] == [0, 1, 2, 3, 4, 5]

    run(scenario, max_queue=5)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        assert len(await batcher.submit(model, [str(n) for n in range(30)])) == 30

    run(scenario, max_queue=5)


def test_what_still_waits_at_the_end_is_not_left_waiting() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.submit(model, [str(n)])) for n in range(2)]
        await until(lambda: len(model.batches) == 1)
        tasks.append(asyncio.create_task(batcher.submit(model, ["2"])))
        await asyncio.sleep(0)
        await batcher.stop()
        model.go.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(tasks[-1], 5)

    run(scenario)


def test_a_text_that_the_model_cannot_take_fails_its_own_request_only() -> None:
    model = Recorder(poison="13")

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.submit(model, ["0"]))
        await until(lambda: len(model.batches) == 1)
        tasks = [asyncio.create_task(batcher.submit(model, [text])) for text in ("1", "13", "2")]
        await asyncio.sleep(0.01)
        model.go.set()
        await first
        good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, ValueError)
        assert (good.item(), fine.item()) == (1.0, 2.0)  # type: ignore[union-attr]
        assert (await batcher.submit(model, ["3"])).item() == 3.0

    run(scenario)


def test_requests_for_two_models_never_share_a_batch() -> None:
    old, new = Recorder(), Recorder()

    async def scenario(batcher: Batcher) -> None:
        old.go.clear()
        tasks = [asyncio.create_task(batcher.submit(old, ["0"]))]
        await until(lambda: len(old.batches) == 1)
        tasks += [asyncio.create_task(batcher.submit(model, [str(n)])) for n, model in enumerate((old, new, old), 1)]
        await asyncio.sleep(0.01)
        old.go.set()
        assert [answer.item() for answer in await asyncio.gather(*tasks)] == [0, 1, 2, 3]
        assert (old.batches, new.batches) == ([["0"], ["1"], ["3"]], [["2"]])

    run(scenario)
