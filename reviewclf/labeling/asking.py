"""Let annotators vote on reviews; what costs money is kept in the journal and held to the budget."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime

import pandas as pd

from reviewclf import tables
from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators import Annotator, Review, Vote, VoteIdentity, make_annotators
from reviewclf.llm.budget import Budget, Paced, progress
from reviewclf.llm.journal import Journal, forget_journals, read_journals
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings, load_settings
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash

logger = logging.getLogger(__name__)

_FOLDER = "journal/votes"


def run_llm(
    texts: Sequence[str],
    n_votes: int | None = None,
    *,
    settings: Settings | None = None,
    annotator: Annotator | None = None,
) -> pd.DataFrame:
    """Votes of the configured language model on texts, without store or DAG: for a notebook or a quick look.

    Parameters
    ----------
    texts : sequence of str
        Reviews; equal ones (up to case and punctuation) are asked about once.
    n_votes : int, optional
        Votes per review; default: ``REVIEWCLF_LLM__VOTES``.
    settings : Settings, optional
        Default: environment and ``.env``.
    annotator : Annotator, optional
        Who votes; default: the one that ``REVIEWCLF_LLM__BACKEND`` names.

    Returns
    -------
    DataFrame
        The votes table: one row a vote, ``label`` null (and ``reason`` set) where an answer could not be read. A budget
        (``REVIEWCLF_LLM__MAX_*``) may end it early.

    Raises
    ------
    LabelingError, AnnotatorUnavailableError
        The model cannot be asked any more; the error's attribute ``votes`` holds the table of what it had answered by then.
    """
    settings = settings or load_settings()
    if n_votes is not None:
        settings = settings.model_copy(update={"llm": settings.llm.model_copy(update={"votes": n_votes})})
    if annotator is None:
        annotator = make_annotators(settings, Taxonomy.load(settings.taxonomy))[0]
    reviews = list({key: Review(text_hash=key, text=text) for text in texts for key in (text_hash(text),)}.values())
    budget = Budget(settings.llm)
    votes: list[Vote] = []
    try:
        votes.extend(_votes_within(budget, annotator, reviews[: budget.room_for_reviews()]))
    except LabelingError as error:
        # They were paid for.
        error.votes = _table(votes)
        if votes:
            error.add_note(f"{len(votes)} votes were given before; this error holds them as its attribute votes")
        raise
    return _table(votes)


def _table(votes: Sequence[Vote]) -> pd.DataFrame:
    rows = [vote.model_dump() for vote in sorted(votes, key=lambda vote: vote.identity)]
    return pd.DataFrame(rows, columns=tables.VOTE_SCHEMA.names)


def expected_votes(annotators: Sequence[Annotator], review: Review) -> set[VoteIdentity]:
    """The votes that annotators would give on a review."""
    return {(review.text_hash, *vote) for annotator in annotators for vote in annotator.expected(review)}


def ask_all(
    store: Store,
    annotators: Sequence[Annotator],
    reviews: Sequence[Review],
    settings: Settings,
    *,
    known: set[VoteIdentity],
    shards: int,
    shard: int = 0,
    budget: Budget | None = None,
) -> tuple[list[Vote], str | None]:
    """Votes on `reviews` that are not `known`, sorted; and why the asking stopped early, if it did.

    Parameters
    ----------
    shards, shard : int
        How many tasks share the budget, and which of them this is.
    budget : Budget, optional
        Where the asking is part of a larger run: counts what that has spent, and is opened there.
    """
    stopped = None
    votes: dict[VoteIdentity, Vote] = {}
    for annotator in annotators:
        if not annotator.is_costly:
            votes.update((vote.identity, vote) for vote in annotator.annotate(reviews, known=known))
            continue
        run = digest_of([annotator.version, [review.text_hash for review in reviews]])
        own = Budget(settings.llm, shards=shards, shard=shard)
        with own.opened(store, run) if budget is None else nullcontext():
            given, stopped = _ask_costly(store, budget or own, annotator, reviews, known)
        votes.update(given)
    return [votes[identity] for identity in sorted(votes)], stopped


def _ask_costly(
    store: Store, budget: Budget, annotator: Annotator, reviews: Sequence[Review], known: set[VoteIdentity]
) -> tuple[dict[VoteIdentity, Vote], str | None]:
    wanted = set().union(*(expected_votes([annotator], review) for review in reviews)) - known
    # What a killed attempt was answered is not asked again.
    votes = {identity: vote for identity, vote in journaled_votes(store).items() if identity in wanted}
    if votes:
        logger.info("%d votes of an earlier attempt are kept", len(votes))
    for vote in votes.values():
        if vote.tokens_in or vote.tokens_out:
            budget.spend(vote.tokens_in, vote.tokens_out, review=vote.text_hash)
    missing = {identity[0] for identity in wanted - set(votes)}
    open_reviews = [review for review in reviews if review.text_hash in missing]
    chosen = open_reviews[: budget.room_for_reviews()]
    stopped = budget.reached()
    not_kept: Counter[str] = Counter()
    if chosen and stopped is None:
        with vote_journal(store) as journal:
            for vote in _votes_within(budget, annotator, chosen, known=known | set(votes)):
                if vote.is_kept:
                    journal.add(vote)
                    votes[vote.identity] = vote
                else:
                    not_kept[str(vote.reason)] += 1
    for reason, count in not_kept.most_common(5):
        logger.warning("%d answer(s) are no votes and will be asked for again: %s", count, reason)
    if stopped is None and len(chosen) < len(open_reviews):
        stopped = f"REVIEWCLF_LLM__MAX_REVIEWS={budget.max_reviews} is reached"
    stopped = stopped or budget.reached(1)
    left = len(wanted - set(votes)) - not_kept.total()
    if stopped is None or left <= 0:
        return votes, None
    stopped = f"{stopped}: {budget.votes} votes on {budget.reviews} reviews, {left} votes left for the next run"
    logger.warning("%s", stopped)
    return votes, stopped


def _votes_within(
    budget: Budget, annotator: Annotator, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()
) -> Iterator[Vote]:
    """Votes as they come, each counted, until the budget ends it."""
    if isinstance(annotator, Paced):
        annotator.budget = budget
    expected = (identity for review in reviews for identity in expected_votes([annotator], review))
    with progress(sum(identity not in known for identity in expected)) as step:
        for vote in annotator.annotate(reviews, known=known):
            if vote.is_kept:
                budget.spend(vote.tokens_in, vote.tokens_out, review=vote.text_hash)
            else:
                budget.waste(vote.tokens_in, vote.tokens_out)
            yield vote
            step()
            if not isinstance(annotator, Paced) and budget.reached() is not None:
                return


# -- the journal: each vote is kept from the moment it exists until it is published ------------------------------------------


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
