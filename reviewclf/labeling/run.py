"""Texts in, votes out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reviewclf import tables
from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Annotator, Paced, Review, Vote
from reviewclf.llm.budget import Budget, progress
from reviewclf.settings import LLMSettings, Settings, load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash


def run_llm(
    texts: Sequence[str],
    n_votes: int | None = None,
    *,
    settings: Settings | None = None,
    annotator: Annotator | None = None,
) -> pd.DataFrame:
    """Votes of the configured language model on texts, without store or DAG: for a notebook or a quick look.

    Parameters
    ----------
    texts : sequence of str
        Reviews; equal ones (up to case and punctuation) are asked about once.
    n_votes : int, optional
        Votes per review; default: ``REVIEWCLF_LLM__VOTES``.
    settings : Settings, optional
        Default: environment and ``.env``.
    annotator : Annotator, optional
        Who votes; default: the one that ``REVIEWCLF_LLM__BACKEND`` names.

    Returns
    -------
    DataFrame
        The votes table: one row a vote, ``label`` null (and ``reason`` set) where an answer could not be read. A budget
        (``REVIEWCLF_LLM__MAX_*``) may end it early.

    Raises
    ------
    LabelingError, AnnotatorUnavailableError
        The model cannot be asked any more; the error's attribute ``votes`` holds the table of what it had answered by then.
    """
    settings = settings or load_settings()
    options: LLMSettings = settings.llm if n_votes is None else settings.llm.model_copy(update={"votes": n_votes})
    if annotator is None:
        from reviewclf.labeling.annotators.base import make_annotators

        settings = settings.model_copy(update={"llm": options})
        annotator = make_annotators(settings, Taxonomy.load(settings.taxonomy))[0]
    reviews = list({key: Review(text_hash=key, text=text) for text in texts for key in (text_hash(text),)}.values())
    budget = Budget(options)
    reviews = reviews[: budget.room_for_reviews()]
    votes: list[Vote] = []
    if isinstance(annotator, Paced):
        annotator.may_ask = lambda in_flight: budget.reached(in_flight + 1) is None
        annotator.on_cost = budget.count
    try:
        with progress(sum(len(annotator.expected(review)) for review in reviews)) as shown:
            for vote in annotator.annotate(reviews):
                votes.append(vote)
                budget.spend(vote)
                shown.step()
                if not isinstance(annotator, Paced) and budget.reached():
                    break
    except LabelingError as error:
        # They were paid for.
        error.votes = _table(votes)
        if votes:
            error.add_note(f"{len(votes)} votes were given before; this error holds them as its attribute votes")
        raise
    return _table(votes)


def _table(votes: Sequence[Vote]) -> pd.DataFrame:
    rows = [vote.model_dump() for vote in sorted(votes, key=lambda vote: vote.identity)]
    return pd.DataFrame(rows, columns=tables.VOTE_SCHEMA.names)
