"""What all results and inputs of an evaluation share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from reviewclf.errors import EvaluationError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Result(BaseModel):
    """A value that is handed on and logged as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def encode(labels: Sequence[str], **columns: Sequence[str]) -> list[Integers]:
    """Positions in `labels` of each column's values.

    Raises
    ------
    EvaluationError
        No rows, columns of different lengths, a value outside `labels`, or `labels` repeat.
    """
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
