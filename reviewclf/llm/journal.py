"""Answers that were paid for, kept from the moment they exist until they are published."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Self, TypeVar

from pydantic import BaseModel, ValidationError

from reviewclf.llm.replies import storable
from reviewclf.store import Store

logger = logging.getLogger(__name__)

_ASIDE = "journal/unreadable"
# A journal that somebody may still be writing to is not removed.
_IDLE = timedelta(hours=1)

Row = TypeVar("Row", bound=BaseModel)


class Journal:
    """One writer's file of rows below a folder of a store.

    In a folder of this machine every row is in the file when :meth:`add` returns; under ``s3://``, where each write is an
    object of its own, at most `flush_seconds` later. A process that is killed loses no more than that.
    """

    def __init__(self, store: Store, folder: str, *, flush_seconds: float = 1.0) -> None:
        self._store = store
        self._key = f"{folder}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
        self._wait = 0.0 if store.is_local else flush_seconds
        self._lines: list[str] = []
        self._part = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, row: BaseModel) -> None:
        """Keep a row."""
        self._lines.append(row.model_dump_json())
        if time.monotonic() - self._flushed >= self._wait:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._lines:
            self._store.append_lines(self._key, self._lines, self._part)
            self._part += 1
            self._lines = []
        self._flushed = time.monotonic()


def read_journals(store: Store, folder: str, kind: type[Row]) -> Iterator[Row]:
    """Rows of all journals of a folder, file by file."""
    for key in store.find(folder):
        yield from _read(store, key, kind)[0]


def forget_journals(
    store: Store, folder: str, kind: type[Row], is_published: Callable[[Row], bool], *, now: datetime | None = None
) -> int:
    """Remove journals whose rows are all published and that nobody has written to for an hour; how many.

    Lines that cannot be read are moved aside, where people can look at them.
    """
    removed = 0
    for key, written in store.find(folder).items():
        if (now or datetime.now(UTC)) - written < _IDLE:
            continue
        rows, unreadable = _read(store, key, kind)
        if not all(map(is_published, rows)):
            continue
        if unreadable:
            aside = f"{_ASIDE}/{key.removeprefix('journal/')}"
            store.append_lines(aside, unreadable, 0)
            logger.warning("%s/%s: %d line(s) cannot be read; moved to %s", store.uri, key, len(unreadable), aside)
        store.remove(key)
        removed += 1
    return removed


def forget_all(store: Store, folder: str, *, idle: timedelta | None = None) -> None:
    """Remove all journals of a folder, or those that nobody has written to for so long."""
    for key, written in store.find(folder).items():
        if idle is None or datetime.now(UTC) - written >= idle:
            store.remove(key)


def _read(store: Store, key: str, kind: type[Row]) -> tuple[list[Row], list[str]]:
    """Rows of a journal, and the lines that are none: what a full disk has torn will be asked for again."""
    rows: list[Row] = []
    unreadable: list[str] = []
    for number, line in enumerate(store.read_lines(key), start=1):
        try:
            rows.append(kind.model_validate_json(storable(line)))
        except ValidationError as error:
            unreadable.append(line)
            logger.warning("%s/%s, line %d cannot be read: %s", store.uri, key, number, error.errors()[0]["msg"])
    return rows, unreadable
