"""Files of reviews: which there are, what identifies their content, how their rows are read."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from reviewclf.data.sources.decoding import open_file, text_lines
from reviewclf.data.sources.rows import BadRow, GoodRow, check_columns
from reviewclf.errors import DataContractError, SettingsError
from reviewclf.outages import reading
from reviewclf.settings import IngestSettings

DELIMITED = (".csv", ".tsv", ".txt")
LINES = (".jsonl", ".ndjson", ".json")
COLUMNAR = (".parquet",)
KNOWN = (*DELIMITED, *LINES, *COLUMNAR)

_SEPARATORS = ",;\t|"
_BLOCK = 1 << 20
# A quoted field may hold line breaks, but one that never ends must not swallow the file: beyond this a record counts as
# broken at its first line, and reading goes on at the next.
_MAX_RECORD_LINES = 500
_MAX_RECORD_CHARACTERS = 200_000
# Column names that are read or shown at most, where a header or a JSON object could hold any number of them.
_NAMED_FIELDS = 50
_HEADER_LINES = 20
_QUOTED = re.compile(r'"(?:[^"]|"")*"')

Row = GoodRow | BadRow


@dataclass(frozen=True)
class SourceFile:
    """One file: its address, size in bytes, and a digest that changes with its content."""

    uri: str
    size: int
    fingerprint: str

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]


def suffix_of(uri: str) -> str | None:
    """Ending that tells the kind of file, without ``.gz``; None when it is unknown."""
    plain = uri.lower().removesuffix(".gz")
    return next((ending for ending in KNOWN if plain.endswith(ending)), None)


def list_files(uri: str) -> list[SourceFile]:
    """The file, or the files of the folder or glob, sorted by address.

    Raises
    ------
    DataContractError
        Nothing is there, or a single file is of an unknown kind.
    SourceUnavailableError
        The server that holds it is away.
    """
    with reading(uri):
        return _list_files(uri)


def _list_files(uri: str) -> list[SourceFile]:
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        # These signs may stand in the name of a file as well.
        if any(sign in path for sign in "*?[") and not fs.exists(path):
            paths = [found for found in fs.glob(path) if suffix_of(found)]
        elif fs.isdir(path):
            paths = [found for found in fs.find(path) if suffix_of(found)]
        elif not fs.exists(path):
            raise DataContractError(f"{uri}: there is no such file or folder; check REVIEWCLF_SOURCE")
        elif suffix_of(path) is None:
            raise DataContractError(f"{uri}: unknown kind of file; expected one of {', '.join(KNOWN)}, also with .gz")
        else:
            paths = [path]
        files = [_describe(fs, found) for found in sorted(paths)]
    except (OSError, ValueError, ImportError) as error:
        raise DataContractError(f"{uri}: cannot be read: {error}; check REVIEWCLF_SOURCE") from error
    if not files:
        raise DataContractError(f"{uri}: no file there ends in one of {', '.join(KNOWN)}; check REVIEWCLF_SOURCE")
    return files


def read_rows(file: SourceFile, options: IngestSettings) -> Iterator[Row]:
    """Rows of a file one after another, numbered from 1.

    Raises
    ------
    DataContractError
        The file is empty, in no known encoding, damaged, or without the text column.
    SourceUnavailableError
        The server that holds it went away.
    """
    suffix = suffix_of(file.uri)
    reader = _parquet if suffix in COLUMNAR else _lines if suffix in LINES else _delimited
    with reading(file.uri):
        try:
            yield from reader(file, options)
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise DataContractError(f"{file.uri}: cannot be read as {suffix}: {error}") from error


def _describe(fs: Any, path: str) -> SourceFile:
    info = fs.info(path)
    if isinstance(fs, LocalFileSystem):
        digest = hashlib.blake2b(digest_size=16)
        with fs.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return SourceFile(path, int(info["size"]), digest.hexdigest())
    tag = str(info.get("ETag") or info.get("LastModified")).strip('"')
    return SourceFile(fs.unstrip_protocol(path), int(info["size"]), f"{tag}:{info['size']}")


# -- text ------------------------------------------------------------------------------------------------------------


def _lines(file: SourceFile, options: IngestSettings) -> Iterator[Row]:
    number = 0
    found: dict[str, None] = {}
    has_text = False
    for line in text_lines(file.uri, options):
        if not line.strip():
            continue
        if number == 0 and line.lstrip().startswith("["):
            raise DataContractError(f"{file.uri}: is one JSON array; write one object a line (JSON Lines)")
        number += 1
        payload = line.rstrip("\r\n")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadRow(number, f"malformed_json: {error}", payload)
            continue
        if not isinstance(values, dict):
            yield BadRow(number, f"malformed_json: expected an object, found {type(values).__name__}", payload)
        elif options.text_column in values:
            has_text = True
            yield GoodRow(number, values, payload)
        else:
            if len(found) < _NAMED_FIELDS:
                found.update(dict.fromkeys(itertools.islice(values, _NAMED_FIELDS)))
            yield BadRow(number, f"no_text: no field {options.text_column!r}; found {', '.join(values) or 'none'}", payload)
    if number == 0:
        raise DataContractError(f"{file.uri}: is empty")
    if found and not has_text:
        # Not one row of the file has it: that is the wrong column, not a malformed row.
        check_columns(file.uri, list(found)[:_NAMED_FIELDS], options)


def _delimited(file: SourceFile, options: IngestSettings) -> Iterator[Row]:
    lines = text_lines(file.uri, options)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise DataContractError(f"{file.uri}: is empty; expected a header with the column {options.text_column!r}")
    # A name in quotes may hold line breaks, so that the first line alone does not tell the separator.
    start = [first]
    while "".join(start).count('"') % 2 and len(start) < _HEADER_LINES and (line := next(lines, None)) is not None:
        start.append(line)
    if options.separator:
        separator = _chosen_separator(options.separator)
    else:
        separator = "\t" if suffix_of(file.uri) == ".tsv" else _separator("".join(start), options)
    header_records = _records(itertools.chain(start, lines), separator)
    header, payload = next(header_records)
    if header is None:
        raise DataContractError(f"{file.uri}: the header cannot be read: {payload!r:.200}")
    columns = _distinct([name.strip() for name in header])
    check_columns(file.uri, columns, options)
    number = 0
    for fields, record in header_records:
        if fields == []:
            continue
        number += 1
        if fields is None:
            yield BadRow(number, "malformed_quotes: a quoted field does not end where it should", record)
        elif len(fields) != len(columns):
            word = "many" if len(fields) > len(columns) else "few"
            yield BadRow(number, f"too_{word}_fields: expected {len(columns)}, found {len(fields)}", record)
        else:
            values = {name: field if field != "" else None for name, field in zip(columns, fields, strict=True)}
            yield GoodRow(number, values, record)


def _records(lines: Iterator[str], separator: str) -> Iterator[tuple[list[str] | None, str]]:
    """Records as (fields, text): no fields for an empty line, None for what is no record."""
    pending: list[str] = []
    source = itertools.chain.from_iterable(iter(lambda: [pending.pop()] if pending else [next(lines, None)], [None]))
    for line in source:
        record = str(line)
        if not record.strip("\r\n"):
            yield [], ""
            continue
        taken = [record]
        while True:
            fields, ended = _parse(record, separator)
            if ended or len(taken) >= _MAX_RECORD_LINES or len(record) > _MAX_RECORD_CHARACTERS:
                break
            following = pending.pop() if pending else next(lines, None)
            if following is None:
                break
            taken.append(following)
            record += following
        if fields is None and len(taken) > 1:
            # What the open quote swallowed is read again, line by line.
            pending.extend(reversed(taken[1:]))
            record = taken[0]
        yield fields, record.rstrip("\r\n")


def _parse(record: str, separator: str) -> tuple[list[str] | None, bool]:
    """Fields of a record, and whether it has ended; (None, False) while a quote is open, (None, True) when it is broken."""
    text = record.rstrip("\r\n")
    if '"' not in text:
        return text.replace("\x00", "").split(separator), True
    try:
        rows = list(csv.reader([record.replace("\x00", "")], delimiter=separator, strict=True))
    except csv.Error as error:
        return None, "unexpected end of data" not in str(error)
    return (rows[0], True) if len(rows) == 1 else (None, True)


def _separator(header: str, options: IngestSettings) -> str:
    parsed = {separator: _parse(header, separator)[0] or [header] for separator in _SEPARATORS}
    with_text = [sign for sign in _SEPARATORS if options.text_column in (field.strip() for field in parsed[sign])]
    # What stands in quotes separates nothing.
    bare = _QUOTED.sub("", header)
    return max(with_text or _SEPARATORS, key=bare.count)


def _chosen_separator(setting: str) -> str:
    separator = "\t" if setting == r"\t" else setting
    if len(separator) != 1 or separator in '"\r\n':
        raise SettingsError(f"REVIEWCLF_INGEST__SEPARATOR={setting!r}: expected one character, such as , ; | or \\t")
    return separator


def _distinct(columns: list[str]) -> list[str]:
    """Column names without repetition: the second ``a`` becomes ``a.1``, so that neither hides the other's values."""
    distinct: list[str] = []
    for column in columns:
        names = itertools.chain([column], (f"{column}.{number}" for number in itertools.count(1)))
        distinct.append(next(name for name in names if name not in distinct))
    return distinct


# -- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(file: SourceFile, options: IngestSettings) -> Iterator[Row]:
    with open_file(file.uri) as stream:
        parquet = pq.ParquetFile(stream)
        schema = parquet.schema_arrow
        check_columns(file.uri, schema.names, options)
        kind = schema.field(options.text_column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise DataContractError(f"{file.uri}: column {options.text_column!r} holds {kind}, expected text")
        number = 0
        for batch in parquet.iter_batches(batch_size=min(options.chunk_rows, 10_000)):
            for values in batch.to_pylist():
                number += 1
                yield GoodRow(number, values)
