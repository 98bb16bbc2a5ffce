"""Scores with their uncertainty: metrics, confusion matrix, calibration, comparison of two models, latency. Pure functions.

Intervals are percentile bootstrap intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) over reviews.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from reviewclf.errors import EvaluationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metric = Literal["accuracy", "precision", "recall", "weighted_f1", "macro_f1"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Result):
    """A metric and the bounds of its bootstrap interval, each in [0, 1]."""

    value: float
    low: float
    high: float


class ClassScore(_Result):
    """One class: rows that have the label (`support`), rows predicted to have it, and its scores in [0, 1]."""

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float


class Evaluation(_Result):
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


class Difference(_Result):
    """A metric of model a minus that of model b on the same rows; `p_not_worse` is the share of draws where a >= b."""

    value: float
    low: float
    high: float
    p_not_worse: float


class ReliabilityBin(_Result):
    """Rows whose confidence lies in (low, high]: how many, how sure the model is of them, how often it is right."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class Calibration(_Result):
    """Expected calibration error in [0, 1] and the reliability table behind it."""

    value: float
    n: int
    bins: list[ReliabilityBin]


class Latency(_Result):
    """Seconds per call with one text (`p50`, `p95` over `n` calls) and per text of a batch."""

    p50: float
    p95: float
    batch_seconds_per_example: float
    n: int


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
    true, predicted = _encode(labels, y_true=y_true, y_pred=y_pred)
    k = len(labels)
    confusion = np.bincount(true * k + predicted, minlength=k * k).reshape(k, k).astype(np.int64)
    n = len(true)
    draws = np.random.default_rng(seed).multinomial(n, confusion.ravel() / n, size=bootstrap).reshape(bootstrap, k, k)
    values, drawn = _metrics(confusion), _metrics(draws)

    def interval(name: Metric) -> Interval:
        low, high = _bounds(drawn[name], confidence)
        return Interval(value=float(values[name]), low=low, high=high)

    precision, recall, f1 = _class_scores(confusion)
    return Evaluation(
        n=n,
        accuracy=interval("accuracy"),
        precision=interval("precision"),
        recall=interval("recall"),
        weighted_f1=interval("weighted_f1"),
        macro_f1=interval("macro_f1"),
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
    seed: int = 0,
) -> Difference:
    """Compare two models on the same rows: both are scored on the same draws, so what is hard for both cancels out.

    Parameters
    ----------
    y_true, pred_a, pred_b : sequence of str, length n
        True labels, predictions of the model in question (a) and of the one it is held against (b).
    metric : str
        What is compared; see :class:`Evaluation`.

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
    true, first, second = _encode(labels, y_true=y_true, pred_a=pred_a, pred_b=pred_b)
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
    p_not_worse = float((differences[1:] >= -1e-12).mean())
    return Difference(value=float(differences[0]), low=low, high=high, p_not_worse=p_not_worse)


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
    (true,) = _encode(labels, y_true=y_true)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(true), len(labels)):
        raise EvaluationError(f"probabilities: expected shape {(len(true), len(labels))} (rows, labels), found {p.shape}")
    wrong = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & np.isclose(p.sum(axis=1), 1.0, atol=1e-6))
    if wrong.any():
        row = int(wrong.argmax())
        raise EvaluationError(f"probabilities, row {row}: expected numbers >= 0 that sum to 1, found {p[row].tolist()}")
    confidence, right = p.max(axis=1), p.argmax(axis=1) == true
    edges = np.linspace(0.0, 1.0, bins + 1)
    member = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    table, error = [], 0.0
    for i in range(bins):
        inside = member == i
        rows = int(inside.sum())
        sure, accurate = (float(confidence[inside].mean()), float(right[inside].mean())) if rows else (None, None)
        if sure is not None and accurate is not None:
            error += rows / len(true) * abs(accurate - sure)
        table.append(
            ReliabilityBin(low=float(edges[i]), high=float(edges[i + 1]), rows=rows, confidence=sure, accuracy=accurate)
        )
    return Calibration(value=error, n=len(true), bins=table)


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


def plot_confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Draw the confusion matrix: in each cell the rows and their share of the true class, which is also its shade.

    Returns
    -------
    matplotlib.figure.Figure
        Drawn without a display and outside pyplot's registry, so there is nothing to close.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(evaluation.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    k = len(evaluation.labels)
    font = {"fontfamily": "DejaVu Sans"}  # comes with matplotlib and has Cyrillic letters
    figure = Figure(figsize=(4.0 + 0.8 * k, 2.6 + 0.68 * k), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for i in range(k):
        for j in range(k):
            if counts[i, j]:
                ink = "white" if shares[i, j] > 0.55 else "#14304d"
                axes.text(j, i, f"{counts[i, j]}\n{shares[i, j]:.0%}", ha="center", va="center", color=ink, fontsize=9, **font)
    names = [f"{label} ({int(n)})" for label, n in zip(evaluation.labels, counts.sum(axis=1), strict=True)]
    axes.set_xticks(range(k), evaluation.labels, rotation=40, ha="right", rotation_mode="anchor", **font)
    axes.set_yticks(range(k), names, **font)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#d5dde5", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", **font)
    axes.set_ylabel("true (rows)", **font)
    f1 = evaluation.weighted_f1
    subtitle = f"weighted F1 {f1.value:.3f} ({evaluation.confidence:.0%} interval {f1.low:.3f} to {f1.high:.3f}), n = {evaluation.n}"
    axes.set_title(f"{title}\n{subtitle}", fontsize=11, **font)
    return figure


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
    if bootstrap < 1 or not 0 < confidence < 1 or math.isnan(confidence):
        raise EvaluationError(f"expected bootstrap >= 1 and confidence between 0 and 1, found {bootstrap} and {confidence}")


def _encode(labels: Sequence[str], **columns: Sequence[str]) -> list[Integers]:
    position = {label: i for i, label in enumerate(labels)}
    if len(position) != len(labels):
        raise EvaluationError(f"labels repeat: {sorted({label for label in labels if list(labels).count(label) > 1})}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise EvaluationError(f"lengths differ: {lengths}; every row needs one true and one predicted label")
    if not all(lengths.values()):
        raise EvaluationError("there are no rows to score; give at least one labelled review")
    encoded = []
    for name, values in columns.items():
        for row, value in enumerate(values):
            if value not in position:
                raise EvaluationError(f"{name}, row {row}: unknown label {value!r}; known: {', '.join(labels)}")
        encoded.append(np.array([position[value] for value in values], dtype=np.int64))
    return encoded


def _seconds(predict: Callable[[list[str]], Any], texts: list[str]) -> float:
    started = time.perf_counter()
    predict(texts)
    return time.perf_counter() - started
