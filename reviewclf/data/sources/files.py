"""Files of reviews: which there are, what identifies their content, how their rows are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from reviewclf.data.sources.columnar import read_parquet
from reviewclf.data.sources.decoding import text_lines
from reviewclf.data.sources.delimited import records
from reviewclf.data.sources.layout import Layout, recognise, rows_among, rows_of
from reviewclf.data.sources.options import ReadOptions
from reviewclf.data.sources.rows import BadRow, GoodRow, check_columns
from reviewclf.errors import DataContractError
from reviewclf.outages import reading
from reviewclf.settings import IngestSettings

DELIMITED = (".csv", ".tsv", ".txt")
LINES = (".jsonl", ".ndjson", ".json")
COLUMNAR = (".parquet",)
KNOWN = (*DELIMITED, *LINES, *COLUMNAR)
_KINDS = f"{', '.join(KNOWN)}, also with .gz"

_BLOCK = 1 << 20
# Column names that are read or shown at most, where JSON objects could hold any number of them.
_NAMED_FIELDS = 50
# A JSON value that has not ended after so many lines is one value, not lines of JSON.
_PEEKED_LINES = 1_000
_SHOWN = 3

logger = logging.getLogger(__name__)

Row = GoodRow | BadRow


@dataclass(frozen=True)
class SourceFile:
    """One file: its address, a digest that changes with its content, and its path below the source's folder."""

    uri: str
    fingerprint: str
    name: str


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
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        # These signs may stand in the name of a file as well.
        folder = path.rpartition("/")[0]
        if any(sign in path for sign in "*?[") and not fs.exists(path):
            folder = re.split(r"[*?[]", path, maxsplit=1)[0].rpartition("/")[0]
            paths = _of_known_kinds(fs.glob(path), path)
        elif fs.isdir(path):
            folder = path.rstrip("/")
            paths = _of_known_kinds(fs.find(path), path)
        elif not fs.exists(path):
            raise DataContractError(f"{uri}: there is no such file or folder; check REVIEWCLF_SOURCE")
        elif suffix_of(path) is None:
            raise DataContractError(f"{uri}: unknown kind of file; expected one of {_KINDS}")
        else:
            paths = [path]
        files = [_describe(fs, found, folder) for found in sorted(paths)]
    except (OSError, ValueError, ImportError) as error:
        raise DataContractError(f"{uri}: cannot be read: {error}; check REVIEWCLF_SOURCE") from error
    if not files:
        raise DataContractError(f"{uri}: no file there ends in one of {_KINDS}; check REVIEWCLF_SOURCE")
    return files


def read_rows(file: SourceFile, options: IngestSettings) -> Iterator[Row]:
    """Rows of a source's file one after another, numbered from 1; none, with a warning, where it is empty.

    Raises
    ------
    DataContractError
        The file is in no known encoding, damaged, or without the text column.
    SourceUnavailableError
        The server that holds it went away.
    """
    n = 0
    for n, row in enumerate(read_file(file.uri, ReadOptions.of(options)), start=1):  # noqa: B007 - counts
        yield row
    if not n:
        logger.warning("%s: holds no rows", file.uri)


def read_file(uri: str, options: ReadOptions) -> Iterator[Row]:
    """Rows of a file one after another, numbered from 1. All that is read from files is read here.

    Raises
    ------
    DataContractError
        The file is of an unknown kind, in no known encoding, or damaged, or it lacks a column that must be there.
    SourceUnavailableError
        The server that holds it went away.
    """
    suffix = suffix_of(uri)
    if suffix is None:
        raise DataContractError(f"{uri}: unknown kind of file; expected one of {_KINDS} ({options.setting})")
    reader = read_parquet if suffix in COLUMNAR else _lines if suffix in LINES else _delimited
    with reading(uri):
        try:
            yield from reader(uri, options)
        except (OSError, EOFError, ImportError, zlib.error, pa.ArrowException) as error:
            raise DataContractError(f"{uri}: cannot be read as {suffix}: {error}; check {options.setting}") from error


def _of_known_kinds(paths: list[str], source: str) -> list[str]:
    """The files that can be read; a word about others that may hold reviews."""
    asked = [path for path in paths if not _is_aside(path, source)]
    strange = [path for path in asked if not suffix_of(path)]
    if strange:
        logger.warning(
            "%s: %d files of a kind that is not read are left out, such as %s; what is read: %s",
            source,
            len(strange),
            ", ".join(path.rpartition("/")[2] for path in strange[:_SHOWN]),
            _KINDS,
        )
    return [path for path in asked if suffix_of(path)]


def _is_aside(path: str, source: str) -> bool:
    """Whether a file, or a folder above it, is hidden or begins with ``_``, as what Spark, Delta and macOS keep beside data.

    What the source itself names, as in ``_new/*.csv``, is asked for.
    """
    asked, found = source.rstrip("/").split("/"), path.split("/")
    common = next((n for n, (one, other) in enumerate(zip(asked, found, strict=False)) if one != other), len(asked))
    allowed = {part[:1] for part in asked[common:]}
    return any(part[:1] in ("_", ".") and part[:1] not in allowed for part in found[common:])


def _describe(fs: Any, path: str, folder: str) -> SourceFile:
    name = path.removeprefix(f"{folder}/")
    if isinstance(fs, LocalFileSystem):
        digest = hashlib.blake2b(digest_size=16)
        with fs.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return SourceFile(path, digest.hexdigest(), name)
    info = fs.info(path)
    tag = str(info.get("ETag") or info.get("LastModified")).strip('"')
    return SourceFile(fs.unstrip_protocol(path), f"{tag}:{info['size']}", name)


# -- text ------------------------------------------------------------------------------------------------------------


def _lines(uri: str, options: ReadOptions) -> Iterator[Row]:
    lines = (line for line in text_lines(uri, options) if line.strip())
    peeked = list(itertools.islice(lines, 1))
    if peeked and isinstance(_load(peeked[0]), str):
        peeked.extend(itertools.islice(lines, _PEEKED_LINES))
        _refuse_single_value(uri, peeked)
    found: dict[str, None] = {}
    has_text = False
    number = 0
    text: Any = None
    for number, line in enumerate(itertools.chain(peeked, lines), start=1):
        row = _json_row(number, line, options)
        if isinstance(row, GoodRow):
            has_text, text = True, row.values.get(str(options.text_column))
        elif len(found) < _NAMED_FIELDS and not isinstance(values := _load(line), str):
            found.update(dict.fromkeys(itertools.islice(values, _NAMED_FIELDS)))
        yield row
    if found and not has_text:
        # Not one row of the file has it: that is the wrong column, not a malformed row.
        check_columns(uri, list(found)[:_NAMED_FIELDS], options)
    if number == 1 and options.needs_text and isinstance(text, dict | list):
        raise DataContractError(
            f"{uri}: is one JSON object of whole columns; write one object a line (JSON Lines): "
            "DataFrame.to_json(orient='records', lines=True)"
        )


def _json_row(number: int, line: str, options: ReadOptions) -> Row:
    payload = line.rstrip("\r\n")
    values = _load(line)
    if isinstance(values, str):
        return BadRow(number, f"malformed_json: {values}", payload)
    if options.needs_text and options.text_column not in values:
        return BadRow(number, f"no_text: no field {options.text_column!r}; found {', '.join(values) or 'none'}", payload)
    return GoodRow(number, values, payload)


def _load(line: str) -> dict[str, Any] | str:
    """The object of a line, or why there is none."""
    try:
        values = json.loads(line, parse_constant=_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return str(error)
    return values if isinstance(values, dict) else f"expected an object, found {type(values).__name__}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name = next((name for name, value in pairs if value is not values[name] and value != values[name]), None)
        if name is not None:
            raise ValueError(f"the field {name!r} stands twice, with different values")
    return values


def _constant(name: str) -> float | None:
    # NaN is what pandas and numpy write for a missing value.
    return None if name == "NaN" else float(name)


def _refuse_single_value(uri: str, lines: list[str]) -> None:
    """Refuse a file whose first line is only the beginning of a JSON value."""
    if lines[0].lstrip().startswith("["):
        raise DataContractError(f"{uri}: is one JSON array; write one object a line (JSON Lines): jq -c '.[]'")
    text = "".join(lines).strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
        is_spread = end > len(lines[0].strip())
        if text[end : len(lines[0].strip())].lstrip().startswith("{"):
            raise DataContractError(
                f"{uri}: holds several JSON objects in one line; write one object a line (JSON Lines): jq -c ."
            )
    except json.JSONDecodeError as error:
        is_spread = len(lines) > 1 and error.pos >= len(text)
    except (ValueError, RecursionError):
        is_spread = False
    if is_spread:
        raise DataContractError(
            f"{uri}: holds JSON that is spread over several lines; write one object a line (JSON Lines): jq -c"
        )


def _delimited(uri: str, options: ReadOptions) -> Iterator[Row]:
    layout = recognise(uri, options)
    if layout is None:
        return
    if options.needs_text:
        check_columns(uri, layout.columns, options)
    for number, (fields, payload) in enumerate(rows_of(uri, layout, options), start=1):
        yield _row(number, fields, payload, layout)


def _row(number: int, fields: list[str] | str, payload: str, layout: Layout) -> Row:
    if isinstance(fields, str):
        return BadRow(number, fields, payload, json.dumps(layout, ensure_ascii=False))
    empty = ("", r"\N") if layout.quoting == "backslash" else ("",)
    values = {name: None if value in empty else value for name, value in zip(layout.columns, fields, strict=True)}
    return GoodRow(number, values, payload)


def reread(row: BadRow, layout: Layout | None, options: ReadOptions) -> Row:
    """Read a row again that was refused: a line of a delimited file of this layout or, without one, a line of JSON."""
    if layout is None:
        return _json_row(row.row_number, row.payload, options)
    layout = layout._replace(separator=options.known_separator() or layout.separator)
    if options.quoting != "auto":
        layout = layout._replace(quoting=options.quoting)
    lines = iter(row.payload.splitlines(keepends=True))
    found = list(rows_among(records(lines, layout.separator, layout.quoting), layout))
    if len(found) != 1:
        return row
    if options.text_column not in layout.columns:
        return row._replace(reason=f"no_text: no column {options.text_column!r}; found {', '.join(layout.columns)}")
    return _row(row.row_number, found[0][0], row.payload, layout)
