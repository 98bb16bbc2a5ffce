"""The protocol every annotator follows: reviews in, votes out."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Protocol, TypeAlias

from pydantic import BaseModel, Field

from reviewclf.llm.replies import StorableText

VoteIdentity: TypeAlias = tuple[str, str, str, int]


class Review(BaseModel, frozen=True):
    """What an annotator is shown, and the ids under which an imported vote may name it."""

    text_hash: str
    text: str
    review_ids: tuple[str, ...] = ()


class Vote(BaseModel, frozen=True):
    """One answer about one text; the row of the votes table.

    Attributes
    ----------
    text_hash : str
        The text that was voted on.
    annotator, prompt : str
        ``model@revision`` and ``id@version``: who answered which question.
    draw : int
        0, 1, ... where the same annotator is asked the same question several times.
    label : str or None
        None when the answer could not be read: no answer is never a class.
    confidence : float
        Probability in [0, 1] that the annotator itself gives its answer.
    raw : str or None
        The answer as it came.
    reason : str or None
        Why there is no label.
    tokens_in, tokens_out : int
        Tokens read and written by a language model; 0 for other annotators.
    seconds : float
        Time the answer took.
    is_kept : bool
        False where the model has not answered yet, but may: what it cost counts, and it is asked again another time.
    """

    text_hash: str
    annotator: str
    prompt: str
    draw: int = 0
    label: StorableText | None = None
    confidence: float = Field(0.0, ge=0.0, le=1.0)
    raw: StorableText | None = None
    reason: StorableText | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    is_kept: bool = Field(True, exclude=True)

    @property
    def identity(self) -> VoteIdentity:
        """Under which a vote is stored once: text, annotator, prompt, draw."""
        return (self.text_hash, self.annotator, self.prompt, self.draw)


class Annotator(Protocol):
    """Anything that votes on reviews."""

    @property
    def version(self) -> str:
        """Changes whenever the same review could get another vote; enters the digest of the labelling stages."""

    @property
    def is_costly(self) -> bool:
        """Whether a vote takes so long, or so much money, that it has to be kept the moment it exists."""

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        """(annotator, prompt, draw) of every vote that :meth:`annotate` would give on `review`."""

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        """Vote on `reviews`, not again where `known` holds the vote; any order. Whoever stops iterating stops the asking."""
