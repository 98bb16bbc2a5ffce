"""What the tables know of the rows in hand, found by joins: nothing here holds a whole table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa

from reviewclf import tables
from reviewclf.store import Store

# Rows that are cleaned, compared and looked up at once.
BATCH_ROWS = 20_000
# The column of `matching_rows` that counts all rows from 0.
PLACE = "place"


def batches(
    store: Store, keys: Sequence[str], rows: int = BATCH_ROWS, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """All rows under `keys` in tables of `rows` rows, of which the last may hold fewer; there is none where no rows are."""
    waiting: list[pa.Table] = []
    for part in store.iter_tables(keys, columns):
        while part.num_rows:
            head = part.slice(0, rows - sum(table.num_rows for table in waiting))
            waiting.append(head)
            part = part.slice(head.num_rows)
            if sum(table.num_rows for table in waiting) == rows:
                yield pa.concat_tables(waiting, promote_options="default")
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting, promote_options="default")


def scanned(store: Store, keys: Sequence[str], schema: pa.Schema, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """These columns of the rows under `keys`, in order and about `rows` at a time."""
    import polars

    result = pa.schema([schema.field(name) for name in columns])
    for frame in store.batches(store.scan(keys, schema).select(columns), rows):
        yield frame.to_arrow(compat_level=polars.CompatLevel.oldest()).cast(result)


def matching_rows(
    store: Store,
    keys: Sequence[str],
    schema: pa.Schema,
    columns: Sequence[str],
    among: pa.Table | Collection[str],
    *,
    on: str | Sequence[str],
) -> pa.Table:
    """Rows under `keys` whose values of the columns `on` are among those given, in the order of the rows.

    Parameters
    ----------
    schema : Schema
        Contract of all the parts.
    columns : sequence of str
        What is wanted of the rows.
    among : Table with the columns `on`, or collection of str
        The latter where `on` is one column.

    Returns
    -------
    Table
        `columns`, and `place`, the position among all rows under `keys`.
    """
    import polars

    names = [on] if isinstance(on, str) else list(on)
    result = pa.schema([*(schema.field(name) for name in columns), pa.field(PLACE, pa.int64())])
    wanted = among if isinstance(among, pa.Table) else pa.table({names[0]: pa.array(list(among), schema.field(names[0]).type)})
    if not keys or not wanted.num_rows:
        return result.empty_table()
    rows = store.scan(keys, schema).select(list(dict.fromkeys([*columns, *names]))).with_row_index(PLACE)
    return store.collect(rows.join(polars.LazyFrame(wanted), on=names, how="semi").sort(PLACE), result)


def matching_parts(store: Store, keys: Sequence[str], schema: pa.Schema, on: str, among: Collection[str]) -> set[str]:
    """Those of `keys` under which the column `on` holds one of the values `among`."""
    import polars

    result = pa.schema([("part", pa.string())])
    wanted = polars.LazyFrame({on: list(among)}, schema={on: polars.String})
    rows = store.scan(keys, schema, part="part").join(wanted, on=on, how="semi").select("part").unique()
    return set(store.collect(rows, result)["part"].to_pylist()) if among else set()


class KnownReviews:
    """Reviews that are in ``clean`` and ``duplicates``, or come with this run, by their ids and texts.

    Parameters
    ----------
    store : Store
    clean, duplicates : sequence of str
        Keys of the parts.
    """

    _COLUMNS = ("review_id", "text_hash", "source", "created_at")

    def __init__(self, store: Store, clean: Sequence[str], duplicates: Sequence[str]) -> None:
        self._store = store
        self._keys = {"clean": list(clean), "duplicates": list(duplicates)}

    def add(self, clean: Sequence[str], duplicates: Sequence[str]) -> None:
        """Parts that come behind the others."""
        self._keys["clean"] += clean
        self._keys["duplicates"] += duplicates

    def rows(self, table: str, *, ids: Collection[str] = (), texts: Collection[str] = ()) -> pa.Table:
        """Rows of a table with one of these ids, or with one of these texts' hashes, in their order."""
        on, among = ("review_id", ids) if ids else ("text_hash", texts)
        return matching_rows(self._store, self._keys[table], tables.SCHEMAS[table], self._COLUMNS, among, on=on)
