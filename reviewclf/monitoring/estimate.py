"""Weighted F1 without labels, from how sure the champion is; and how far such estimates were off once labels came in.

Confidence-based performance estimation: where probabilities are honest, they say how many answers of which category are right,
hence the expected confusion matrix and every metric of it (Guillory and others, Predicting with Confidence on Unseen
Distributions, ICCV 2021, for accuracy; NannyML's CBPE for confusion matrices). They are made honest by one temperature, fitted
on the champion's validation rows. Labels there and later are votes, so what is estimated is the F1 that votes would show:
agreement, not accuracy. What the estimate cannot see is a shift in what words mean: a model that is surely wrong is taken at
its word. That is why the error on past nights stands beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reviewclf.training.calibration import fit_temperature
from reviewclf.training.rows import Floats, Integers

_DRAWS = 200
_REFITS = 20
_FEWEST = 50


class Estimate(NamedTuple):
    """Weighted F1 and its 95% interval, each in [0, 1]."""

    value: float
    low: float
    high: float


class Calibrator:
    """Makes a model's probabilities honest.

    Parameters
    ----------
    probabilities : array, shape (m, k)
        On rows that the model was not fitted to.
    labels : array of int, shape (m,)
        Columns of their labels. With fewer than 50 rows the probabilities are left as they are.
    seed : int
        Of the bootstrap over these rows, whose spread is part of an estimate's interval.
    """

    def __init__(self, probabilities: Floats, labels: Integers, *, seed: int = 0) -> None:
        self.temperature = 1.0
        self.refits: list[float] = [1.0]
        if len(labels) < _FEWEST:
            return
        logits = _logits(probabilities)
        self.temperature = fit_temperature(logits, labels)
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(labels), size=(_REFITS, len(labels)))
        self.refits = [fit_temperature(logits[chosen], labels[chosen]) for chosen in rows]

    def __call__(self, probabilities: Floats, temperature: float | None = None) -> Floats:
        """Calibrated probabilities, same shape; rows sum to 1."""
        from scipy.special import softmax

        honest: Floats = softmax(_logits(probabilities) / (temperature or self.temperature), axis=1)
        return honest


def estimate_f1(probabilities: Floats, calibrator: Calibrator, *, seed: int = 0) -> Estimate | None:
    """Weighted F1 that the answers (likeliest categories) would have; None without rows.

    The interval has three sources: which reviews came, which label each would get, and the calibration.

    Parameters
    ----------
    probabilities : array, shape (n, k)
        As the model gave them.
    calibrator : Calibrator
    seed : int
    """
    n = len(probabilities)
    if not n:
        return None
    answers = probabilities.argmax(axis=1)
    value = weighted_f1(_expected(calibrator(probabilities), answers))
    rng = np.random.default_rng(seed)
    draws = []
    for draw in range(_DRAWS):
        honest = calibrator(probabilities, calibrator.refits[draw % len(calibrator.refits)])
        chosen = rng.integers(n, size=n)
        cumulated = honest[chosen].cumsum(axis=1)
        labels = (rng.random((n, 1)) * cumulated[:, -1:] > cumulated).sum(axis=1)
        draws.append(weighted_f1(_confusion(labels, answers[chosen], probabilities.shape[1])))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def seen_f1(labels: Integers, answers: Integers, classes: int) -> float:
    """Weighted F1 of the answers whose labels are known."""
    return weighted_f1(_confusion(labels, answers, classes))


def weighted_f1(confusion: Floats) -> float:
    """F1 by class, weighted by support, of a confusion matrix with true classes in rows; entries may be expectations."""
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    both = support + predicted
    f1 = np.divide(2 * np.diagonal(confusion), both, out=np.zeros_like(both), where=both > 0)
    return float((support * f1).sum() / support.sum())


def _expected(honest: Floats, answers: Integers) -> Floats:
    confusion = np.zeros((honest.shape[1], honest.shape[1]))
    np.add.at(confusion.T, answers, honest)
    return confusion


def _confusion(labels: Integers, answers: Integers, classes: int) -> Floats:
    counts = np.bincount(labels * classes + answers, minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.float64)


def _logits(probabilities: Floats) -> Floats:
    logits: Floats = np.log(np.maximum(probabilities, 1e-6))
    return logits
