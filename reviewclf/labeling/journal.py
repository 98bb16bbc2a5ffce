"""The journal of votes: each is kept from the moment it exists until it is published."""

from __future__ import annotations

from datetime import datetime

from reviewclf.labeling.annotators.base import Vote, VoteIdentity
from reviewclf.llm.journal import Journal, forget_journals, read_journals
from reviewclf.storage import Store

_FOLDER = "journal/votes"


def vote_journal(store: Store) -> Journal:
    """A journal for one writer of votes."""
    return Journal(store, _FOLDER)


def journaled_votes(store: Store) -> dict[VoteIdentity, Vote]:
    """All votes in journals; of the same vote twice the earlier one."""
    votes: dict[VoteIdentity, Vote] = {}
    for vote in read_journals(store, _FOLDER, Vote):
        votes.setdefault(vote.identity, vote)
    return votes


def forget_published(store: Store, published: set[VoteIdentity], *, now: datetime | None = None) -> int:
    """Remove journals whose votes are all published and that nobody has written to for an hour; how many."""
    return forget_journals(store, _FOLDER, Vote, lambda vote: vote.identity in published, now=now)
