"""Batch scoring: a table of reviews in, the same table with the champion's answers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd

from reviewclf.errors import DataContractError

PREDICTION_COLUMNS = ("predicted_label", "confidence", "model_version")


class Model(Protocol):
    """What scores: see :class:`reviewclf.registry.model.LoadedModel`."""

    @property
    def version(self) -> str:
        """Goes into the column ``model_version``."""

    def predict(self, texts: Sequence[str | None], *, abstain: bool = False) -> pd.DataFrame:
        """Columns ``label`` and ``confidence``, one row a text; `abstain` allows the label «не уверен»."""


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
        All columns of `frame`, in order, then ``predicted_label``, ``confidence`` (0 to 1) and ``model_version``.

    Raises
    ------
    DataContractError
        `text_column` is missing, or `frame` has a column that would be overwritten.
    """
    if text_column not in frame.columns:
        raise DataContractError(
            f"{name}: no column {text_column!r}; found {', '.join(map(str, frame.columns))}. Name it with --text-column"
        )
    taken = [column for column in PREDICTION_COLUMNS if column in frame.columns]
    if taken:
        raise DataContractError(f"{name}: has the column(s) {', '.join(taken)} already; rename or drop them first")
    texts = ["" if pd.isna(text) else str(text) for text in frame[text_column]]
    answers = model.predict(texts, abstain=abstain)
    return frame.assign(
        predicted_label=answers["label"].to_numpy(),
        confidence=answers["confidence"].round(6).to_numpy(),
        model_version=str(model.version),
    )
