"""Let annotators vote on reviews; what costs money is kept in the journal and held to the budget."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from pydantic import BaseModel, ConfigDict

from reviewclf.labeling.annotators.base import Annotator, Paced, Review, Vote, VoteIdentity
from reviewclf.labeling.journal import VoteJournal, journaled_votes
from reviewclf.llm.budget import Budget, progress
from reviewclf.llm.journal import Journal, forget_all, read_journals
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.storage import Store

logger = logging.getLogger(__name__)

_SPENT = "journal/spent"
# Attempts of one run follow each other within minutes, while its server is away within a few hours.
_ANOTHER_RUN = timedelta(hours=10)


class Spent(BaseModel):
    """What was paid for and is no vote: a question that no review is part of, an answer that was cut, time."""

    model_config = ConfigDict(frozen=True)

    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


class Account:
    """The budget of one run, over all its attempts.

    Parameters
    ----------
    store : Store
        What is no vote is kept there until the run has come to its end.
    budget : Budget
        Counts.
    run : str
        Names the run: what earlier attempts of the same name have spent counts.
    """

    def __init__(self, store: Store, budget: Budget, run: str) -> None:
        self.budget = budget
        self._store, self._folder = store, f"{_SPENT}/{run}"
        self._journal = Journal(store, self._folder)
        # Told of what is spent from several threads.
        self._lock = threading.Lock()

    def spend(self, vote: Vote) -> None:
        """Count a vote; what is not kept as one is kept here."""
        if vote.is_kept:
            with self._lock:
                self.budget.spend(vote)
        else:
            self.count(vote.tokens_in, vote.tokens_out)

    def count(self, tokens_in: int, tokens_out: int) -> None:
        """Count tokens that no vote carries."""
        with self._lock:
            self.budget.count(tokens_in, tokens_out)
            self._journal.add(Spent(tokens_in=tokens_in, tokens_out=tokens_out))

    def may_ask(self, in_flight: int) -> bool:
        """Whether there is room for one more question beside those in flight."""
        return self.budget.reached(in_flight + 1) is None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Count what earlier attempts have spent; at the end forget it, unless an error ends this attempt too."""
        forget_all(self._store, _SPENT, idle=_ANOTHER_RUN)
        for spent in read_journals(self._store, self._folder, Spent):
            self.budget.count(spent.tokens_in, spent.tokens_out, spent.seconds)
        before = self.budget.seconds
        try:
            yield
        except BaseException:
            seconds = self.budget.seconds - before
            with self._lock:
                # A server that is looked for every minute is no reason to write a file a minute.
                if seconds >= 1.0:
                    self._journal.add(Spent(seconds=seconds))
                self._journal.flush()
            raise
        forget_all(self._store, self._folder)


@contextmanager
def paced(asked: object, account: Account) -> Iterator[bool]:
    """Let an account say how much is asked, where whoever asks can be told; whether that is so."""
    if not isinstance(asked, Paced):
        yield False
        return
    before = asked.may_ask, asked.on_cost
    asked.may_ask, asked.on_cost = account.may_ask, account.count
    try:
        yield True
    finally:
        asked.may_ask, asked.on_cost = before


def ask_all(
    store: Store,
    annotators: Sequence[Annotator],
    reviews: Sequence[Review],
    settings: Settings,
    *,
    known: set[VoteIdentity],
    shards: int,
    shard: int = 0,
    account: Account | None = None,
) -> tuple[list[Vote], str | None]:
    """Votes on `reviews` that are not `known`, sorted; and why the asking stopped early, if it did.

    Parameters
    ----------
    shards, shard : int
        How many tasks share the budget, and which of them this is.
    account : Account, optional
        Where the asking is part of a larger run: counts what that has spent, and is opened and closed there.
    """
    stopped = None
    votes: dict[VoteIdentity, Vote] = {}
    for annotator in annotators:
        if not annotator.is_costly:
            votes.update((vote.identity, vote) for vote in annotator.annotate(reviews, known=known))
            continue
        # What a killed attempt was answered is not asked again.
        wanted = {(review.text_hash, *vote) for review in reviews for vote in annotator.expected(review)} - known
        kept = {identity: vote for identity, vote in journaled_votes(store).items() if identity in wanted}
        if kept:
            logger.info("%d votes of an earlier attempt are kept", len(kept))
        arguments = (annotator, reviews, settings, known, wanted, kept)
        if account is not None:
            stopped = _ask_one(store, account, *arguments)
        else:
            run = digest_of([annotator.version, [review.text_hash for review in reviews]])
            of_run = Account(store, Budget(settings.llm, shards=shards, shard=shard), run)
            with of_run.opened():
                stopped = _ask_one(store, of_run, *arguments)
        votes.update(kept)
    return [votes[identity] for identity in sorted(votes)], stopped


def _ask_one(
    store: Store,
    account: Account,
    annotator: Annotator,
    reviews: Sequence[Review],
    settings: Settings,
    known: set[VoteIdentity],
    wanted: set[VoteIdentity],
    votes: dict[VoteIdentity, Vote],
) -> str | None:
    """Ask for what is wanted and not among `votes`, which grow; why it ended early, if it did."""
    budget = account.budget
    for vote in votes.values():
        if vote.tokens_in or vote.tokens_out:
            budget.spend(vote)
    missing = wanted - set(votes)
    open_reviews = [
        review for review in reviews if any((review.text_hash, *vote) in missing for vote in annotator.expected(review))
    ]
    room = budget.room_for_reviews()
    chosen = open_reviews if room is None else open_reviews[: max(0, room - budget.reviews)]
    stopped = budget.reached()
    if stopped is None and len(chosen) < len(open_reviews):
        stopped = f"REVIEWCLF_LLM__MAX_REVIEWS={settings.llm.max_reviews} is reached"
    not_kept: Counter[str] = Counter()
    if chosen and budget.reached() is None:
        with VoteJournal(store) as journal, progress(len(missing)) as shown, paced(annotator, account) as is_paced:
            for vote in annotator.annotate(chosen, known=known | set(votes)):
                if vote.is_kept:
                    journal.add(vote)
                    votes[vote.identity] = vote
                else:
                    not_kept[str(vote.reason)] += 1
                account.spend(vote)
                shown.step()
                if not is_paced and budget.reached() is not None:
                    break
    for reason, count in not_kept.most_common(5):
        logger.warning("%d answer(s) are no votes and will be asked for again: %s", count, reason)
    left = len(wanted - set(votes)) - not_kept.total()
    stopped = stopped or budget.reached(1)
    if stopped is None or left <= 0:
        return None
    stopped = f"{stopped}: {budget.votes} votes on {budget.reviews} reviews, {left} votes left for the next run"
    logger.warning("%s", stopped)
    return stopped
