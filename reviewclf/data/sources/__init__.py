"""Where reviews come from: files (CSV, JSON Lines, Parquet; local or S3) and SQL tables, read in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeVar

from reviewclf.data.sources import files, sql
from reviewclf.data.sources.files import SourceFile
from reviewclf.data.sources.rows import Chunk, make_chunk
from reviewclf.data.sources.sql import SqlSource
from reviewclf.errors import SettingsError
from reviewclf.outages import reading
from reviewclf.settings import IngestSettings

__all__ = ["Chunk", "SourceFile", "SqlSource", "list_source", "read_chunks"]

T = TypeVar("T")


def _batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    # itertools.batched comes with Python 3.12.
    while batch := list(itertools.islice(items, size)):
        yield batch


def list_source(uri: str, options: IngestSettings) -> list[SourceFile | SqlSource]:
    """The files or the table behind `uri`, in a fixed order.

    Parameters
    ----------
    uri : str
        A file, folder or glob (local or ``s3://``), or a SQLAlchemy URL.
    options : IngestSettings
        Names the table of a database.

    Raises
    ------
    DataContractError
        No such file, or none of a known kind.
    SettingsError
        A database without a table, or an Airflow connection outside Airflow.
    """
    if uri.startswith("airflow://"):
        raise SettingsError(f"{uri}: Airflow's connections are known to its tasks alone; give a SQLAlchemy URL here")
    if sql.is_database(uri):
        return [sql.sql_source(uri, options)]
    with reading(uri):
        return list(files.list_files(uri))


def read_chunks(
    source: SourceFile | SqlSource, options: IngestSettings, *, newer_than: Any = None, latest: datetime | None = None
) -> Iterator[Chunk]:
    """Rows of a source in chunks of at most ``options.chunk_rows``; memory is bounded by one chunk.

    Parameters
    ----------
    source : SourceFile or SqlSource
        From :func:`list_source`.
    options : IngestSettings
        Columns, encoding, separator.
    newer_than : JSON value, optional
        Watermark of the last run over a database: only rows above it, in the overlap below it, or without a mark are read.
    latest : datetime, optional
        Later times of reviews are none.

    Yields
    ------
    Chunk
        ``rows`` + ``quarantined`` are all rows that were read, in order; ``watermark`` is the highest so far.
    """
    name = options.source_name or source.name
    if isinstance(source, SourceFile):
        for batch in _batched(files.read_rows(source, options), options.chunk_rows):
            yield make_chunk(batch, source=name, options=options, latest=latest)
        return
    watermark = newer_than
    for rows in _batched(sql.read_rows(source, options, newer_than), options.chunk_rows):
        for _, mark in rows:
            watermark = sql.higher(watermark, mark)
        yield make_chunk((row for row, _ in rows), source=name, options=options, watermark=watermark, latest=latest)
