"""An annotator of somebody's own: it votes for a category where a review names a brand that the shop sells there."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from reviewclf.labeling.annotators import Review, Vote, VoteIdentity
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy

BRANDS = {"ecco": "обувь", "luminarc": "посуда", "jbl": "электроника"}


class BrandAnnotator:
    # Name and state of the annotator: it stands in every vote, and another one asks about all reviews again.
    version = "brands@1"
    # True for whatever takes money or minutes: its votes are then kept from the moment they exist, and held to the budget.
    is_costly = False

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        # One vote a review: annotator, prompt, and which of several draws it is.
        return [(self.version, "names@1", 0)]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        for review in reviews:
            ((annotator, prompt, draw),) = self.expected(review)
            if (review.text_hash, annotator, prompt, draw) in known:
                continue
            labels = {label for brand, label in BRANDS.items() if brand in review.text.lower()}
            # No label, or several, is a vote without one: a reason says why, and the review stays open for others.
            label = labels.pop() if len(labels) == 1 else None
            yield Vote(
                text_hash=review.text_hash,
                annotator=annotator,
                prompt=prompt,
                draw=draw,
                label=label,
                confidence=0.95 if label else 0.0,
                reason=None if label else "no brand, or brands of several categories",
            )


def from_settings(settings: Settings, taxonomy: Taxonomy) -> BrandAnnotator:
    # What the entry point names: it is called with the settings and the categories that a label must be one of.
    return BrandAnnotator()
