"""Votes by word stems of the taxonomy: the cheapest there are, and a hint where no model has voted."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.manifest import digest_of
from reviewclf.taxonomy import Taxonomy

ANNOTATOR = "keywords"
PROMPT = "stems@1"


class KeywordAnnotator:
    """Votes by :func:`keyword_label`; says nothing where the stems do not decide."""

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


def keyword_label(text: str, taxonomy: Taxonomy) -> str | None:
    """Label of the one category whose word stems occur in `text`.

    Parameters
    ----------
    text : str
        A review; letter case and е/ё are not minded.
    taxonomy : Taxonomy
        Categories with their stems, matched at word starts.

    Returns
    -------
    str or None
        None when no stem occurs and when stems of several categories do (a tie or a contradiction): a text that could
        be two things is for a reader to decide. The absence of stems is no sign that no product is named, so the
        answer is never the taxonomy's ``no_product`` category.
    """
    counts = taxonomy.matcher.counts(text)
    if len(counts) != 1:
        return None
    return next(iter(counts))
