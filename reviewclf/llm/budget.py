"""How much asking a language model may cost, how much it did, and telling people in the meantime."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from reviewclf.llm.journal import Journal, forget_all, read_journals
from reviewclf.settings import LLMSettings
from reviewclf.store import Store

logger = logging.getLogger(__name__)

_LOG_SECONDS = 60.0
_SPENT = "journal/spent"
# Attempts of one run follow each other within minutes, while its server is away within a few hours.
_ANOTHER_RUN = timedelta(hours=10)


class Spent(BaseModel, frozen=True):
    """What was paid for and nothing that is kept shows: a trial question, an answer that was cut, the time of an attempt."""

    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


class Budget:
    """Counts what answers cost, and says when one of the settings ``REVIEWCLF_LLM__MAX_*`` is reached.

    Parameters
    ----------
    options : LLMSettings, optional
        Limits and prices; default: no limits.
    shards : int
        Tasks that share the limits evenly.
    shard : int
        Which of them this is.
    """

    def __init__(self, options: LLMSettings | None = None, *, shards: int = 1, shard: int = 0) -> None:
        self._options = options or LLMSettings()
        self.max_reviews = self._options.max_reviews
        self._shards, self._shard = shards, shard
        self._started, self._earlier = time.monotonic(), 0.0
        self._journal: Journal | None = None
        # Answers are counted in several threads.
        self._lock = threading.Lock()
        self._reviews: set[str] = set()
        self._answers = 0
        self.tokens_in = self.tokens_out = self.votes = 0

    @contextmanager
    def opened(self, store: Store, run: str) -> Iterator[None]:
        """Count what earlier attempts at `run` have spent; at its end forget it, unless an error ends this attempt too."""
        folder = f"{_SPENT}/{run}"
        forget_all(store, _SPENT, idle=_ANOTHER_RUN)
        for spent in read_journals(store, folder, Spent):
            self.spend(spent.tokens_in, spent.tokens_out)
            self._earlier += spent.seconds
        self._journal = Journal(store, folder)
        before = self.seconds
        try:
            yield
        except BaseException:
            seconds = self.seconds - before
            with self._lock:
                # A server that is looked for every minute is no reason to write a file a minute.
                if seconds >= 1.0:
                    self._journal.add(Spent(seconds=seconds))
                self._journal.flush()
            raise
        forget_all(store, folder)

    def spend(self, tokens_in: int, tokens_out: int, *, review: str | None = None) -> None:
        """Count an answer; `review` is the text hash of the review where it is a vote on one."""
        with self._lock:
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self._answers += tokens_in + tokens_out > 0
            if review is not None:
                self._reviews.add(review)
                self.votes += 1

    def waste(self, tokens_in: int, tokens_out: int) -> None:
        """Count an answer that nothing shows which is kept, also for later attempts at the same run."""
        self.spend(tokens_in, tokens_out)
        with self._lock:
            if self._journal is not None:
                self._journal.add(Spent(tokens_in=tokens_in, tokens_out=tokens_out))

    @property
    def reviews(self) -> int:
        """Reviews that were voted on."""
        return len(self._reviews)

    @property
    def seconds(self) -> float:
        """Since this was made, and of earlier attempts."""
        return time.monotonic() - self._started + self._earlier

    @property
    def cost(self) -> float:
        """Money, by the two prices."""
        return _money(self.tokens_in, self.tokens_out, self._options)

    def reached(self, more: int = 0) -> str | None:
        """The limit that is reached, as text; None while there is room. Reviews are limited before they are asked about.

        Parameters
        ----------
        more : int
            Questions that are to have room as well; each costs the mean of the answers so far.
        """
        share = more / self._answers if self._answers else 0.0
        tokens = self.tokens_in + self.tokens_out
        limits: tuple[tuple[str, float | None, float, float], ...] = (
            ("MAX_TOKENS", self._options.max_tokens, tokens, share * tokens),
            ("MAX_COST", self._options.max_cost, self.cost, share * self.cost),
            ("MAX_SECONDS", self._options.max_seconds, self.seconds, 0.0),
        )
        for name, limit, used, wanted in limits:
            if limit is not None and (used >= limit / self._shards or used + wanted > limit / self._shards):
                shared = f" (one of {self._shards} tasks that share it)" if self._shards > 1 else ""
                return f"REVIEWCLF_LLM__{name}={limit:g} is reached{shared}"
        return None

    def may_ask(self, in_flight: int) -> bool:
        """Whether there is room for one more question beside those in flight."""
        return self.reached(in_flight + 1) is None

    def room_for_reviews(self) -> int | None:
        """How many more reviews may be asked about; None: as many as there are."""
        if self.max_reviews is None:
            return None
        share, rest = divmod(self.max_reviews, self._shards)
        return max(0, share + (self._shard < rest) - self.reviews)


class Paced:
    """Has several questions in flight, as many as its budget has room for, and charges the budget for what no answer shows."""

    def __init__(self) -> None:
        self.budget = Budget()


def _money(tokens_in: float, tokens_out: float, options: LLMSettings) -> float:
    return (tokens_in * options.price_in + tokens_out * options.price_out) / 1e6


def costs_of(votes: Sequence[Mapping[str, Any]], options: LLMSettings) -> dict[str, float]:
    """Tokens, seconds and money of votes, and per 1,000 reviews; empty when no vote cost any."""
    sums = {name: float(sum(vote[name] for vote in votes)) for name in ("tokens_in", "tokens_out", "seconds")}
    if not sums["tokens_in"] and not sums["tokens_out"]:
        return {}
    cost = _money(sums["tokens_in"], sums["tokens_out"], options)
    reviews = len({vote["text_hash"] for vote in votes})
    return total_costs([{"votes": float(len(votes)), "reviews": float(reviews), **sums, "cost": cost}])


def total_costs(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of :func:`costs_of` over the tasks of a run; empty when none cost anything."""
    total: dict[str, float] = {}
    for name in dict.fromkeys(name for costs in parts for name in costs):
        total[name] = sum(float(costs.get(name, 0.0)) for costs in parts)
    if total.get("reviews"):
        total["cost_per_1000_reviews"] = 1000 * total["cost"] / total["reviews"]
        total["tokens_per_review"] = (total["tokens_in"] + total["tokens_out"]) / total["reviews"]
    return total


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A function that is told of each vote and says how far the asking is: a bar in a terminal, a line a minute in a log."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("votes", total=total)
            yield lambda: bar.advance(task)
        return
    done, logged = 0, time.monotonic()

    def step() -> None:
        nonlocal done, logged
        done += 1
        if time.monotonic() - logged >= _LOG_SECONDS:
            logged = time.monotonic()
            logger.info("%d of %d votes", done, total)

    yield step
