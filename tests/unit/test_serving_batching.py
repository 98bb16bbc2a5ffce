"""Micro-batching: what waits goes together, nobody waits for a large request, a full queue says so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from reviewclf.serving.batching import Batcher, Turns
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.problems import Problem


class Recorder:
    """A model that notes its batches, can be held back, and answers each text's own number."""

    def __init__(self, *, poison: str | None = None, most_together: int | None = None, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()
        self.poison = poison
        self.most_together = most_together
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
        settings = {"workers": 1, "max_batch": 8, "max_wait": 0.0, "max_queue": 100, **options}
        batcher = Batcher(metrics=Metrics(), **settings)
        batcher.start()
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

    run(scenario, max_wait=5.0)


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


def test_free_threads_share_what_waits() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.submit(model, [str(n)])) for n in range(4)]
        await until(lambda: len(model.batches) == 2)
        model.go.set()
        await asyncio.gather(*tasks)
        assert sorted(map(len, model.batches)) == [2, 2]

    run(scenario, workers=2)


def test_a_model_that_reads_texts_alone_is_given_as_many_as_take_a_few_milliseconds() -> None:
    fast, slow = Recorder(most_together=1), Recorder(most_together=1, seconds=0.01)

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
        assert max(map(len, slow.batches)) == 1
        assert max(map(len, fast.batches)) > 1

    run(scenario)


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


def test_what_comes_after_the_end_is_not_left_waiting() -> None:
    async def scenario(batcher: Batcher) -> None:
        await batcher.stop()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(batcher.submit(Recorder(), ["1"]), 5)

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


def test_under_load_a_batch_waits_for_as_many_texts_as_the_last_one_had() -> None:
    model = Recorder()

    async def scenario(batcher: Batcher) -> None:
        model.go.clear()
        tasks = [asyncio.create_task(batcher.submit(model, ["0"]))]
        await until(lambda: len(model.batches) == 1)
        tasks += [asyncio.create_task(batcher.submit(model, [str(n)])) for n in range(1, 4)]
        await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.gather(*tasks)
        late = []
        for n in range(4, 7):
            late.append(asyncio.create_task(batcher.submit(model, [str(n)])))
            await asyncio.sleep(0.005)
        await asyncio.gather(*late)
        assert model.batches == [["0"], ["1", "2", "3"], ["4", "5", "6"]]

    run(scenario, max_wait=5.0)


def turns(
    scenario: Callable[[Turns], Coroutine[Any, Any, None]], *, max_queue: int = 100, metrics: Metrics | None = None
) -> None:
    asyncio.run(asyncio.wait_for(scenario(Turns(max_queue=max_queue, metrics=metrics or Metrics())), 20))


def test_turns_answer_one_request_after_the_other_in_order() -> None:
    model = Recorder(poison="4")
    metrics = Metrics()

    async def scenario(queue: Turns) -> None:
        found = await asyncio.gather(
            *(queue.submit(model, texts) for texts in (["1"], ["2", "3"], ["4"], ["5"])), return_exceptions=True
        )
        assert [answer.tolist() if isinstance(answer, np.ndarray) else str(answer) for answer in found] == [
            [[1.0]],
            [[2.0], [3.0]],
            "cannot read this one",
            [[5.0]],
        ]
        assert model.batches == [["1"], ["2", "3"], ["4"], ["5"]]
        assert (await queue.submit(model, ["6"])).tolist() == [[6.0]]

    turns(scenario, metrics=metrics)
    figures = metrics.render().decode()
    assert "reviewclf_batch_texts_count 4.0" in figures  # the one that failed is no answer
    assert "reviewclf_queue_seconds_count 5.0" in figures
    assert "reviewclf_queue_texts 0.0" in figures


def test_between_two_turns_the_loop_does_other_things() -> None:
    model = Recorder(seconds=0.01)

    async def scenario(queue: Turns) -> None:
        answers = [asyncio.ensure_future(queue.submit(model, [str(number)])) for number in range(10)]
        looks = 0
        while not all(answer.done() for answer in answers):
            looks += 1
            await asyncio.sleep(0)
        assert looks >= 10

    turns(scenario)


def test_turns_refuse_what_finds_no_room_and_skip_whom_nobody_waits_for() -> None:
    model = Recorder()

    async def scenario(queue: Turns) -> None:
        first, gone, third = (asyncio.ensure_future(queue.submit(model, [str(number)])) for number in range(3))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await queue.submit(model, ["4"])
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        gone.cancel()
        assert ((await first).tolist(), (await third).tolist()) == ([[0.0]], [[2.0]])
        assert model.batches == [["0"], ["2"]]
        assert (await queue.submit(model, ["5"] * 50)).shape == (50, 1)  # nothing waits: one that is alone may be larger

    turns(scenario, max_queue=3)
