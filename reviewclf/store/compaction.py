"""Small parts of tables put together, so that a table of many nights is not a table of many files."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow as pa

from reviewclf.manifest import digest_of
from reviewclf.store.delta import PartSize
from reviewclf.store.store import Change, Snapshot, Store

logger = logging.getLogger(__name__)

# What a part holds at most, and how many are put together at least: each row is written anew every few nights, not every night.
_ROWS = 50_000
_BYTES = 64 * 2**20
_FEWEST = 4
# Their parts leave or stay as a whole, a category each, or are told apart by their names.
_APART = frozenset({"synthetic", "rejected_synthetic", "synthetic_written", "synthetic_votes"})


def compact(store: Store, *, dry_run: bool = False) -> dict[str, int]:
    """Put neighbouring small parts of each table together; the rows, and their order, stay.

    Tables are published one by one, and of each no more than one new part is in memory. A run that was killed leaves the
    tables that it had come to compacted and the others as they were.

    Returns
    -------
    dict
        By table, how many parts fewer it has, or would have.
    """
    fewer: dict[str, int] = {}
    for name in sorted(store.snapshot().tables.keys() - _APART):

        def decide(base: Snapshot, name: str = name) -> Change | None:
            groups = list(_groups(store.delta.sizes(name, base.tables[name].version)))
            fewer[name] = sum(len(group) - 1 for group in groups)
            if dry_run or not fewer[name]:
                return None
            keys = [key for group in groups for key in _together(store, group)]
            return Change(f"compact:{name}:{digest_of(keys)}", replace={name: keys}, is_data=False)

        store.publish(decide)
    return {name: count for name, count in fewer.items() if count}


def _groups(parts: list[PartSize]) -> Iterator[list[PartSize]]:
    """The parts in their order, those that are put together in one list."""
    group: list[PartSize] = []
    for part in parts:
        together = [*group, part]
        if group and (sum(one.rows for one in together) > _ROWS or sum(one.bytes for one in together) > _BYTES):
            yield from [group] if len(group) >= _FEWEST else ([one] for one in group)
            together = [part]
        group = together
    yield from [group] if len(group) >= _FEWEST else ([one] for one in group)


def _together(store: Store, group: list[PartSize]) -> list[str]:
    keys = [part.key for part in group]
    return keys if len(keys) == 1 else [store.put_table(pa.concat_tables(store.iter_tables(keys)).combine_chunks())]
