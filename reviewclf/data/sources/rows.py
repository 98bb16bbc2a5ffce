"""Rows as they come become raw rows or go to quarantine; every row does one of the two."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa

from reviewclf.data.sources.options import ReadOptions
from reviewclf.errors import DataContractError
from reviewclf.settings import IngestSettings
from reviewclf.tables import QUARANTINE_SCHEMA, RAW_SCHEMA

# Sources in Russia write local time when they write none.
_LOCAL = ZoneInfo("Europe/Moscow")
_RUSSIAN_DATE = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:[ T,]+(\d{1,2}):(\d{2})(?::(\d{2}))?)?$")
_NUMBER = re.compile(r"\d{9,13}(?:\.\d+)?$")
# Unix seconds reach this in the year 5138; anything above is milliseconds.
_MILLISECONDS_FROM = 1e11


class Chunk(NamedTuple):
    """A part of a source: rows of ``RAW_SCHEMA``, rows of ``QUARANTINE_SCHEMA``, and a database's watermark so far."""

    rows: pa.Table
    quarantined: pa.Table
    watermark: Any = None


class BadRow(NamedTuple):
    """A row that could not be read: its number, why, and what came in."""

    row_number: int
    reason: str
    payload: str


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
    close = difflib.get_close_matches(str(options.text_column), columns, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise DataContractError(
        f"{name}: no column {options.text_column!r}; found {', '.join(map(str, columns)) or 'none'}.{hint} "
        "Set REVIEWCLF_INGEST__TEXT_COLUMN to the column that holds the reviews"
    )


def make_chunk(rows: Iterable[GoodRow | BadRow], *, source: str, options: IngestSettings, watermark: Any = None) -> Chunk:
    """Turn rows into a chunk; rows that break the raw table's contract join the quarantined ones."""
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, GoodRow):
            try:
                good.append(_raw(row, source, options))
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
            }
        )
    return Chunk(pa.Table.from_pylist(good, schema=RAW_SCHEMA), pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA), watermark)


def parse_when(value: Any) -> datetime | None:
    """Read a time: ISO 8601, ``dd.mm.yyyy [hh:mm[:ss]]``, Unix seconds or milliseconds; without a zone it is Moscow's.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, bool):
        raise ValueError(f"{value} is no time")  # noqa: TRY004 - one kind of error for all that is no time
    if isinstance(value, datetime):
        when = value
    elif isinstance(value, date):
        when = datetime(value.year, value.month, value.day)
    elif isinstance(value, int | float):
        when = datetime.fromtimestamp(value / 1000 if value >= _MILLISECONDS_FROM else value, UTC)
    else:
        text = str(value).strip()
        russian = _RUSSIAN_DATE.match(text)
        if russian:
            day, month, year, hour, minute, second = (int(part or 0) for part in russian.groups())
            when = datetime(year, month, day, hour, minute, second)
        elif _NUMBER.match(text):
            return parse_when(float(text))
        else:
            when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=_LOCAL)).astimezone(UTC)


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


def id_text(value: Any) -> str | None:
    """An id as text, None for a missing one; a whole number has no fraction, which missing ids beside it may have given it.

    Examples
    --------
    >>> id_text(1001.0), id_text("007"), id_text(float("nan"))
    ('1001', '007', None)
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _raw(row: GoodRow, source: str, options: IngestSettings) -> dict[str, Any]:
    values = dict(row.values)
    text = values.pop(options.text_column, None)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text_is_no_text: {type(text).__name__} in column {options.text_column!r}")
    review_id = values.pop(options.id_column, None)
    when = values.pop(options.created_at_column, None)
    try:
        created_at = parse_when(when)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"bad_created_at: {when!r:.60} in column {options.created_at_column!r}") from None
    if review_id is None or str(review_id).strip() == "":
        review_id = hashlib.blake2b(f"{source}\x00{text or ''}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return {
        "review_id": storable(str(review_id).strip()),
        "text": None if text is None else storable(text),
        "source": storable(source),
        "created_at": created_at,
        "extra": to_json(values),
        "row_number": row.row_number,
    }
