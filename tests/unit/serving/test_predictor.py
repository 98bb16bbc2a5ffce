"""What a process of the server answers with: its share of the queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from reviewclf.serving.metrics import Metrics
from reviewclf.serving.predictor import Predictor
from reviewclf.serving.problems import Problem
from reviewclf.settings import ServingSettings


class _Held:
    """A model that answers nothing until it may."""

    alone = False

    def __init__(self) -> None:
        self.go = threading.Event()

    def answer(self, texts: Sequence[str]) -> np.ndarray:
        assert self.go.wait(10)
        return np.ones((len(texts), 1))


@pytest.mark.parametrize(
    ("max_queue", "workers", "max_texts", "share"),
    [
        (100, 1, 10, 100),
        (100, 4, 10, 25),
        (101, 4, 10, 26),
        (100, 4, 30, 60),  # two of the largest requests
        (100, 4, 500, 100),  # never more than what all may keep waiting
    ],
)
def test_each_process_lets_its_share_of_the_queue_wait(max_queue: int, workers: int, max_texts: int, share: int) -> None:
    settings = ServingSettings(max_queue=max_queue, workers=workers, max_texts=max_texts, max_batch=1)
    model: Any = _Held()

    async def scenario() -> None:
        batcher = Predictor.from_settings(settings, Metrics()).batcher
        await batcher.start()
        asked = [asyncio.create_task(batcher.submit(model, ["held"]))]
        await asyncio.sleep(0.01)  # the model has taken the first
        asked += [asyncio.create_task(batcher.submit(model, ["waits"])) for _ in range(200)]
        await asyncio.sleep(0.01)
        refused = sum(task.done() and isinstance(task.exception(), Problem) for task in asked)
        assert len(asked) - 1 - refused == share
        model.go.set()
        for task in asked:
            with suppress(Problem):
                await task
        await batcher.stop()

    asyncio.run(scenario())
