"""What a candidate is trained on: the rows of a dataset, checked and turned into texts, classes and weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reviewclf.errors import TrainingError
from reviewclf.text import clean_texts

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ENOUGH_ROWS = 30


@dataclass(frozen=True)
class TrainingRows:
    """Rows that count: those with a text and a weight above 0.

    Attributes
    ----------
    texts : list of str, length n
        Cleaned, none of them empty.
    target : array of int, shape (n,)
        Positions of the labels among the k classes.
    weights : array, shape (n,)
        Above 0.
    seen : list of int
        Positions of the classes that occur, ascending, at least two.
    prior : array, shape (k,)
        Shares of the classes by weight.
    """

    texts: list[str]
    target: Integers
    weights: Floats
    seen: list[int]
    prior: Floats


@dataclass(frozen=True)
class TrainingJob:
    """One training: its rows and its circumstances.

    Attributes
    ----------
    train, validation : DataFrame
        Columns ``text_clean``, ``label`` and ``weight``. Choices are made on `validation`, which may be empty and is never
        fitted on; its weights are not used.
    classes : sequence of str, length k
        All categories, in the order wanted for probabilities; those without a training row get probability 0.
    stems : mapping of str to list of str
        Keyword stems by category, for the kinds that use them.
    seed : int
        Of all randomness: equal inputs give an equal classifier.
    encoders : Path or None
        Folder of local checkpoints that stand in for the hub.
    checkpoints : Path or None
        Scratch folder from which a killed training goes on.
    on_epoch : callable or None
        Told the epoch, from 1, and its figures, by the kinds that have epochs. After a kill an epoch may be told once more.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    classes: Sequence[str]
    stems: Mapping[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    encoders: Path | None = None
    checkpoints: Path | None = None
    on_epoch: Callable[[int, dict[str, float]], None] | None = None

    def training_rows(self, title: str, *, min_weight: float = 0.0) -> TrainingRows:
        """The training rows that count.

        Parameters
        ----------
        title : str
            What errors begin with, such as ``candidate logreg``.
        min_weight : float
            Lighter rows are left out where there are enough others, see :func:`without_light_rows`.

        Raises
        ------
        TrainingError
            A column is missing, a label is unknown, a weight is negative or NaN, or fewer than two classes are left.
        """
        _check_columns(title, "train", self.train)
        frame = without_light_rows(self.train, min_weight)
        if len(frame) < len(self.train):
            logger.info("%s: %d rows that weigh less than %g are left out", title, len(self.train) - len(frame), min_weight)
        weights = pd.to_numeric(frame["weight"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = ~(np.isfinite(weights) & (weights >= 0))
        if wrong.any():
            row = int(wrong.argmax())
            raise TrainingError(
                f"{title}: train, row {row}, column weight: expected a number >= 0, found {frame['weight'].iloc[row]!r}"
            )
        texts = clean_texts(frame["text_clean"].tolist())
        kept = [row for row, text in enumerate(texts) if text and weights[row] > 0]
        target = self._positions(title, "train", frame["label"].tolist(), kept)
        weights = weights[kept]
        seen = np.unique(target).tolist()
        if len(seen) < 2:
            found = ", ".join(self.classes[position] for position in seen) or "none"
            raise TrainingError(f"{title}: training needs rows of at least two classes, found {found}; label more reviews")
        prior = np.bincount(target, weights=weights, minlength=len(self.classes)) / weights.sum()
        return TrainingRows([texts[row] for row in kept], target, weights, seen, prior)

    def validation_rows(self, title: str) -> list[tuple[str, int]]:
        """Cleaned texts of the validation rows that have one, and positions of their labels among the classes.

        Raises
        ------
        TrainingError
            A column is missing, or a label is unknown.
        """
        _check_columns(title, "validation", self.validation)
        labels = self.validation["label"].tolist()
        positions = self._positions(title, "validation", labels, range(len(labels))).tolist()
        texts = clean_texts(self.validation["text_clean"].tolist())
        return [(text, position) for text, position in zip(texts, positions, strict=True) if text]

    def _positions(self, title: str, name: str, labels: Sequence[str], rows: Sequence[int]) -> Integers:
        position = {label: column for column, label in enumerate(self.classes)}
        for row in rows:
            if labels[row] not in position:
                raise TrainingError(
                    f"{title}: {name}, row {row}, column label: {labels[row]!r} is no category of the taxonomy: "
                    f"{', '.join(self.classes)}"
                )
        return np.array([position[labels[row]] for row in rows], dtype=np.int64)


def without_light_rows(rows: pd.DataFrame, min_weight: float) -> pd.DataFrame:
    """Rows that weigh `min_weight` or more, and the lighter ones of classes with fewer than 30 such rows.

    Beside labels that somebody read for, thousands of hints cost an encoder most of its time and teach it the hints' mistakes.
    """
    light = pd.to_numeric(rows["weight"], errors="coerce") < min_weight
    heavy_rows = rows.loc[~light, "label"].value_counts()
    return rows[~(light & rows["label"].isin(heavy_rows.index[heavy_rows >= _ENOUGH_ROWS]))]


def class_weights(target: Integers, weights: Floats, *, classes: int, power: float) -> Floats:
    """Weight of each class: (rows / (classes that occur * rows of the class)) ** power, rows counted by their weights.

    Parameters
    ----------
    target : array of int, shape (n,)
        Classes of the training rows.
    weights : array, shape (n,)
        Weights of the rows, above 0.
    classes : int
        k.
    power : float
        1 is scikit-learn's `balanced`, 0 leaves the classes as they are.

    Returns
    -------
    array, shape (k,)
        0 for classes that do not occur.
    """
    totals = np.bincount(target, weights=weights, minlength=classes)
    seen = totals > 0
    result = np.zeros(classes)
    result[seen] = (totals.sum() / (seen.sum() * totals[seen])) ** power
    return result


def _check_columns(title: str, name: str, frame: pd.DataFrame) -> None:
    missing = [column for column in ("text_clean", "label", "weight") if column not in frame.columns]
    if missing:
        raise TrainingError(f"{title}: {name} has no column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}")
