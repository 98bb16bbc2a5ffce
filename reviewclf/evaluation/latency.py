"""Seconds per review of a function that answers; which one is measured in a retrain, see :mod:`reviewclf.stages.evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reviewclf.errors import EvaluationError
from reviewclf.evaluation.base import Result


class Latency(Result):
    """Seconds per call with one text (`p50`, `p95` over `n` calls) and per text of a batch."""

    p50: float
    p95: float
    batch_seconds_per_example: float
    n: int


def measure_latency(
    predict: Callable[[list[str]], Any], texts: Sequence[str], *, single: int = 100, batch: int = 256, warmup: int = 5
) -> Latency:
    """Time the serving path.

    Parameters
    ----------
    predict : callable
        Takes a list of texts; its answer is thrown away.
    texts : sequence of str
        Real reviews, taken in turn and again from the start when there are too few.
    single, batch, warmup : int
        Timed calls with one text each; texts in the timed batch; calls before that, not timed.

    Returns
    -------
    Latency
        In seconds, by the wall clock.

    Raises
    ------
    EvaluationError
        There are no texts, or `single` or `batch` is not positive.
    """
    if not texts or single < 1 or batch < 1:
        raise EvaluationError(f"latency needs texts and positive counts: {len(texts)} texts, single={single}, batch={batch}")
    for i in range(warmup):
        predict([texts[i % len(texts)]])
    seconds = [_seconds(predict, [texts[i % len(texts)]]) for i in range(single)]
    together = _seconds(predict, [texts[i % len(texts)] for i in range(batch)])
    p50, p95 = np.percentile(seconds, [50, 95])
    return Latency(p50=float(p50), p95=float(p95), batch_seconds_per_example=together / batch, n=single)


def _seconds(predict: Callable[[list[str]], Any], texts: list[str]) -> float:
    started = time.perf_counter()
    predict(texts)
    return time.perf_counter() - started
