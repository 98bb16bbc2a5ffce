"""Batch scoring: reviews in, a model's answers out; what `reviewclf predict` and the DAG reviews_score share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reviewclf.data.frames import is_missing
from reviewclf.errors import DataContractError
from reviewclf.text import is_misread
from reviewclf.training.model import UNSURE

PREDICTION_COLUMNS = ("predicted_label", "confidence", "model_version")

# Probabilities of all categories travel as dictionaries; so many reviews of them are held at once.
_CHUNK = 4_096


class Model(Protocol):
    """What scores: see :class:`reviewclf.registry.model.LoadedModel`."""

    @property
    def version(self) -> str:
        """Goes into the column ``model_version``."""

    def predict(self, texts: Sequence[str | None], *, abstain: bool = False) -> pd.DataFrame:
        """Columns ``label``, ``confidence`` and ``probabilities``, one row a text; `abstain` allows the label «не уверен»."""


class Answers(NamedTuple):
    """What a model says of n texts.

    Attributes
    ----------
    classes : list of str, length k
        All categories that the model knows; empty for n = 0.
    labels : list of str, length n
        Likeliest category, also where the model abstains.
    confidence : array of float64, shape (n,)
        Its probability, rounded to six digits.
    abstained : array of bool, shape (n,)
        Whether that is below the model's threshold for the category.
    probabilities : array of float64, shape (n, k)
        Columns in the order of `classes`; rows sum to 1.
    """

    classes: list[str]
    labels: list[str]
    confidence: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    probabilities: NDArray[np.float64]


def answer(model: Model, texts: Sequence[str | None]) -> Answers:
    """Score texts; missing ones are scored as empty ones. Memory is bounded by the answers, not by how they travel."""
    classes: list[str] = []
    confidence, abstained, probabilities = [np.empty(0)], [np.empty(0, dtype=bool)], []
    for start in range(0, len(texts), _CHUNK):
        part = ["" if is_missing(text) else str(text) for text in texts[start : start + _CHUNK]]
        answers = model.predict(part, abstain=True)
        said: list[dict[str, float]] = answers["probabilities"].tolist()
        classes = classes or list(said[0])
        probabilities.append(np.array([[row[name] for name in classes] for row in said], dtype=np.float64))
        confidence.append(answers["confidence"].to_numpy(dtype=np.float64))
        abstained.append((answers["label"] == UNSURE).to_numpy(dtype=bool))
    together = np.concatenate(probabilities) if probabilities else np.empty((0, 0))
    labels = [classes[position] for position in together.argmax(axis=1)] if len(together) else []
    return Answers(classes, labels, np.concatenate(confidence).round(6), np.concatenate(abstained), together)


def predict_frame(
    frame: pd.DataFrame, model: Model, *, text_column: str, name: str = "input", abstain: bool = False
) -> pd.DataFrame:
    """Score every row of `frame`.

    Parameters
    ----------
    frame : DataFrame
        Reviews in column `text_column`; missing texts are scored as empty ones.
    model : Model
        Raw texts in, label and confidence out.
    text_column : str
        Where the reviews are.
    name : str
        File that the rows came from, for messages.
    abstain : bool
        Label what the model is not sure enough of «не уверен».

    Returns
    -------
    DataFrame
        All columns of `frame`, in order, then ``predicted_label``, ``confidence`` (0 to 1) and ``model_version``. What was
        saved in a wrong encoding is read again for the model and stays in its column as it came; where it cannot be, label and
        confidence are missing.

    Raises
    ------
    DataContractError
        See :func:`check_reviews`.
    """
    check_reviews(frame, text_column=text_column, name=name)
    answers = answer(model, frame[text_column].tolist())
    labels = np.array(answers.labels, dtype=object)
    if abstain:
        labels[answers.abstained] = UNSURE
    unreadable = np.array([is_unreadable(text) for text in frame[text_column]], dtype=bool)
    labels[unreadable] = None
    confidence = np.where(unreadable, np.nan, answers.confidence)
    return frame.assign(predicted_label=labels, confidence=confidence, model_version=str(model.version))


def is_unreadable(text: str | None) -> bool:
    """Whether a review was saved in a wrong encoding and cannot be read again: nobody can tell what it is about."""
    return isinstance(text, str) and is_misread(text)


def check_reviews(frame: pd.DataFrame, *, text_column: str, name: str = "input") -> None:
    """Refuse what :func:`predict_frame` cannot score, before a model is loaded for it.

    Raises
    ------
    DataContractError
        `text_column` is missing, a row of it holds no text, most rows were saved in a wrong encoding and cannot be read again,
        or `frame` has a column that would be overwritten; the message names `name`.
    """
    if text_column not in frame.columns:
        raise DataContractError(
            f"{name}: no column {text_column!r}; found {', '.join(map(str, frame.columns))}. Name it with --text-column"
        )
    taken = [column for column in PREDICTION_COLUMNS if column in frame.columns]
    if taken:
        raise DataContractError(f"{name}: has the column(s) {', '.join(taken)} already; rename or drop them first")
    for number, text in enumerate(frame[text_column].tolist(), start=1):
        if not isinstance(text, str) and not is_missing(text):
            raise DataContractError(
                f"{name}, row {number}: column {text_column!r} holds {type(text).__name__}, expected text: {str(text)!r:.80}; "
                "write the review there as one string"
            )
    unreadable = [number for number, text in enumerate(frame[text_column], start=1) if is_unreadable(text)]
    if len(unreadable) > len(frame) / 2:
        raise DataContractError(
            f"{name}: {len(unreadable)} of {len(frame)} texts were saved in a wrong encoding and cannot be read again, "
            f"the first in row {unreadable[0]}; write the file anew from where it came"
        )
