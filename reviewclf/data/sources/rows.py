"""Rows as they come become raw rows or go to quarantine; every row does one of the two."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from reviewclf.data.sources.dates import parse_when
from reviewclf.data.sources.ids import made_id, read_id
from reviewclf.data.sources.options import ReadOptions
from reviewclf.errors import DataContractError
from reviewclf.settings import IngestSettings
from reviewclf.tables import QUARANTINE_SCHEMA, RAW_SCHEMA

# What databases write into text files where they hold nothing.
_SQL_NULL = r"\N"


class Chunk(NamedTuple):
    """A part of a source: rows of ``RAW_SCHEMA``, rows of ``QUARANTINE_SCHEMA``, and a database's watermark so far."""

    rows: pa.Table
    quarantined: pa.Table
    watermark: Any = None


class BadRow(NamedTuple):
    """A row that could not be read: its number, why, what came in and, of delimited files, how they were laid out, as JSON."""

    row_number: int
    reason: str
    payload: str
    layout: str | None = None


class GoodRow(NamedTuple):
    """A row that could be read: its number, values by column, and what came in (None: the values as JSON)."""

    row_number: int
    values: Mapping[str, Any]
    payload: str | None = None


def check_columns(name: str, columns: Sequence[str], options: IngestSettings | ReadOptions) -> None:
    """Refuse a source without its text column.

    Raises
    ------
    DataContractError
        Names source, column, what was found, the closest name and the setting.
    """
    if options.text_column in columns:
        return
    folded = {str(name).casefold(): name for name in columns}
    close = difflib.get_close_matches(str(options.text_column).casefold(), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    raise DataContractError(
        f"{name}: no column {options.text_column!r}; found {', '.join(map(str, columns)) or 'none'}.{hint} "
        "Set REVIEWCLF_INGEST__TEXT_COLUMN to the column that holds the reviews"
    )


def make_chunk(
    rows: Iterable[GoodRow | BadRow],
    *,
    source: str,
    options: IngestSettings,
    watermark: Any = None,
    latest: datetime | None = None,
) -> Chunk:
    """Turn rows into a chunk; rows that break the raw table's contract join the quarantined ones.

    Neither a time nor an id costs a review: what cannot be read as a time, or lies after `latest`, stays in ``extra`` as it
    came, and an id that is missing or has lost its digits is made of source and text.
    """
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, GoodRow):
            try:
                good.append(_raw(row, source, options, latest))
                continue
            except ValueError as error:
                payload = row.payload if row.payload is not None else to_json(row.values)
                row = BadRow(row.row_number, str(error), payload)
        bad.append(
            {
                "review_id": None,
                "row_number": row.row_number,
                "reason": storable(row.reason),
                "payload": storable(row.payload),
                "source": storable(source),
                "layout": row.layout,
            }
        )
    return Chunk(pa.Table.from_pylist(good, schema=RAW_SCHEMA), pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA), watermark)


def to_json(values: Mapping[str, Any]) -> str:
    """Values as JSON, with what JSON does not know as text.

    Raises
    ------
    ValueError
        The values are nested too deeply to be written.
    """
    named = {str(name): value for name, value in values.items()}
    try:
        text = json.dumps(named, ensure_ascii=False, default=str)
        # Half of a surrogate pair cannot be stored as it is, but as its escape.
        return text if storable(text) == text else json.dumps(named, default=str)
    except RecursionError as error:
        raise ValueError("nested_too_deeply: the values cannot be written as JSON") from error


def storable(text: str) -> str:
    """The text with ``?`` for halves of surrogate pairs: JSON and file names may hold them, no file of ours can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def has_unknown_time(row: Mapping[str, Any], options: IngestSettings) -> bool:
    """Whether a raw row came with a time that could not be read."""
    column = options.created_at_column
    # Most rows are told apart without reading their JSON.
    named = row["created_at"] is None and json.dumps(column, ensure_ascii=False) in row["extra"]
    return named and column in json.loads(row["extra"])


def _raw(row: GoodRow, source: str, options: IngestSettings, latest: datetime | None) -> dict[str, Any]:
    values = dict(row.values)
    text = values.pop(options.text_column, None)
    text = None if text == _SQL_NULL else text
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text_is_no_text: {type(text).__name__} in column {options.text_column!r}")
    review_id = read_id(values.pop(options.id_column, None))
    when = values.pop(options.created_at_column, None)
    try:
        created_at = parse_when(when, latest=latest)
    except ValueError:
        created_at = None
        values[options.created_at_column] = when
    return {
        "review_id": storable(made_id(source, text or "") if review_id is None else review_id),
        "text": None if text is None else storable(text),
        "source": storable(source),
        "created_at": created_at,
        "extra": to_json(values),
        "row_number": row.row_number,
    }
