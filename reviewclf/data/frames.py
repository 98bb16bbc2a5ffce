"""Small tables read and written whole: gold labels, votes, files to predict on. Sources of any size go through `sources`."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import re
import uuid
from dataclasses import replace
from datetime import date, time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from reviewclf.data.sources.files import DELIMITED, KNOWN, LINES, read_file, suffix_of
from reviewclf.data.sources.options import ReadOptions
from reviewclf.data.sources.rows import BadRow, to_json
from reviewclf.errors import DataContractError
from reviewclf.outages import reading

WRITABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

# Excel, LibreOffice and Google Sheets run a cell that begins so; plain numbers (-5, +7 912) begin so as well and do no harm.
_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
_PLAIN_NUMBER = re.compile(r"[+-]?\d[\d ]*(?:[.,]\d+)?")


def protect_from_excel(text: str) -> str:
    """The text with an apostrophe before what Excel would run as a formula; :func:`unprotect_from_excel` gives it back."""
    return f"'{text}" if _FORMULA.match(text) and not _PLAIN_NUMBER.fullmatch(text) else text


def unprotect_from_excel(text: str) -> str:
    """The text as it was before :func:`protect_from_excel`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def read_frame(
    uri: str, *, setting: str = "the path", excel_safe: bool = False, options: ReadOptions | None = None
) -> pd.DataFrame:
    """Read a file of delimited text, JSON Lines or Parquet, local or ``s3://``, as sources are read; one bad row refuses it.

    Values are what stands in the file, in columns of ``object``: delimited text holds text alone («007», «nan»), and only empty
    cells are missing; JSON Lines and Parquet keep their numbers, lists and times; what is missing is None.

    Parameters
    ----------
    uri : str
        The file.
    setting : str
        Setting or argument that names it, for messages.
    excel_safe : bool
        Take away the apostrophes that ``write_frame(..., excel_safe=True)`` has put before formulas.
    options : ReadOptions, optional
        What is known of the file; default: all is recognised.

    Raises
    ------
    DataContractError
        The file is missing, without rows, of another kind, or a row cannot be read; the message names file, row and `setting`.
    SourceUnavailableError
        The server that holds it is away.
    """
    suffix = suffix_of(uri)
    if suffix is None:
        raise DataContractError(f"{uri}: unknown kind of file; expected one of {', '.join(KNOWN)} ({setting})")
    known = replace(options or ReadOptions(), setting=setting)
    names: dict[str, None] = {}
    rows = []
    for row in read_file(uri, known):
        if isinstance(row, BadRow):
            raise DataContractError(
                f"{uri}: cannot be parsed as {suffix[1:]}: row {row.row_number}: {row.reason}: {row.payload!r:.120}; "
                f"mend the row{_way_out(row, known)} ({setting})"
            )
        names.update(dict.fromkeys(row.values))
        rows.append(row.values)
    if not rows:
        raise DataContractError(f"{uri}: is empty: it holds no rows; check {setting}")
    if excel_safe and suffix in DELIMITED:
        names = dict.fromkeys(map(unprotect_from_excel, names))
        rows = [{unprotect_from_excel(name): cell and unprotect_from_excel(cell) for name, cell in row.items()} for row in rows]
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _way_out(row: BadRow, options: ReadOptions) -> str:
    return options.or_set("quoting", "standard, backslash or none") if '"' in row.payload else ""


def write_frame(
    frame: pd.DataFrame,
    path: str,
    *,
    for_people: bool = False,
    excel_safe: bool = False,
    separator: str | None = None,
    schema: pa.Schema | None = None,
) -> None:
    """Write `frame` as CSV, TSV, JSON Lines or Parquet, by the ending of `path`; text also with ``.gz``.

    A local file appears whole or not at all.

    Parameters
    ----------
    frame : DataFrame
        What :func:`read_frame` gives, or any other frame; its index is not written.
    path : str
        Local, or ``s3://``.
    for_people : bool
        Begin delimited text with a byte order mark, without which Excel takes Cyrillic letters for others.
    excel_safe : bool
        Put an apostrophe before cells of delimited text that Excel would run as a formula;
        ``read_frame(..., excel_safe=True)`` takes it away again.
    separator : str, optional
        Of delimited text; default: tab for ``.tsv``, else comma. Excel in Russian expects a semicolon.
    schema : Schema, optional
        Types of Parquet's columns, where they are known; those of other columns follow from their values.

    Raises
    ------
    DataContractError
        Unknown ending, a column whose values Parquet cannot hold, or the file cannot be written.
    """
    suffix = writable_suffix(path)
    if suffix == ".parquet":
        content = io.BytesIO()
        pq.write_table(to_arrow(frame, schema, name=path), content)
        data = content.getvalue()
    elif suffix in LINES:
        rows = (
            {name: None if is_missing(value) else value for name, value in zip(frame.columns, row, strict=True)}
            for row in frame.itertuples(index=False, name=None)
        )
        data = "".join(f"{to_json(row, default=_plain)}\n" for row in rows).encode()
    else:
        text = _delimited(frame, separator or ("\t" if suffix == ".tsv" else ","), excel_safe=excel_safe)
        data = text.encode("utf-8-sig" if for_people else "utf-8", "replace")
    try:
        _store(gzip.compress(data, mtime=0) if path.lower().endswith(".gz") else data, path)
    except OSError as error:
        raise DataContractError(f"{path}: cannot be written: {error}") from error


def writable_suffix(path: str) -> str:
    """The ending that says which kind of file `path` is, without ``.gz``.

    Raises
    ------
    DataContractError
        It is unknown, or Parquet with ``.gz``.
    """
    suffix = suffix_of(path)
    if suffix not in WRITABLE or (suffix == ".parquet" and path.lower().endswith(".gz")):
        raise DataContractError(f"{path}: unknown kind of file; expected one of {', '.join(WRITABLE)}")
    return suffix


def check_target(path: str) -> None:
    """Refuse a file that :func:`write_frame` could not write, before there is anything to write.

    Raises
    ------
    DataContractError
        Its ending is unknown, it is a folder, or its folder is missing or may not be written to.
    """
    writable_suffix(path)
    filesystem, local = fsspec.core.url_to_fs(path)
    if not isinstance(filesystem, LocalFileSystem):
        return
    target = Path(local).resolve()
    if target.is_dir():
        raise DataContractError(f"{path}: cannot be written: it is a folder")
    if not target.parent.is_dir():
        raise DataContractError(f"{path}: cannot be written: there is no folder {target.parent}; create it first")
    if not os.access(target.parent, os.W_OK):
        raise DataContractError(f"{path}: cannot be written: the folder {target.parent} may not be written to")


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, NA or NaT; unlike ``pandas.isna`` one answer for a list as well."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def to_arrow(frame: pd.DataFrame, schema: pa.Schema | None = None, *, name: str) -> pa.Table:
    """`frame` as an Arrow table, with the types of `schema` for the columns that it names.

    Raises
    ------
    DataContractError
        A column's values have no common type; names the column.
    """
    arrays = []
    names = [str(column) for column in frame.columns]
    for position, column in enumerate(names):
        kind = schema.field(column).type if schema is not None and column in schema.names else None
        try:
            array = pa.array(frame.iloc[:, position], type=kind, from_pandas=True)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise DataContractError(
                f"{name}: Parquet cannot hold column {column!r}: {error}; write a file that ends in .jsonl or .csv"
            ) from error
        # A column without any value has the type null, which few tools but Arrow can read.
        arrays.append(array.cast(pa.string()) if pa.types.is_null(array.type) else array)
    return pa.table(arrays, names=names)


def _delimited(frame: pd.DataFrame, separator: str, *, excel_safe: bool) -> str:
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    header = [str(name) for name in frame.columns]
    if excel_safe:
        header, *rows = [[protect_from_excel(cell) for cell in row] for row in (header, *rows)]
    # Quotes around everything tell readers beyond doubt that a line break inside quotes ends no row, and that what ends the
    # lines of a single column is no separator.
    is_spread = len(header) == 1 or any("\n" in cell or "\r" in cell for row in rows for cell in row)
    text = io.StringIO(newline="")
    writer = csv.writer(
        text, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL if is_spread else csv.QUOTE_MINIMAL
    )
    writer.writerows([header, *rows])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if is_missing(value):
        return ""
    if isinstance(value, list | tuple | dict | np.ndarray):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(_plain(value)) if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """What JSON does not know, as something that it knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return None if is_missing(value) else str(value)


def _store(data: bytes, path: str) -> None:
    filesystem, local = fsspec.core.url_to_fs(path)
    if not isinstance(filesystem, LocalFileSystem):
        with reading(path), filesystem.open(local, "wb") as file:
            file.write(data)
        return
    target = Path(local).resolve()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
