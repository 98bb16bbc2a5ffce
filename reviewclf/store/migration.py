"""A store of the earlier format, taken over once.

There ``log/000000000007.json`` named the objects that made up each table. Its newest version becomes one snapshot over Delta
tables that hold the same rows; keys of commits and state go along, so that the next night takes only what is new.
"""

from __future__ import annotations

import contextlib

import pyarrow as pa
from pydantic import BaseModel, JsonValue, ValidationError

from reviewclf.errors import ConflictError, StoreError
from reviewclf.store.store import Snapshot, Store

# What version 0.1.0 wrote and nothing reads any more.
_DEAD = "signatures"
_ATTEMPTS = 10


class _Earlier(BaseModel):
    """A snapshot of the earlier format."""

    version: int
    tables: dict[str, list[str]] = {}
    applied: list[str] = []
    state: dict[str, JsonValue] = {}


def migrate(store: Store) -> tuple[int, dict[str, int]]:
    """Take over a store of the earlier format.

    A run that was killed leaves the store as it was, but for files that the next one uses. Nothing of the earlier format is
    changed or removed. No run of the earlier version may be going on: what it publishes afterwards is not taken over.

    Returns
    -------
    tuple of int and dict
        The version that was taken over, 0 where there was none left to be taken over; and the rows of each table now.

    Raises
    ------
    StoreError
        A snapshot is damaged, or rows break the contract of their table.
    """
    for _ in range(_ATTEMPTS):
        earlier = None if store.newest("snapshots") else _read_earlier(store)
        if earlier is None:
            return 0, _rows(store, store.snapshot())
        parts = {name: keys for name, keys in earlier.tables.items() if keys and name != _DEAD}
        if "seen" in parts:
            parts["seen"] = [_signed(store, key) for key in parts["seen"]]
        base = Snapshot(version=earlier.version, applied=earlier.applied)
        with contextlib.suppress(ConflictError):
            found = store.commit(base, key=f"migrate:{earlier.version}", replace=parts, state=earlier.state)
            return earlier.version, _rows(store, found)
    raise ConflictError(f"{store.uri}: other runs kept writing first; end them, then run this again")


def _read_earlier(store: Store) -> _Earlier | None:
    name = store.newest("log")
    if name is None:
        return None
    try:
        return _Earlier.model_validate_json(store.read_bytes(f"log/{name}"))
    except ValidationError as error:
        raise StoreError(f"{store.uri}/log/{name}: is damaged ({error}); restore it from a back-up") from error


def _signed(store: Store, key: str) -> str:
    """The same 64 bits as a number that Delta knows."""
    rows = store.read_table([key])["row"]
    if rows.type != pa.uint64():
        return key
    return store.put_table(pa.table({"row": pa.chunked_array([chunk.view(pa.int64()) for chunk in rows.chunks], pa.int64())}))


def _rows(store: Store, snapshot: Snapshot) -> dict[str, int]:
    return {name: store.delta.rows(name, held.version) for name, held in snapshot.tables.items()}
