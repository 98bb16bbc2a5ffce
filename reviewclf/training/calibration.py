"""Honest probabilities, and from which on an answer is sure enough; both from validation rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SMALLEST_TEMPERATURE, _LARGEST_TEMPERATURE = 0.2, 20.0


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Temperature with the smallest negative log-likelihood (Guo et al., On Calibration of Modern Neural Networks, 2017).

    Parameters
    ----------
    logits : array, shape (m, k)
    labels : array of int, shape (m,)
        Columns of the true classes.

    Returns
    -------
    float
        Between 0.2 and 20; 1.0 without rows. On rows that are all right the best would be 0, hence the bound.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, labels]).mean())

    bounds = (np.log(_SMALLEST_TEMPERATURE), np.log(_LARGEST_TEMPERATURE))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def abstain_thresholds(
    probabilities: Floats, labels: Sequence[str], classes: Sequence[str], *, target: float = 0.95
) -> dict[str, float]:
    """By class, the smallest probability from which at least `target` of the answers with this class are right.

    Parameters
    ----------
    probabilities : array, shape (m, k)
    labels : sequence of str, length m
        True classes.
    classes : sequence of str, length k

    Returns
    -------
    dict of str to float
        Classes that are the answer to a row. Where no probability reaches the target: 1.0, so nearly always unsure.
    """
    best = probabilities.argmax(axis=1) if len(labels) else np.empty(0, dtype=np.int64)
    thresholds = {}
    for column in map(int, np.unique(best)):
        rows = np.flatnonzero(best == column)
        sure = probabilities[rows, column]
        right = np.array([labels[int(row)] == classes[column] for row in rows])
        order = np.argsort(-sure, kind="stable")
        sure, right = sure[order], right[order]
        # Equal probabilities are all in or all out.
        last = np.append(sure[1:] != sure[:-1], True)
        enough = np.flatnonzero(last & (np.cumsum(right) / np.arange(1, len(rows) + 1) >= target))
        thresholds[classes[column]] = float(sure[enough[-1]]) if len(enough) else 1.0
    return thresholds
