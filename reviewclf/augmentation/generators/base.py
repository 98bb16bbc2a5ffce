"""The protocol of those who write reviews: requests in, texts out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

from pydantic import BaseModel

from reviewclf.augmentation.prompts import WritingRequest
from reviewclf.llm.replies import StorableText

WrittenIdentity: TypeAlias = tuple[str, str, str, int, int]


class Written(BaseModel, frozen=True):
    """What came of one request; a line of the journal.

    Attributes
    ----------
    category, number, seed, prompt, examples
        Those of the request.
    generator : str
        Who wrote: ``model@revision``, or the digest of the file.
    texts : tuple of str
        The reviews, as they came; empty when none could be read from the answer.
    raw : str or None
        Beginning of an answer from which none could be read.
    tokens_in, tokens_out, seconds
        What it cost.
    """

    category: str
    number: int
    seed: int
    prompt: str
    generator: str
    examples: tuple[str, ...] = ()
    texts: tuple[StorableText, ...] = ()
    raw: StorableText | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0

    @property
    def identity(self) -> WrittenIdentity:
        """Under which an answer is kept once: category, generator, prompt, seed, number."""
        return (self.category, self.generator, self.prompt, self.seed, self.number)


class Generator(Protocol):
    """Anything that writes reviews."""

    @property
    def version(self) -> str:
        """Changes whenever the same request could get another answer."""

    @property
    def is_costly(self) -> bool:
        """Whether an answer takes so long, or so much money, that it has to be kept the moment it exists."""

    def available(self, category: str) -> int | None:
        """How many texts there are for a category; None: as many as are asked for."""

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """One answer a request, in any order. Whoever stops iterating stops the writing."""
