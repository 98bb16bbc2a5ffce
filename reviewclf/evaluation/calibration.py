"""Whether a model is as often right as it is sure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reviewclf.errors import EvaluationError
from reviewclf.evaluation.base import Floats, Result, encode


class ReliabilityBin(Result):
    """Rows whose confidence lies in (low, high]: how many, how sure the model is of them, how often it is right."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class Calibration(Result):
    """Expected calibration error in [0, 1] and the reliability table behind it."""

    value: float
    n: int
    bins: list[ReliabilityBin]


def expected_calibration_error(
    y_true: Sequence[str], probabilities: Floats, labels: Sequence[str], *, bins: int = 10
) -> Calibration:
    """How far confidence is from accuracy (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).

    Parameters
    ----------
    y_true : sequence of str, length n
    probabilities : array, shape (n, k)
        Columns in the order of `labels`; each row sums to 1. The largest entry is the confidence.
    bins : int
        Bins of equal width over (0, 1].

    Returns
    -------
    Calibration
        ``value``: mean over bins, weighted by rows, of |accuracy - confidence|; the table keeps empty bins.

    Raises
    ------
    EvaluationError
        As :func:`evaluate`, or the probabilities have another shape, are not finite or do not sum to 1.
    """
    (true,) = encode(labels, y_true=y_true)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(true), len(labels)):
        raise EvaluationError(f"probabilities: expected shape {(len(true), len(labels))} (rows, labels), found {p.shape}")
    wrong = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & np.isclose(p.sum(axis=1), 1.0, atol=1e-6))
    if wrong.any():
        row = int(wrong.argmax())
        raise EvaluationError(f"probabilities, row {row}: expected numbers >= 0 that sum to 1, found {p[row].tolist()}")
    return reliability(p.argmax(axis=1) == true, p.max(axis=1), bins=bins)


def reliability(right: NDArray[np.bool_], confidence: Floats, *, bins: int = 10) -> Calibration:
    """Expected calibration error and reliability table of answers that state a confidence.

    Parameters
    ----------
    right : array of bool, shape (n,), n > 0
        Whether each answer is right.
    confidence : array, shape (n,)
        Its confidence in [0, 1].
    bins : int
        Bins of equal width over (0, 1].
    """
    if len(right) == 0 or len(right) != len(confidence):
        raise EvaluationError(
            f"a reliability table needs as many confidences as answers, and one at least: {len(right)} answers"
        )
    edges = np.linspace(0.0, 1.0, bins + 1)
    member = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    table, error = [], 0.0
    for i in range(bins):
        inside = member == i
        rows = int(inside.sum())
        sure, accurate = (float(confidence[inside].mean()), float(right[inside].mean())) if rows else (None, None)
        if sure is not None and accurate is not None:
            error += rows / len(right) * abs(accurate - sure)
        table.append(
            ReliabilityBin(low=float(edges[i]), high=float(edges[i + 1]), rows=rows, confidence=sure, accuracy=accurate)
        )
    return Calibration(value=error, n=len(right), bins=table)
