"""Who votes: annotators behind one small protocol, ours and those of installed packages."""

from reviewclf.labeling.annotators.base import Annotator, Review, Vote, VoteIdentity
from reviewclf.labeling.annotators.keywords import KeywordAnnotator
from reviewclf.labeling.annotators.make import make_annotators
from reviewclf.labeling.annotators.recorded import RecordedAnnotator

__all__ = ["Annotator", "KeywordAnnotator", "RecordedAnnotator", "Review", "Vote", "VoteIdentity", "make_annotators"]
