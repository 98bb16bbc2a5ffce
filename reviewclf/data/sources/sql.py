"""Reviews in a database, read through SQLAlchemy in a stream, from a little below a watermark where there is one.

Rows come late: with the mark of the last row that was read, with an older one, or with none. So each night reads an overlap
below the watermark again, and all rows without a mark; what the store has seen is left out there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from reviewclf.data.sources.rows import GoodRow, check_columns
from reviewclf.errors import DataContractError, SettingsError, SourceUnavailableError
from reviewclf.settings import IngestSettings

_DIALECTS = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")
_COLON = re.compile(r"(?<![:\w\\]):(?=\w)")
# A name's parts, each plain or in the quotes of some dialect: schema.table, "Отзывы 2026", [dbo].[reviews].
_NAME = r"[^\W\d][\w$]*(?:[ -]+[\w$]+)*"
_PART = re.compile(rf'(?:"(?P<a>[^"\n]+)"|`(?P<b>[^`\n]+)`|\[(?P<c>[^\]\n]+)\]|(?P<plain>{_NAME}))(?:\.|$)')
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*$")
_OVERLAP_DAYS = 2.0
_OVERLAP_NUMBERS = 1000.0


@dataclass(frozen=True)
class SqlSource:
    """A table or query. `uri` identifies it without its password; `url` is what connects."""

    uri: str
    query: str
    url: str = field(repr=False)
    # Nothing tells whether a database has changed.
    fingerprint: None = None

    @property
    def name(self) -> str:
        """What goes into the column ``source``."""
        return self.uri


def is_database(uri: str) -> bool:
    """Whether `uri` is a SQLAlchemy URL."""
    scheme, found, _ = uri.partition("://")
    return bool(found) and scheme.split("+")[0] in _DIALECTS


def sql_source(uri: str, options: IngestSettings) -> SqlSource:
    """The table or query that the settings name.

    Raises
    ------
    SettingsError
        No table is named, or the URL cannot be understood; passwords are not shown.
    """
    import sqlalchemy

    if not options.table:
        raise SettingsError("REVIEWCLF_SOURCE is a database: set REVIEWCLF_INGEST__TABLE to a table or a SELECT")
    try:
        url = sqlalchemy.engine.make_url(re.sub(r"^postgres(?=[:+])", "postgresql", uri))
    except sqlalchemy.exc.ArgumentError as error:
        raise SettingsError("REVIEWCLF_SOURCE cannot be understood as a SQLAlchemy URL") from error
    table = options.table.strip().rstrip(";")
    try:
        preparer = url.get_dialect()().identifier_preparer
    except sqlalchemy.exc.ArgumentError as error:
        raise SettingsError(f"REVIEWCLF_SOURCE: SQLAlchemy knows no database {url.drivername!r}") from error
    query = table if re.match(r"(?i)(select|with)\s", table) else f"SELECT * FROM {_quoted(table, preparer)}"  # noqa: S608 - quoted
    shown = url.set(password=None) if url.password is None else url.set(password="***")  # noqa: S106 - hides one
    return SqlSource(uri=f"{shown.render_as_string(hide_password=True)}#{table}", query=query, url=url.render_as_string(False))


def read_rows(source: SqlSource, options: IngestSettings, newer_than: Any) -> Iterator[tuple[GoodRow, Any]]:
    """Rows, each with the watermark reached, in the watermark's order; only those above `newer_than`.

    Raises
    ------
    DataContractError
        The database refuses, or the result lacks the text or the watermark column.
    SourceUnavailableError
        It cannot be connected to, or the connection broke.
    """
    import sqlalchemy

    mark = options.watermark_column
    # A colon in the user's own SELECT names no parameter.
    statement, parameters = _COLON.sub(r"\:", source.query), {}
    if mark:
        # On lines of their own, for a query may end in a comment.
        statement = f"SELECT * FROM (\n{statement}\n) reviews"  # noqa: S608 - the user's own query
        column = _quoted(mark, sqlalchemy.engine.make_url(source.url).get_dialect()().identifier_preparer)
        if newer_than is not None:
            statement += f" WHERE {column} >= :newer_than OR {column} IS NULL"
            parameters["newer_than"] = _below(_from_state(newer_than), options.watermark_overlap)
        statement += f" ORDER BY {column}"
    engine, connected = None, False
    try:
        engine = sqlalchemy.create_engine(source.url)
        with engine.connect().execution_options(stream_results=True, yield_per=1000) as connection:
            connected = True
            result = connection.execute(sqlalchemy.text(statement), parameters)
            columns = list(result.keys())
            check_columns(source.uri, columns, options)
            if mark and mark not in columns:
                raise DataContractError(
                    f"{source.uri}: no column {mark!r} (REVIEWCLF_INGEST__WATERMARK_COLUMN); found {', '.join(columns)}"
                )
            for number, row in enumerate(result.mappings(), start=1):
                yield GoodRow(number, dict(row)), _to_state(row[mark]) if mark else None
    except sqlalchemy.exc.SQLAlchemyError as error:
        # SQLAlchemy's own message of a failed connection does not hold the URL; the statement holds no values.
        if not connected or getattr(error, "connection_invalidated", False):
            raise SourceUnavailableError(f"{source.uri}: no connection: {getattr(error, 'orig', None) or error}") from error
        raise DataContractError(f"{source.uri}: the database refused: {getattr(error, 'orig', None) or error}") from error
    except ModuleNotFoundError as error:
        raise DataContractError(f"{source.uri}: needs the driver {error.name!r}: pip install it beside reviewclf") from error
    finally:
        if engine is not None:
            engine.dispose()


def higher(one: Any, other: Any) -> Any:
    """The higher of two watermarks as the store keeps them; either may be None."""
    if one is None or other is None:
        return other if one is None else one
    try:
        return other if _from_state(other) > _from_state(one) else one
    except TypeError:
        # The column holds another type than it did: its own order counts from now on.
        return other


def _below(mark: Any, overlap: float | None) -> Any:
    """Where the overlap below a watermark begins."""
    days = timedelta(days=_OVERLAP_DAYS if overlap is None else overlap)
    if isinstance(mark, datetime | date):
        return mark - days
    if isinstance(mark, int | float):
        numbers = _OVERLAP_NUMBERS if overlap is None else overlap
        return mark - (int(numbers) if isinstance(mark, int) and float(numbers).is_integer() else numbers)
    try:
        written = datetime.fromisoformat(mark)
    except ValueError:
        return mark
    # A date alone sorts before each of its times, whatever stands between date and time.
    return (written - days).date().isoformat() if days else mark


def _quoted(name: str, preparer: Any) -> str:
    """A name as the database's dialect writes it; plain ones stay as they are, so that the database folds their case."""
    parts, end = [], 0
    while (match := _PART.match(name, end)) is not None:
        parts.append(match)
        end = match.end()
    if not parts or end < len(name) or name.endswith("."):
        raise SettingsError(
            f"{name!r} is no name of a table or column (REVIEWCLF_INGEST__TABLE, ...WATERMARK_COLUMN); "
            "put it in double quotes, or set REVIEWCLF_INGEST__TABLE to a SELECT"
        )
    written = []
    for match in parts:
        plain = match["plain"]
        needs_quotes = plain is None or not _PLAIN.match(plain) or plain.lower() in preparer.reserved_words
        written.append(preparer.quote_identifier(plain or match["a"] or match["b"] or match["c"]) if needs_quotes else plain)
    return ".".join(written)


def _to_state(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return {"time": value.isoformat()}
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return value if isinstance(value, int | float | str) or value is None else str(value)


def _from_state(value: Any) -> Any:
    if isinstance(value, dict):
        text = str(value["time"])
        return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)
    return value
