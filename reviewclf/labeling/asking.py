"""Let annotators vote on reviews; what costs money is kept in the journal and held to the budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from reviewclf.labeling.annotators.base import Annotator, Review, Vote, VoteIdentity
from reviewclf.labeling.budget import Budget, progress
from reviewclf.labeling.journal import VoteJournal, journaled_votes
from reviewclf.settings import Settings
from reviewclf.storage import Store

logger = logging.getLogger(__name__)


def ask_all(
    store: Store,
    annotators: Sequence[Annotator],
    reviews: Sequence[Review],
    settings: Settings,
    *,
    known: set[VoteIdentity],
    shards: int,
) -> tuple[list[Vote], str | None]:
    """Votes on `reviews` that are not `known`, sorted; and why the asking stopped early, if it did."""
    stopped = None
    votes: dict[VoteIdentity, Vote] = {}
    for annotator in annotators:
        if not annotator.is_costly:
            votes.update((vote.identity, vote) for vote in annotator.annotate(reviews, known=known))
            continue
        # What a killed attempt was answered is not asked again.
        wanted = {(review.text_hash, *vote) for review in reviews for vote in annotator.expected(review)} - known
        kept = {identity: vote for identity, vote in journaled_votes(store).items() if identity in wanted}
        votes.update(kept)
        if kept:
            logger.info("%d votes of an earlier attempt are kept", len(kept))
        stopped = _ask_one(store, annotator, reviews, settings, known | set(kept), wanted - set(kept), votes, shards)
    return [votes[identity] for identity in sorted(votes)], stopped


def _ask_one(
    store: Store,
    annotator: Annotator,
    reviews: Sequence[Review],
    settings: Settings,
    known: set[VoteIdentity],
    wanted: set[VoteIdentity],
    votes: dict[VoteIdentity, Vote],
    shards: int,
) -> str | None:
    budget = Budget(settings.llm, shards=shards)
    for vote in votes.values():
        if vote.tokens_in or vote.tokens_out:
            budget.spend(vote)
    open_reviews = [
        review for review in reviews if any((review.text_hash, *vote) in wanted for vote in annotator.expected(review))
    ]
    room = budget.room_for_reviews()
    chosen = open_reviews if room is None else open_reviews[: max(0, room - budget.reviews)]
    stopped = (
        budget.reached()
        if len(chosen) == len(open_reviews)
        else f"REVIEWCLF_LLM__MAX_REVIEWS={settings.llm.max_reviews} is reached"
    )
    if stopped is None or chosen:
        with VoteJournal(store) as journal, progress(len(wanted)) as shown:
            for vote in annotator.annotate(chosen, known=known):
                journal.add(vote)
                votes[vote.identity] = vote
                budget.spend(vote)
                shown.step()
                reached = budget.reached()
                if reached is not None and len(votes) < len(wanted):
                    stopped = stopped or reached
                    break
    if stopped is not None:
        left = len(wanted - set(votes))
        if not left:
            return None
        stopped = f"{stopped}: {budget.votes} votes on {budget.reviews} reviews, {left} votes left for the next run"
        logger.warning("%s", stopped)
    return stopped
