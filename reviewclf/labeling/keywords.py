"""The keyword annotator: the cheapest vote there is, and a hint where no model has voted. Pure."""

from __future__ import annotations

from reviewclf.taxonomy import Taxonomy


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
