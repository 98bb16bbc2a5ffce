"""Votes that were paid for, kept from the moment they exist until they are published."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from types import TracebackType

from pydantic import ValidationError

from reviewclf.labeling.annotators.base import Vote, VoteIdentity
from reviewclf.storage import Store

_FOLDER = "journal/votes"
# A journal that somebody may still be writing to is not removed.
_IDLE = timedelta(hours=1)


class VoteJournal:
    """One writer's file of votes below ``journal/votes`` of a store.

    In a folder every vote is in the file when :meth:`add` returns; under ``s3://``, where each write is an object of its own,
    at most `flush_seconds` later. A process that is killed loses no more than that.
    """

    def __init__(self, store: Store, *, flush_seconds: float = 1.0) -> None:
        self._store = store
        self._key = f"{_FOLDER}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
        self._wait = 0.0 if store.is_local else flush_seconds
        self._lines: list[str] = []
        self._part = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> VoteJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.flush()

    def add(self, vote: Vote) -> None:
        """Keep a vote."""
        self._lines.append(vote.model_dump_json())
        if time.monotonic() - self._flushed >= self._wait:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._lines:
            self._store.append_lines(self._key, self._lines, self._part)
            self._part += 1
            self._lines = []
        self._flushed = time.monotonic()


def journaled_votes(store: Store) -> dict[VoteIdentity, Vote]:
    """All votes in journals; of the same vote twice the earlier one."""
    votes: dict[VoteIdentity, Vote] = {}
    for key in store.journals(_FOLDER):
        for vote in _read(store, key):
            votes.setdefault(vote.identity, vote)
    return votes


def forget_published(store: Store, published: set[VoteIdentity], *, now: datetime | None = None) -> int:
    """Remove journals whose votes are all published and that nobody has written to for an hour; how many."""
    removed = 0
    for key, written in store.journals(_FOLDER).items():
        if (now or datetime.now(UTC)) - written < _IDLE:
            continue
        if all(vote.identity in published for vote in _read(store, key)):
            store.remove_journal(key)
            removed += 1
    return removed


def _read(store: Store, key: str) -> Iterable[Vote]:
    for line in store.read_lines(key):
        # A line torn by a full disk is no vote; it will be asked for again.
        with contextlib.suppress(ValidationError):
            yield Vote.model_validate_json(line)
