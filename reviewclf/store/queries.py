"""What is new in a table, and what is known: questions that read key columns of a table, and rows of their own batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from reviewclf import tables
from reviewclf.errors import StoreError
from reviewclf.store.store import Snapshot, Store

if TYPE_CHECKING:
    from polars import DataFrame, LazyFrame

# Rows that are looked up among those of a table at a time.
_BATCH = 100_000


def rows_since(store: Store, snapshot: Snapshot, name: str, since: int | None, on: Sequence[str]) -> LazyFrame:
    """The rows of a table that it did not hold at an earlier snapshot.

    Parameters
    ----------
    snapshot : Snapshot
        Whose rows.
    name : str
        The table.
    since : int or None
        Version of the earlier snapshot; all rows are new where it is None, or of a snapshot that is not kept any more.
    on : sequence of str
        Columns that tell the rows of this table from each other.
    """
    keys = snapshot.keys(name)
    earlier: list[str] = []
    if since is not None and keys:
        if snapshot.tables[name].rows_since <= since:
            keys = []
        else:
            earlier = _kept_parts(store, name, since)
    held = set(earlier)
    rows = store.scan([key for key in keys if key not in held], tables.SCHEMAS[name])
    # Parts that were laid out anew, or lost a row, hold rows that are no news.
    left = [key for key in earlier if key not in set(keys) and store.holds(key)]
    if not left:
        return rows
    known = store.scan(left, tables.SCHEMAS[name]).select(on)
    return rows.join(known, on=list(on), how="anti", nulls_equal=True, maintain_order="left")


def _kept_parts(store: Store, name: str, version: int) -> list[str]:
    try:
        return store.snapshot(version).keys(name)
    except StoreError:
        return []


def known_rows(store: Store, keys: Sequence[str], schema: pa.Schema, rows: DataFrame) -> DataFrame:
    """Those of `rows`, each once, that the parts `keys` hold; compared by the columns that `rows` has.

    The first column of `rows` should tell most of them apart: it is looked for before the others are read.
    """
    import polars

    first, on = rows.columns[0], rows.columns
    wanted = rows.unique()
    if not keys or wanted.is_empty():
        return wanted.clear()
    found = store.scan(keys, schema).select(on).filter(polars.col(first).is_in(wanted[first].unique().implode()))
    # `rows` is the shorter side, so it is the one that is kept in memory.
    known = wanted.lazy().join(found, on=on, how="semi", nulls_equal=True)
    return polars.DataFrame(store.collect(known, pa.schema([schema.field(name) for name in on])))


def count_rows(store: Store, query: LazyFrame) -> int:
    """How many rows a query finds."""
    import polars

    table = store.collect(query.select(rows=polars.len()), pa.schema([("rows", pa.int64())]))
    counted: int = table["rows"][0].as_py()
    return counted


def unknown_parts(store: Store, snapshot: Snapshot, name: str, parts: Sequence[str], on: Sequence[str]) -> list[str]:
    """Parts with those rows of `parts` that a table does not hold yet; usually the same parts.

    Parameters
    ----------
    name : str
        The table, in `snapshot`.
    parts : sequence of str
        Keys of what is to be appended to it.
    on : sequence of str
        Columns that tell its rows from each other, that which tells most of them apart first.
    """
    import polars

    keys, schema = snapshot.keys(name), tables.SCHEMAS[name]
    new: list[str] = []
    for group in _groups(store, parts):
        seen = known_rows(store, keys, schema, polars.concat([rows.select(on) for _, rows in group]))
        for part, rows in group:
            fresh = rows.unique(on, keep="first", maintain_order=True).join(
                seen, on=list(on), how="anti", nulls_equal=True, maintain_order="left"
            )
            seen = polars.concat([seen, fresh.select(on)])
            new += [part] if len(fresh) == len(rows) else store.put_part(fresh.to_arrow().cast(schema))
    return new


def _groups(store: Store, parts: Sequence[str]) -> Iterator[list[tuple[str, DataFrame]]]:
    """Parts with their rows, as many at a time as make a batch."""
    import polars

    group: list[tuple[str, DataFrame]] = []
    for part, rows in zip(parts, store.iter_tables(parts), strict=True):
        group.append((part, polars.DataFrame(rows)))
        if sum(len(held) for _, held in group) >= _BATCH:
            yield group
            group = []
    if group:
        yield group
