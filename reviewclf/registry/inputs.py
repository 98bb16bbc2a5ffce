"""What the logged model takes as reviews: one text, many of them, or a table with a column of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reviewclf.errors import DataContractError

TEXT_COLUMN = "text"
_TAKES = (
    "give a text, a list, array or Series of texts, or a table with a column `text` (or only one column of texts); a missing "
    "text (None, NaN) is taken as an empty one"
)


def texts_of(given: Any) -> pd.Series:
    """The texts in what was given.

    Parameters
    ----------
    given : str, sequence, array, Series, DataFrame or mapping
        A sequence may hold texts or mappings with a key ``text``; a mapping names columns.

    Returns
    -------
    Series of str
        With the index of a Series or a DataFrame. Missing texts are empty.

    Raises
    ------
    DataContractError
        It is something else; the message says what is taken.
    """
    column = _column_of(given)
    return pd.Series([_text(value, row) for row, value in enumerate(column)], index=column.index, dtype=object)


def _column_of(given: Any) -> pd.Series:
    if given is None or isinstance(given, str):
        return pd.Series([given], dtype=object)
    if isinstance(given, pd.DataFrame):
        return _text_column(given)
    if isinstance(given, pd.Series | pd.Index):
        return given.to_series() if isinstance(given, pd.Index) else given
    if isinstance(given, Mapping):
        # As a table: a column may be a single text.
        columns = {name: pd.Series(np.ravel(np.asarray(value, dtype=object)), dtype=object) for name, value in given.items()}
        return _text_column(pd.DataFrame(columns))
    if isinstance(given, np.ndarray):
        if given.ndim <= 1 or given.shape[1:] == (1,):
            return pd.Series(given.reshape(-1).tolist(), dtype=object)
        raise DataContractError(f"an array of shape {given.shape} holds more than one column; {_TAKES}")
    if isinstance(given, Sequence) and not isinstance(given, bytes | bytearray | memoryview):
        if given and all(isinstance(item, Mapping) for item in given):
            return _text_column(pd.DataFrame(list(given)))
        return pd.Series(list(given), dtype=object)
    raise DataContractError(f"{type(given).__name__} is nothing that can be classified; {_TAKES}")


def _text_column(frame: pd.DataFrame) -> pd.Series:
    if TEXT_COLUMN in frame.columns:
        found = frame[TEXT_COLUMN]
        if isinstance(found, pd.DataFrame):
            raise DataContractError(f"the table has {found.shape[1]} columns `text`; {_TAKES}")
        return found
    textual = [place for place in range(frame.shape[1]) if any(isinstance(value, str) for value in frame.iloc[:, place])]
    if len(textual) == 1:
        return frame.iloc[:, textual[0]]
    names = ", ".join(map(str, frame.columns)) or "none"
    found_texts = f"{len(textual)} of them hold texts" if textual else "none of them holds texts"
    raise DataContractError(f"the table has no column `text` (columns: {names}; {found_texts}); {_TAKES}")


def _text(value: Any, row: int) -> str:
    if isinstance(value, str):
        return value
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return ""
    raise DataContractError(f"row {row} holds {type(value).__name__} in place of a text; {_TAKES}")
