"""How much labelling may cost, how much it did, and telling people in the meantime. Pure but for the clock and the terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reviewclf.settings import LLMSettings

if TYPE_CHECKING:
    from reviewclf.labeling.annotators.base import Vote

logger = logging.getLogger(__name__)

_LOG_SECONDS = 60.0


class Budget:
    """Counts what votes cost, and says when one of the settings ``REVIEWCLF_LLM__MAX_*`` is reached.

    Parameters
    ----------
    options : LLMSettings
        Limits and prices.
    shards : int
        Tasks that share the limits evenly.
    shard : int
        Which of them this is.
    """

    def __init__(self, options: LLMSettings, *, shards: int = 1, shard: int = 0) -> None:
        self._options = options
        self._shards = shards
        self._shard = shard
        self._started = time.monotonic()
        self._earlier = 0.0
        self._reviews: set[str] = set()
        self._answers = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.votes = 0

    def spend(self, vote: Vote) -> None:
        """Count a vote."""
        self._reviews.add(vote.text_hash)
        self.votes += 1
        self.count(vote.tokens_in, vote.tokens_out)

    def count(self, tokens_in: int, tokens_out: int, seconds: float = 0.0) -> None:
        """Count tokens of an answer, whether or not it is a vote; and seconds of an earlier attempt."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self._answers += tokens_in + tokens_out > 0
        self._earlier += seconds

    @property
    def reviews(self) -> int:
        """Reviews asked about."""
        return len(self._reviews)

    @property
    def seconds(self) -> float:
        """Since this was made, and of earlier attempts."""
        return time.monotonic() - self._started + self._earlier

    @property
    def cost(self) -> float:
        """Money, by the two prices."""
        return (self.tokens_in * self._options.price_in + self.tokens_out * self._options.price_out) / 1e6

    def reached(self, more: int = 0) -> str | None:
        """The limit that is reached, as text; None while there is room. Reviews are limited before they are asked about.

        Parameters
        ----------
        more : int
            Questions that are to have room as well; each costs the mean of the answers so far.
        """
        mean = more / self._answers if self._answers else 0.0
        limits: tuple[tuple[str, float | None, float, float], ...] = (
            (
                "MAX_TOKENS",
                self._options.max_tokens,
                self.tokens_in + self.tokens_out,
                mean * (self.tokens_in + self.tokens_out),
            ),
            ("MAX_COST", self._options.max_cost, self.cost, mean * self.cost),
            ("MAX_SECONDS", self._options.max_seconds, self.seconds, 0.0),
        )
        for name, limit, used, wanted in limits:
            if limit is not None and (used >= limit / self._shards or used + wanted > limit / self._shards):
                share = f" (one of {self._shards} tasks that share it)" if self._shards > 1 else ""
                return f"REVIEWCLF_LLM__{name}={limit:g} is reached{share}"
        return None

    def room_for_reviews(self) -> int | None:
        """How many reviews may be asked about at most; None: as many as there are."""
        if self._options.max_reviews is None:
            return None
        share, rest = divmod(self._options.max_reviews, self._shards)
        return share + (self._shard < rest)


def costs_of(votes: list[dict[str, Any]], options: LLMSettings) -> dict[str, float]:
    """Tokens, seconds and money of votes, and per 1,000 reviews; empty when no vote cost any."""
    tokens_in = sum(vote["tokens_in"] for vote in votes)
    tokens_out = sum(vote["tokens_out"] for vote in votes)
    if not tokens_in and not tokens_out:
        return {}
    reviews = len({vote["text_hash"] for vote in votes})
    cost = (tokens_in * options.price_in + tokens_out * options.price_out) / 1e6
    seconds = sum(vote["seconds"] for vote in votes)
    return {
        "votes": float(len(votes)),
        "reviews": float(reviews),
        "tokens_in": float(tokens_in),
        "tokens_out": float(tokens_out),
        "seconds": float(seconds),
        "cost": cost,
        "cost_per_1000_reviews": 1000 * cost / reviews,
        "tokens_per_review": (tokens_in + tokens_out) / reviews,
    }


class Progress:
    """Says how far labelling is: a bar in a terminal, a line a minute in a log."""

    def __init__(self, total: int, bar: Any = None, task: Any = None) -> None:
        self._total, self._bar, self._task = total, bar, task
        self._done = 0
        self._logged = time.monotonic()

    def step(self) -> None:
        """One more vote."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            logger.info("%d of %d votes", self._done, self._total)


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    """Progress over `total` votes."""
    if not sys.stderr.isatty():
        yield Progress(total)
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        yield Progress(total, bar, bar.add_task("votes", total=total))
