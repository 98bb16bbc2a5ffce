"""What synthetic rows do to the answers on real rows that the classifier did not see: figures with their intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel

from reviewclf.training.candidates import Candidate
from reviewclf.training.linear import weighted_f1
from reviewclf.training.rows import TrainingJob

DRAWS = 2000

Strings = NDArray[np.object_]


class Figure(BaseModel, frozen=True):
    """One amount on the curve: scores of the class on `n` real rows of it, with 95% bootstrap intervals.

    Attributes
    ----------
    amount : float
        Synthetic rows per real training row of the class.
    rows : int
        Synthetic rows that this makes.
    f1, recall : float
        Of the class; with their bounds.
    weighted_f1 : float
        Over all classes.
    certainty : float
        Share of paired bootstrap draws in which the class's recall is higher than without synthetic rows.
    """

    amount: float
    rows: int
    n: int
    f1: float
    f1_low: float
    f1_high: float
    recall: float
    recall_low: float
    recall_high: float
    weighted_f1: float
    certainty: float


class HeldOutRows:
    """Out-of-fold predictions on the real rows, with any synthetic rows added to what is trained on."""

    def __init__(
        self,
        real: pd.DataFrame,
        candidate: Candidate,
        classes: Sequence[str],
        stems: Mapping[str, list[str]],
        folds: int,
        seed: int,
    ) -> None:
        self._real = real.reset_index(drop=True)
        self._candidate, self._classes, self._stems, self._seed = candidate, list(classes), stems, seed
        self._fold = _folds(self._real, folds, seed)
        hints = self._real["hint"].to_numpy(dtype=bool)
        self._judged = ~hints | hints.all()
        self._true = self._real["label"].to_numpy(dtype=object)[self._judged]

    def predict(self, synthetic: pd.DataFrame) -> Strings:
        """The label predicted for each judged row."""
        predicted = np.full(len(self._real), "", dtype=object)
        columns = ["text_clean", "label", "weight"]
        for k in np.unique(self._fold[self._judged]):
            held = (self._fold == k) & self._judged
            shown = set(self._real.loc[self._fold == k, "text_hash"])
            free = [not shown.intersection(examples) for examples in synthetic["examples"]]
            train = pd.concat([self._real.loc[self._fold != k, columns], synthetic.loc[free, columns]], ignore_index=True)
            # What is held out decides on amounts; settings are not searched for on it.
            job = TrainingJob(train, train.iloc[:0], classes=self._classes, stems=self._stems, seed=self._seed)
            predicted[held] = self._candidate.train(job).predict(self._real.loc[held, "text_clean"].tolist())
        return predicted[self._judged]

    def weighted_f1(self, predicted: Strings) -> float:
        """Over all classes."""
        return weighted_f1(self._true.tolist(), predicted.tolist())

    def figure(self, category: str, predicted: Strings, without: Strings, *, amount: float, rows: int) -> Figure:
        """Scores of one class."""
        true = self._true == category
        cells = np.bincount(4 * true + 2 * (predicted == category) + (without == category), minlength=8)
        draws = np.random.default_rng(self._seed).multinomial(len(true), cells / len(true), size=DRAWS)
        f1, recall = _scores(draws, _WITH)
        (f1_here,), (recall_here,) = _scores(cells[None], _WITH)
        return Figure(
            amount=amount,
            rows=rows,
            n=int(true.sum()),
            **with_interval("f1", f1_here, f1),
            **with_interval("recall", recall_here, recall),
            weighted_f1=self.weighted_f1(predicted),
            certainty=float(np.mean(recall > _scores(draws, _WITHOUT)[1])),
        )


# Cells are numbered 4 * (true) + 2 * (predicted with) + (predicted without).
_WITH, _WITHOUT = 2, 1


def _scores(cells: NDArray[np.int64], which: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 and recall of each row of cell counts, shape (m, 8)."""
    number = np.arange(8)
    is_true, is_predicted = number >= 4, (number & which) > 0
    found, lost, extra = (
        cells[:, chosen].sum(axis=1) for chosen in (is_true & is_predicted, is_true & ~is_predicted, ~is_true & is_predicted)
    )
    return 2 * found / np.maximum(1, 2 * found + lost + extra), found / np.maximum(1, found + lost)


def with_interval(name: str, value: float, draws: NDArray[np.float64]) -> dict[str, float]:
    """A value and the 95% interval of its bootstrap draws, by name."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _folds(real: pd.DataFrame, folds: int, seed: int) -> NDArray[np.intp]:
    """Fold of each row: whole groups, each class spread evenly."""
    first = real.drop_duplicates("group")
    order = [shuffled(f"folds\x00{seed}\x00{group}") for group in first["group"]]
    ranked = first.assign(_order=order).sort_values(["label", "_order"], kind="stable")
    numbers = dict(zip(ranked["group"], np.arange(len(ranked)) % folds, strict=True))
    return np.array([numbers[group] for group in real["group"]], dtype=np.intp)


def shuffled(key: str) -> str:
    """What to sort by for an order that is as good as random and always the same."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
