"""Who votes: annotators behind one small protocol."""

from reviewclf.labeling.annotators.base import Annotator, Vote, make_annotators
from reviewclf.labeling.annotators.keywords import KeywordAnnotator
from reviewclf.labeling.annotators.recorded import RecordedAnnotator

__all__ = ["Annotator", "KeywordAnnotator", "RecordedAnnotator", "Vote", "make_annotators"]
