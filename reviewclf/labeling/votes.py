"""Votes on reviews, aggregated to labels. Pure functions over data frames."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from reviewclf.errors import LabelingError

Method = Literal["posterior", "majority", "mean_confidence", "dawid_skene"]

# A vote that claims to be certain, or certainly wrong, would outweigh any number of others.
_SURE = 0.995


def aggregate_llm_votes(
    votes: pd.DataFrame,
    categories: Sequence[str],
    *,
    method: Method = "posterior",
    rare_class_boost: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One label per text from all its votes.

    Parameters
    ----------
    votes : DataFrame
        One row a vote: ``text_hash``, ``annotator``, ``draw``, ``label`` (null where the answer could not be read) and
        ``confidence`` in [0, 1]. The order of the rows does not matter.
    categories : sequence of str
        All labels, in the taxonomy's order.
    method : {"posterior", "majority", "mean_confidence", "dawid_skene"}
        ``posterior``: each annotator is right with the probability that it states, wrong answers being spread evenly
        over the other categories, and annotators err independently (the naive Bayes vote model of Dawid and Skene, 1979,
        with stated instead of estimated reliabilities). Several draws of one annotator are not independent: their
        log-likelihoods are averaged, so that they count as one annotator.
        ``majority``: most votes win; the confidence is the share of votes.
        ``mean_confidence``: the notebook's rule: sum of the confidences for a category over the number of votes,
        times ``rare_class_boost`` of the category.
        ``dawid_skene``: how reliable each annotator is, class by class, is estimated from the votes themselves (Dawid and
        Skene, 1979; crowd-kit's EM); stated confidences are not used. Needs many votes to estimate from.
    rare_class_boost : mapping of str to float, optional
        Factors for ``mean_confidence``; 1 where a category is not named.

    Returns
    -------
    DataFrame
        Sorted by ``text_hash``: ``label`` (null when no vote has one), ``confidence`` in [0, 1], ``agreement`` (share of the
        votes with a label that chose this one; 0 when there are none), ``votes`` (how many have a label), ``method``.
        Equal scores go to the category that more votes chose, then to the earlier one in `categories`.

    Raises
    ------
    LabelingError
        Unknown method, a label outside `categories`, or a confidence outside [0, 1]; the message names the vote.
    """
    _check(votes, categories, method)
    index = {name: position for position, name in enumerate(categories)}
    hashes, text = np.unique(votes["text_hash"].to_numpy(dtype=str), return_inverse=True)
    readable = votes["label"].notna().to_numpy()
    row = text[readable]
    column = votes["label"][readable].map(index).to_numpy(dtype=np.intp)
    confidence = votes["confidence"][readable].to_numpy(dtype=float)

    shape = (len(hashes), len(categories))
    counts = np.zeros(shape)
    np.add.at(counts, (row, column), 1.0)
    total = counts.sum(axis=1)
    shares = counts / np.maximum(total, 1.0)[:, None]
    # Draws and prompts of one annotator are answers of one worker.
    worker = votes["annotator"][readable].to_numpy(dtype=str)
    if method == "posterior":
        scores = _posterior(row, column, confidence, worker, shape)
    elif method == "dawid_skene":
        scores = _dawid_skene(pd.DataFrame({"task": hashes[row], "worker": worker, "label": column}), hashes, counts)
    elif method == "majority":
        scores = shares
    else:
        sums = np.zeros(shape)
        np.add.at(sums, (row, column), confidence)
        boost = np.array([(rare_class_boost or {}).get(name, 1.0) for name in categories])
        scores = np.minimum(sums / np.maximum(total, 1.0)[:, None] * boost, 1.0)

    # Rounding makes scores that are equal on paper equal here, so that ties are decided by the rule and not by the last bit.
    order = np.lexsort((np.broadcast_to(-np.arange(shape[1]), shape), counts, np.round(scores, 12)), axis=1)
    best = order[:, -1]
    rows = np.arange(len(hashes))
    labelled = total > 0
    labels = np.array([*categories], dtype=object)[best]
    labels[~labelled] = None
    return pd.DataFrame(
        {
            "text_hash": hashes,
            "label": labels,
            "confidence": np.where(labelled, scores[rows, best], 0.0),
            "agreement": shares[rows, best],
            "votes": total.astype("int64"),
            "method": method,
        }
    )


def _posterior(
    row: np.ndarray, column: np.ndarray, confidence: np.ndarray, annotator: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    n_categories = shape[1]
    # Below even odds a vote would speak against its own label; it then says nothing instead.
    right = np.clip(confidence, 1.0 / n_categories, _SURE)
    wrong = (1.0 - right) / (n_categories - 1)
    _, who = np.unique(annotator, return_inverse=True)
    pair, seat = np.unique(np.stack([row, who], axis=1), axis=0, return_inverse=True)
    draws = np.bincount(seat.reshape(-1), minlength=len(pair))[seat.reshape(-1)]
    likelihood = np.zeros(shape)
    np.add.at(likelihood, (row, column), (np.log(right) - np.log(wrong)) / draws)
    likelihood -= likelihood.max(axis=1, keepdims=True)
    posterior: np.ndarray = np.exp(likelihood)
    posterior /= posterior.sum(axis=1, keepdims=True)
    return posterior


def _dawid_skene(votes: pd.DataFrame, hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    from crowdkit.aggregation import DawidSkene

    if not len(votes):
        return np.zeros(counts.shape)
    with warnings.catch_warnings():
        # Written for an older pandas, it warns some twenty times a call.
        warnings.simplefilter("ignore")
        estimated = DawidSkene(n_iter=100).fit_predict_proba(votes)
    estimates = estimated.reindex(index=hashes, columns=range(counts.shape[1]), fill_value=0.0).to_numpy()
    # With few votes the estimate may drift to a label that nobody gave.
    scores = np.where(counts > 0, estimates, 0.0)
    scores = np.where(scores.sum(axis=1, keepdims=True) > 0, scores, counts > 0)
    normalised: np.ndarray = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-300)
    return normalised


def _check(votes: pd.DataFrame, categories: Sequence[str], method: str) -> None:
    if method not in get_args(Method):
        raise LabelingError(f"unknown way to aggregate votes {method!r}; one of {', '.join(get_args(Method))}")
    if len(categories) < 2:
        raise LabelingError("votes need at least two categories to choose from")
    labels = votes["label"].dropna()
    strange = labels[~labels.isin(list(categories))]
    if len(strange):
        names = ", ".join(categories)
        raise LabelingError(f"vote {strange.index[0]}: label {strange.iloc[0]!r} is not in the taxonomy ({names})")
    confidence = votes.loc[votes["label"].notna(), "confidence"]
    outside = confidence[~confidence.between(0.0, 1.0)]
    if len(outside):
        raise LabelingError(f"vote {outside.index[0]}: confidence {outside.iloc[0]!r} is not between 0 and 1")
