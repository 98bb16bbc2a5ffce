"""Cleaning against the notebook's way, and the near-duplicates of a whole batch."""

from __future__ import annotations

import re
from time import perf_counter

import emoji
import pandas as pd

from reviewclf.data.duplicates import near_duplicate_groups
from reviewclf.text import clean_texts
from tests.benchmarks import Measurement, interleaved, load_reviews

# What the notebook takes out, in its order. The phone pattern is the greedy one that takes measures for phones.
_REMOVED = [re.compile(pattern) for pattern in (r"https?://\S+", r"<[^>]+>", r"\S+@\S+", r"\+?\d[\d\-\s]{5,}\d")]


def notebook_clean(text: object) -> str:
    """Do what the notebook's per-row function does, step by step: the baseline.

    The notebook that the project grew from (public repository Sokol499/llm_review_classif, nlp_case_tbank_sirius_final.ipynb)
    applies to each row of a frame: missing values to an empty text, strip, four compiled patterns (links, tags, e-mail
    addresses, phones) replaced by a space one after another, ``emoji.replace_emoji``, and white space folded with ``re.sub``.
    """
    if pd.isna(text):
        return ""
    cleaned = str(text).strip()
    for pattern in _REMOVED:
        cleaned = pattern.sub(" ", cleaned)
    cleaned = emoji.replace_emoji(cleaned, replace=" ")
    return re.sub(r"\s+", " ", cleaned)


def measure() -> list[Measurement]:
    """Rows per second of cleaning (medians of seven interleaved runs) and of near-duplicate detection (one run)."""
    texts, source = load_reviews()
    frame = pd.Series(texts, dtype=object)
    baseline, ours = interleaved(lambda: frame.apply(notebook_clean), lambda: clean_texts(texts))
    cleaning = Measurement(
        name="clean_texts",
        rows=len(texts),
        baseline=len(texts) / baseline,
        ours=len(texts) / ours,
        note=f"{source}; against the notebook's function, row by row",
        target=5.0,
    )
    start = perf_counter()
    near_duplicate_groups(texts)
    seconds = perf_counter() - start
    groups = Measurement("near_duplicate_groups", len(texts), None, len(texts) / seconds, note=source)
    return [cleaning, groups]
