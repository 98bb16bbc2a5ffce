"""What a store holds, to be compared with another, and writers that die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from deltalake import DeltaTable

from reviewclf.store import Store
from reviewclf.store.delta import digest_of_part


class Killed(BaseException):
    """What kills a process: no handler for errors sees it."""


def held(uri: str) -> tuple[Any, ...]:
    """All that the newest snapshot says but how often a table was written to: a killed writer's commit counts there too."""
    snapshot = Store(uri).snapshot()
    parts = {name: [digest_of_part(key) for key in snapshot.keys(name)] for name in snapshot.tables}
    return snapshot.version, snapshot.applied, snapshot.state, parts


@contextmanager
def before_each_write(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the write, from 0, before anything is created in a store or committed to a table."""
    create, commit = Store.create, DeltaTable.create_write_transaction
    writes = 0

    def count() -> None:
        nonlocal writes
        act(writes)
        writes += 1

    def counted_create(self: Store, key: str, data: bytes) -> bool:
        count()
        return create(self, key, data)

    def counted_commit(self: DeltaTable, *arguments: Any, **named: Any) -> None:
        count()
        commit(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "create", counted_create)
        patch.setattr(DeltaTable, "create_write_transaction", counted_commit)
        yield


def killed_after(writes: int, work: Callable[[], object]) -> bool:
    """Do `work`, and whether it was killed before the write after so many."""

    def die(number: int) -> None:
        if number >= writes:
            raise Killed

    with before_each_write(die):
        try:
            work()
        except Killed:
            return True
    return False
