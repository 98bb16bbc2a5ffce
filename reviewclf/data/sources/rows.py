"""Rows as they come become raw rows or go to quarantine; every row does one of the two."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from reviewclf.data.sources.dates import parse_when
from reviewclf.data.sources.options import ReadOptions
from reviewclf.errors import DataContractError
from reviewclf.settings import IngestSettings
from reviewclf.tables import QUARANTINE_SCHEMA, RAW_SCHEMA

# What databases write into text files where they hold nothing.
_SQL_NULL = r"\N"
# What programs write where they hold nothing.
_NO_ID = frozenset(
    {"", "nan", "none", "null", "nil", "<na>", "nat", "n/a", "#n/a", "na", "#знач!", "#н/д", r"\n", "-nan", "undefined"}
)
# Excel shows long numbers as 1,23457E+17 and forgets the other digits.
_SPOILT = re.compile(r"[-+]?(?:\d[.,]\d+e[+]?\d+|\de[+]\d+)", re.IGNORECASE)
# pandas holds integers as floats where a column has gaps.
_WHOLE = re.compile(r"(\d+)\.0+")
# Above it a float stands for several integers.
_EXACT = 2.0**53


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
        written = {"reason": storable(row.reason), "payload": storable(row.payload), "source": storable(source)}
        bad.append(row._asdict() | written)
    return Chunk(pa.Table.from_pylist(good, schema=RAW_SCHEMA), pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA), watermark)


def to_json(values: Mapping[Any, Any], default: Callable[[Any], Any] = str) -> str:
    """Values as JSON, with what JSON does not know as `default` gives it.

    Raises
    ------
    ValueError
        The values are nested too deeply to be written.
    """
    named = {str(name): value for name, value in values.items()}
    try:
        text = json.dumps(named, ensure_ascii=False, default=default)
        # Half of a surrogate pair cannot be stored as it is, but as its escape.
        return text if storable(text) == text else json.dumps(named, default=default)
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


# -- ids ---------------------------------------------------------------------------------------------------------------


def read_id(value: Any) -> str | None:
    """The source's id as text; None where the source wrote none, or one that has lost its digits.

    ``1001.0`` is 1001, which pandas wrote as a float because other rows lack their id.
    """
    value = value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value
    if value is None or value != value:
        return None
    if isinstance(value, float):
        if not value.is_integer():
            return str(value)
        return str(int(value)) if abs(value) < _EXACT else None
    text = (_id_text(value) if isinstance(value, bytes) else str(value)).strip()
    if text.casefold() in _NO_ID or _SPOILT.fullmatch(text):
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _id_text(value: bytes) -> str:
    """Bytes as the text that they are, else, as those of a UUID, in hexadecimal digits."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex()
    return text if text.isprintable() else value.hex()


def made_id(source: str, content: str) -> str:
    """Id of a row that has no usable one: the digest of its source and `content`, its text where nothing else is known."""
    return hashlib.blake2b(f"{source}\x00{content}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
