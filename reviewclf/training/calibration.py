"""Honest probabilities, and from which on an answer is sure enough; both from validation rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reviewclf.training.rows import Floats, Integers

_TEMPERATURES = (0.2, 20.0)


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
    from scipy.special import log_softmax

    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


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
    from sklearn.metrics import precision_recall_curve

    best = probabilities.argmax(axis=1)
    thresholds = {classes[int(column)]: 1.0 for column in np.unique(best)}
    for column, name in enumerate(classes):
        rows = np.flatnonzero(best == column)
        right = [labels[int(row)] == name for row in rows]
        if any(right):
            # The share of right answers from each probability on, the smallest first; at last that of none.
            shares, _, sure = precision_recall_curve(right, probabilities[rows, column])
            thresholds[name] = float(min(sure[shares[:-1] >= target], default=1.0))
    return thresholds
