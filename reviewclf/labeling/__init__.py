"""From reviews to votes, from votes to labels."""

from reviewclf.labeling.annotators.keywords import keyword_label
from reviewclf.labeling.asking import run_llm
from reviewclf.labeling.votes import aggregate_llm_votes

__all__ = ["aggregate_llm_votes", "keyword_label", "run_llm"]
