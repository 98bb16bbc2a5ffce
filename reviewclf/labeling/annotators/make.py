"""The annotators that the settings ask for."""

from __future__ import annotations

from reviewclf.errors import LabelingError
from reviewclf.extensions import ANNOTATORS, extensions
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
    known, name = extensions(ANNOTATORS), settings.llm.backend
    if name not in known:
        raise LabelingError(f"REVIEWCLF_LLM__BACKEND={name!r}: there is no such annotator, only {', '.join(sorted(known))}")
    try:
        make = known[name].load()
    except Exception as error:  # whatever somebody's module raises
        raise LabelingError(
            f"REVIEWCLF_LLM__BACKEND={name}: {known[name].value} cannot be imported ({error!r:.200})"
        ) from error
    voter = make(settings, taxonomy)
    return [*([] if voter is None else [voter]), KeywordAnnotator(taxonomy, confidence=settings.aggregation.keyword_confidence)]
