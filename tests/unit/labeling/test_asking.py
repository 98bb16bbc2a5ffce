from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from reviewclf.errors import AnnotatorUnavailableError
from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.labeling.asking import ask_all, forget_published, journaled_votes, vote_journal
from reviewclf.llm.budget import Budget, costs_of, progress
from reviewclf.settings import LLMSettings, load_settings
from reviewclf.store import Store


class Paid:
    """An annotator whose votes cost tokens; it breaks down after `lasts` votes."""

    version = "paid"
    is_costly = True

    def __init__(self, *, votes: int = 2, lasts: int | None = None) -> None:
        self.votes, self.lasts = votes, lasts
        self.asked: list[VoteIdentity] = []

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        return [("paid@1", "p@1", draw) for draw in range(self.votes)]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        for review in reviews:
            for annotator, prompt, draw in self.expected(review):
                identity = (review.text_hash, annotator, prompt, draw)
                if identity in known:
                    continue
                if self.lasts is not None and len(self.asked) >= self.lasts:
                    raise AnnotatorUnavailableError("the server is away")
                self.asked.append(identity)
                yield Vote(
                    text_hash=review.text_hash,
                    annotator=annotator,
                    prompt=prompt,
                    draw=draw,
                    label="обувь",
                    confidence=0.9,
                    tokens_in=90,
                    tokens_out=10,
                    seconds=0.5,
                )


def reviews(n: int) -> list[Review]:
    return [Review(text_hash=f"{i:032x}", text=f"ботинки {i}") for i in range(n)]


def ask(store: Store, annotator: Paid, n: int, *, known: set[VoteIdentity] | None = None, shards: int = 1, **llm: Any) -> Any:
    settings = load_settings(_env_file=None, llm={"backend": "recorded", **llm})
    return ask_all(store, [annotator], reviews(n), settings, known=known or set(), shards=shards)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_broken_run_goes_on_where_it_was(store: Store) -> None:
    first, second = Paid(lasts=7), Paid()
    with pytest.raises(AnnotatorUnavailableError):
        ask(store, first, 10)
    votes, stopped = ask(store, second, 10)
    assert stopped is None
    assert len(votes) == len({vote.identity for vote in votes}) == 20
    assert len(first.asked) + len(second.asked) == 20
    assert not set(first.asked) & set(second.asked)
    assert [vote.identity for vote in votes] == sorted(vote.identity for vote in votes)


def test_published_votes_are_not_asked_for(store: Store) -> None:
    annotator = Paid()
    known = {(review.text_hash, "paid@1", "p@1", 0) for review in reviews(5)}
    votes, _ = ask(store, annotator, 5, known=known)
    assert {vote.identity for vote in votes} == {(review.text_hash, "paid@1", "p@1", 1) for review in reviews(5)}


def test_a_torn_last_line_is_no_vote(store: Store, tmp_path: Path) -> None:
    with pytest.raises(AnnotatorUnavailableError):
        ask(store, Paid(lasts=3), 10)
    (journal,) = (tmp_path / "store" / "journal" / "votes").iterdir()
    data = journal.read_bytes()
    journal.write_bytes(data[:-20])
    assert len(journaled_votes(store)) == 2
    votes, _ = ask(store, Paid(), 10)
    assert len(votes) == 20


def test_every_vote_is_in_the_file_when_it_was_added(store: Store) -> None:
    journal = vote_journal(store)
    for i in range(3):
        journal.add(Vote(text_hash=str(i), annotator="a", prompt="p"))
        assert len(journaled_votes(store)) == i + 1


def test_journals_go_when_all_their_votes_are_published_and_nobody_writes(store: Store) -> None:
    with vote_journal(store) as journal:
        for i in range(3):
            journal.add(Vote(text_hash=str(i), annotator="a", prompt="p"))
    published = set(journaled_votes(store))
    later = datetime.now(UTC) + timedelta(hours=2)
    assert forget_published(store, published) == 0
    assert forget_published(store, set(list(published)[:2]), now=later) == 0
    assert forget_published(store, published, now=later) == 1
    assert journaled_votes(store) == {}


@pytest.mark.parametrize(
    ("limit", "votes"),
    [
        ({"max_reviews": 3}, 6),
        ({"max_tokens": 500}, 5),
        ({"max_cost": 0.5, "price_in": 1000.0, "price_out": 1000.0}, 5),
    ],
)
def test_budget_stops_cleanly_says_how_far_it_came_and_the_next_run_goes_on(
    store: Store, limit: dict[str, float], votes: int, caplog: pytest.LogCaptureFixture
) -> None:
    annotator = Paid()
    given, stopped = ask(store, annotator, 10, **limit)
    assert len(given) == votes
    name = f"REVIEWCLF_LLM__{next(iter(limit)).upper()}"
    assert name in stopped
    assert f"{20 - votes} votes left for the next run" in stopped
    assert any(name in record.message for record in caplog.records)
    rest, stopped = ask(store, Paid(), 10, known={vote.identity for vote in given})
    assert stopped is None
    assert len(rest) == 20 - votes


def test_budget_is_shared_by_shards(store: Store) -> None:
    given, stopped = ask(store, Paid(), 10, max_tokens=1000, shards=2)
    assert len(given) == 5
    assert "one of 2 tasks that share it" in stopped


def test_a_budget_that_is_just_enough_does_not_stop(store: Store) -> None:
    given, stopped = ask(store, Paid(), 5, max_tokens=1000, max_reviews=5)
    assert len(given) == 10
    assert stopped is None


def test_seconds_are_a_budget_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "seconds", property(lambda self: 10.0 * self.votes))
    given, stopped = ask(store, Paid(), 5, max_seconds=30)
    assert len(given) == 3
    assert "MAX_SECONDS=30" in stopped


def test_costs_are_per_thousand_reviews() -> None:
    options = LLMSettings(price_in=2.0, price_out=10.0)
    votes = [vote.model_dump() for vote in Paid(votes=2).annotate(reviews(4))]
    costs = costs_of(votes, options)
    assert (costs["votes"], costs["reviews"], costs["tokens_in"], costs["tokens_out"], costs["seconds"]) == (8, 4, 720, 80, 4.0)
    assert costs["cost"] == pytest.approx((720 * 2 + 80 * 10) / 1e6)
    assert costs["cost_per_1000_reviews"] == pytest.approx(costs["cost"] * 250)
    assert costs_of([], options) == {}


def test_progress_in_a_log_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    monkeypatch.setattr("reviewclf.llm.budget.time.monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with progress(100) as step:
        for _ in range(100):
            clock[0] += 2.0
            step()
    assert [record.message for record in caplog.records] == [f"{n} of 100 votes" for n in (30, 60, 90)]
