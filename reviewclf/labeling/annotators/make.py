"""The annotators that the settings ask for."""

from __future__ import annotations

from reviewclf.errors import LabelingError
from reviewclf.extensions import ANNOTATORS, load_extension
from reviewclf.labeling.annotators.base import Annotator
from reviewclf.labeling.annotators.keywords import KeywordAnnotator
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy


def make_annotators(settings: Settings, taxonomy: Taxonomy) -> list[Annotator]:
    """The annotator that ``REVIEWCLF_LLM__BACKEND`` names, where it has anything to say, and the keyword annotator beside it.

    Raises
    ------
    LabelingError
        There is no such annotator, or its package cannot be imported.
    """
    make = load_extension(ANNOTATORS, settings.llm.backend, place="REVIEWCLF_LLM__BACKEND", error_type=LabelingError)
    voter = make(settings, taxonomy)
    return [*([] if voter is None else [voter]), KeywordAnnotator(taxonomy, confidence=settings.aggregation.keyword_confidence)]
