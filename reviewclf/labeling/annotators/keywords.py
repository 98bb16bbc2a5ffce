"""Votes by word stems of the taxonomy: the cheapest there are, and a hint where no model has voted."""

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

    is_costly = False

    def __init__(self, taxonomy: Taxonomy, *, confidence: float) -> None:
        self._taxonomy = taxonomy
        self._confidence = confidence
        self.version = f"{ANNOTATOR}@{digest_of([taxonomy.keyword_stems, confidence])[:8]}"

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        """One vote a review."""
        return [(self.version, PROMPT, 0)]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        """One vote a review, without a label where the stems do not decide."""
        for review in reviews:
            if (review.text_hash, self.version, PROMPT, 0) in known:
                continue
            vote = Vote(text_hash=review.text_hash, annotator=self.version, prompt=PROMPT)
            if (label := keyword_label(review.text, self._taxonomy)) is None:
                yield vote.model_copy(update={"reason": "stems of no category, or of several"})
            else:
                yield vote.model_copy(update={"label": label, "confidence": self._confidence})
