"""Votes by word stems of the taxonomy."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.labeling.keywords import keyword_label
from reviewclf.manifest import digest_of
from reviewclf.taxonomy import Taxonomy

ANNOTATOR = "keywords"
PROMPT = "stems@1"


class KeywordAnnotator:
    """Votes by :func:`reviewclf.labeling.keyword_label`; says nothing where the stems do not decide."""

    def __init__(self, taxonomy: Taxonomy, *, confidence: float) -> None:
        self._taxonomy = taxonomy
        self._confidence = confidence
        self._annotator = f"{ANNOTATOR}@{digest_of([taxonomy.keyword_stems, confidence])[:8]}"

    @property
    def version(self) -> str:
        """Digest of the stems and the confidence."""
        return self._annotator

    @property
    def is_costly(self) -> bool:
        """No: asking again costs nothing."""
        return False

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        """One vote a review."""
        return [(self._annotator, PROMPT, 0)]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        """One vote a review, without a label where the stems do not decide."""
        for review in reviews:
            if (review.text_hash, self._annotator, PROMPT, 0) in known:
                continue
            label = keyword_label(review.text, self._taxonomy)
            yield Vote(
                text_hash=review.text_hash,
                annotator=self._annotator,
                prompt=PROMPT,
                label=label,
                confidence=self._confidence if label is not None else 0.0,
                reason=None if label is not None else "stems of no category, or of several",
            )
