"""Reviews in a database, read through SQLAlchemy in a stream, above a watermark where there is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from reviewclf.data.sources.rows import GoodRow, check_columns
from reviewclf.errors import DataContractError, SettingsError, SourceUnavailableError
from reviewclf.settings import IngestSettings

_DIALECTS = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")
_COLON = re.compile(r"(?<![:\w\\]):(?=\w)")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w$]*(?:\.[A-Za-z_][\w$]*)?$")


@dataclass(frozen=True)
class SqlSource:
    """A table or query. `uri` identifies it without its password; `url` is what connects."""

    uri: str
    query: str
    url: str = field(repr=False)

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
    query = table if re.match(r"(?i)(select|with)\s", table) else f"SELECT * FROM {_quoted(table)}"  # noqa: S608 - checked
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
        statement = f"SELECT * FROM (\n{statement}\n) AS reviews"  # noqa: S608 - the user's own query
        if newer_than is not None:
            statement += f" WHERE {_quoted(mark)} > :newer_than"
            parameters["newer_than"] = _from_state(newer_than)
        statement += f" ORDER BY {_quoted(mark)}"
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


def _quoted(name: str) -> str:
    if not _IDENTIFIER.match(name):
        raise SettingsError(f"{name!r} is no name of a table or column (REVIEWCLF_INGEST__TABLE, ...WATERMARK_COLUMN)")
    return name


def _to_state(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return {"time": value.isoformat()}
    return value if isinstance(value, int | float | str) or value is None else str(value)


def _from_state(value: Any) -> Any:
    if isinstance(value, dict):
        text = str(value["time"])
        return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)
    return value
