"""Parquet as rows: every type that holds text, and the index that pandas keeps beside the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reviewclf.data.sources.decoding import open_file
from reviewclf.data.sources.layout import distinct
from reviewclf.data.sources.options import ReadOptions
from reviewclf.data.sources.rows import GoodRow, check_columns
from reviewclf.errors import DataContractError

# How pyarrow names the column of an index that has no name.
_NAMELESS_INDEX = "__index_level_"
# Hive and Impala write text as bytes.
_BYTES = {pa.binary(), pa.large_binary(), pa.binary_view()}
_TEXT = {pa.string(), pa.large_string(), pa.string_view(), pa.null(), *_BYTES}


def read_parquet(uri: str, options: ReadOptions) -> Iterator[GoodRow]:
    """Rows of a Parquet file, numbered from 1, with Python's values of its types; none where the file is empty.

    Raises
    ------
    DataContractError
        The text column is missing or holds no text.
    """
    with open_file(uri) as stream:
        if not stream.read(1):
            return
        stream.seek(0)
        parquet = pq.ParquetFile(stream)
        schema = _with_index(parquet.schema_arrow)
        ranges = [_range(entry) for entry in _named_ranges(parquet.schema_arrow)]
        # pandas gives the columns of a frame without rows a type that says nothing.
        if options.needs_text and parquet.metadata.num_rows:
            check_columns(uri, schema.names, options)
            _check_text(uri, schema.field(str(options.text_column)))
        number = 0
        for batch in parquet.iter_batches(batch_size=options.batch_rows):
            columns: list[Iterable[Any]] = [_values(column) for column in batch.columns]
            columns += [index[number : number + batch.num_rows] for index in ranges]
            for values in zip(*columns, strict=True):
                number += 1
                yield GoodRow(number, dict(zip(schema.names, values, strict=True)))


def parquet_schema(uri: str) -> pa.Schema:
    """Names and types of the columns of a Parquet file, as :func:`read_parquet` names them."""
    with open_file(uri) as stream:
        return _with_index(pq.ParquetFile(stream).schema_arrow)


def _with_index(schema: pa.Schema) -> pa.Schema:
    names = []
    for name in schema.names:
        if name.startswith(_NAMELESS_INDEX):
            # As DataFrame.reset_index() calls it.
            level = name.removeprefix(_NAMELESS_INDEX).rstrip("_")
            name = "index" if level == "0" else f"level_{level}"
        names.append(name)
    fields = [*schema, *(pa.field(entry["name"], pa.int64()) for entry in _named_ranges(schema))]
    names = distinct([*names, *(field.name for field in fields[len(names) :])])
    return pa.schema([field.with_name(name) for field, name in zip(fields, names, strict=True)])


def _named_ranges(schema: pa.Schema) -> list[dict[str, Any]]:
    """Indexes of consecutive numbers, which pandas keeps by their bounds alone; one without a name holds nothing to keep."""
    kept = (schema.pandas_metadata or {}).get("index_columns", [])
    return [
        entry for entry in kept if isinstance(entry, dict) and entry.get("kind") == "range" and entry.get("name") is not None
    ]


def _range(entry: dict[str, Any]) -> range:
    return range(entry["start"], entry["stop"], entry["step"])


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[Any] = column.to_pylist()
    except OverflowError:
        values = [_time_or_number(value) for value in column]
    return [value if value is None else _decoded(value) for value in values] if column.type in _BYTES else values


def _time_or_number(value: pa.Scalar) -> Any:
    """A time or, where it lies beyond the years that Python knows, such as the end of 9999, the number that it is."""
    try:
        return value.as_py()
    except OverflowError:
        return value.cast(pa.int64()).as_py()


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _check_text(uri: str, field: pa.Field) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if kind not in _TEXT:
        raise DataContractError(f"{uri}: column {field.name!r} holds {kind}, expected text")
