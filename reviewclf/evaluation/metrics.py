"""Metrics with bootstrap intervals, and the comparison of two models on the same rows.

Intervals are percentile bootstrap intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) over reviews.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from reviewclf.errors import EvaluationError
from reviewclf.evaluation.base import Floats, Integers, Result, encode

Metric = Literal["accuracy", "precision", "recall", "weighted_f1", "macro_f1"]


class Interval(Result):
    """A metric and the bounds of its bootstrap interval, each in [0, 1]."""

    value: float
    low: float
    high: float


class ClassScore(Result):
    """One class: rows that have the label (`support`), rows predicted to have it, and its scores in [0, 1]."""

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float


class Evaluation(Result):
    """How predictions compare with true labels on `n` rows.

    Attributes
    ----------
    precision, recall, weighted_f1 : Interval
        Means over the classes, weighted by support; the weighted recall is therefore the accuracy.
    macro_f1 : Interval
        Plain mean over the classes that occur in the true labels or in the predictions.
    labels : list of str
        All classes, in the order of `confusion`.
    confusion : list of list of int
        ``confusion[i][j]``: rows of true class ``labels[i]`` that were predicted as ``labels[j]``.
    confidence : float
        Coverage of the intervals, such as 0.95.
    """

    n: int
    accuracy: Interval
    precision: Interval
    recall: Interval
    weighted_f1: Interval
    macro_f1: Interval
    per_class: list[ClassScore]
    labels: list[str]
    confusion: list[list[int]]
    confidence: float

    def figures(self) -> dict[str, float]:
        """Each metric and its bounds, by names such as ``weighted_f1``, ``weighted_f1_low`` and ``weighted_f1_high``."""
        found: dict[str, float] = {}
        for name in get_args(Metric):
            interval: Interval = getattr(self, name)
            found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return found


class Difference(Result):
    """A metric of model a minus that of model b on the same rows; `p_not_worse` is the share of draws where a >= b - margin."""

    value: float
    low: float
    high: float
    p_not_worse: float


def evaluate(
    y_true: Sequence[str],
    y_pred: Sequence[str],
    labels: Sequence[str],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Score predictions against true labels.

    Parameters
    ----------
    y_true, y_pred : sequence of str, length n
        Labels; each must be one of `labels`.
    labels : sequence of str, length k
        All classes, in the order wanted for tables. Classes that occur nowhere count in no mean.
    bootstrap : int
        Draws. The rows are drawn with replacement and without stratification: the gold rows are a sample at natural
        frequencies, so how many of each class came in belongs to the uncertainty. A draw of rows is a multinomial draw of
        the cells of the confusion matrix, which is what is drawn here: 1,000 draws take milliseconds at any n.
    confidence : float
        Coverage of the intervals, in (0, 1).

    Returns
    -------
    Evaluation
        A metric that is the same in every draw (all rows right) has an interval of width zero; look at `n` then.

    Raises
    ------
    EvaluationError
        No rows, different lengths, a label outside `labels`, or `labels` repeat.
    """
    _check_bootstrap(bootstrap, confidence)
    true, predicted = encode(labels, y_true=y_true, y_pred=y_pred)
    k = len(labels)
    confusion = np.bincount(true * k + predicted, minlength=k * k).reshape(k, k).astype(np.int64)
    n = len(true)
    draws = np.random.default_rng(seed).multinomial(n, confusion.ravel() / n, size=bootstrap).reshape(bootstrap, k, k)
    values, drawn = _metrics(confusion), _metrics(draws)

    intervals: dict[str, Any] = {}
    for name, value in values.items():
        low, high = _bounds(drawn[name], confidence)
        intervals[name] = Interval(value=float(value), low=low, high=high)
    precision, recall, f1 = _class_scores(confusion)
    return Evaluation(
        n=n,
        **intervals,
        per_class=[
            ClassScore(
                label=label,
                support=int(confusion[i].sum()),
                predicted=int(confusion[:, i].sum()),
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
            )
            for i, label in enumerate(labels)
        ],
        labels=list(labels),
        confusion=confusion.tolist(),
        confidence=confidence,
    )


def paired_bootstrap(
    y_true: Sequence[str],
    pred_a: Sequence[str],
    pred_b: Sequence[str],
    labels: Sequence[str],
    *,
    metric: Metric = "weighted_f1",
    bootstrap: int = 2000,
    confidence: float = 0.95,
    margin: float = 0.0,
    seed: int = 0,
) -> Difference:
    """Compare two models on the same rows: both are scored on the same draws, so what is hard for both cancels out.

    Parameters
    ----------
    y_true, pred_a, pred_b : sequence of str, length n
        True labels, predictions of the model in question (a) and of the one it is held against (b).
    metric : str
        What is compared; see :class:`Evaluation`.
    margin : float
        How much worse a may be and still count as not worse.

    Returns
    -------
    Difference
        Positive when a is better.

    Raises
    ------
    EvaluationError
        As :func:`evaluate`.
    """
    _check_bootstrap(bootstrap, confidence)
    true, first, second = encode(labels, y_true=y_true, pred_a=pred_a, pred_b=pred_b)
    k, n = len(labels), len(true)
    cells, counts = np.unique(np.stack([true * k + first, true * k + second]), axis=1, return_counts=True)
    # Row 0: the counts as they are; the others: draws.
    draws = np.vstack([counts, np.random.default_rng(seed).multinomial(n, counts / n, size=bootstrap)])

    def scores(cell: Integers) -> Floats:
        spread = np.zeros((len(cell), k * k), dtype=np.int64)
        spread[np.arange(len(cell)), cell] = 1
        return _metrics((draws @ spread).reshape(-1, k, k))[metric]

    differences = scores(cells[0]) - scores(cells[1])
    low, high = _bounds(differences[1:], confidence)
    # Equal predictions may differ by rounding alone; that is no loss.
    p_not_worse = float((differences[1:] >= -margin - 1e-12).mean())
    return Difference(value=float(differences[0]), low=low, high=high, p_not_worse=p_not_worse)


def _metrics(confusion: Integers) -> dict[Metric, Floats]:
    """Metrics of confusion matrices of shape (..., k, k); each result has the leading shape."""
    support = confusion.sum(axis=-1)
    total = support.sum(axis=-1)
    precision, recall, f1 = _class_scores(confusion)
    weights = support / total[..., None]
    present = (support + confusion.sum(axis=-2)) > 0
    return {
        "accuracy": np.trace(confusion, axis1=-2, axis2=-1) / total,
        "precision": (weights * precision).sum(axis=-1),
        "recall": (weights * recall).sum(axis=-1),
        "weighted_f1": (weights * f1).sum(axis=-1),
        "macro_f1": (f1 * present).sum(axis=-1) / present.sum(axis=-1),
    }


def _class_scores(confusion: Integers) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 by class, shape (..., k); 0 where a class has no rows to divide by."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return (
        right / np.maximum(predicted, 1),
        right / np.maximum(support, 1),
        2 * right / np.maximum(support + predicted, 1),
    )


def _bounds(values: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_bootstrap(bootstrap: int, confidence: float) -> None:
    if bootstrap < 1 or not 0 < confidence < 1:
        raise EvaluationError(f"expected bootstrap >= 1 and confidence between 0 and 1, found {bootstrap} and {confidence}")
