"""The queue of doubtful labels for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# Rarer classes come forward, gently: a suspicion counts up to twice as much in the rarest.
_RARE_POWER = 0.1


def review_queue(
    labels: pd.DataFrame, texts: Mapping[str, str], stems: Mapping[str, list[str]], *, seed: int = 42
) -> pd.DataFrame:
    """Labels in the order in which a look at them is worth most.

    Three signs of a wrong label are multiplied: how little a classifier that was trained without the review believes its label
    (cleanlab's self-confidence; Northcutt, Jiang and Chuang, Confident Learning, JAIR 2021), the label's own confidence, and
    the share of votes that chose it. Rare classes are moved forward.

    Parameters
    ----------
    labels : DataFrame
        ``text_hash``, ``label``, ``confidence``, ``agreement``; one row a review.
    texts : mapping of str to str
        Cleaned text by text hash.
    stems : mapping of str to list of str
        The taxonomy's stems, which the classifier uses beside the words.
    seed : int
        Of the folds.

    Returns
    -------
    DataFrame
        The columns of ``labels`` with ``suspicion`` in [0, 1] (1: surely look at it) and ``reason``, most suspicious first.
    """
    rows = labels.sort_values("text_hash", kind="stable").reset_index(drop=True)
    rows = rows[rows["text_hash"].isin(list(texts))].reset_index(drop=True)
    if rows.empty:
        return rows.assign(suspicion=pd.Series(dtype="float64"), reason=pd.Series(dtype="str"))
    quality, other = _self_confidence([texts[key] for key in rows["text_hash"]], rows["label"].tolist(), stems, seed)
    shares = rows["label"].map(rows["label"].value_counts(normalize=True)).to_numpy(dtype=float)
    trust = quality * rows["confidence"].to_numpy(dtype=float) * rows["agreement"].to_numpy(dtype=float)
    rows["suspicion"] = np.clip(1.0 - trust * shares**_RARE_POWER, 0.0, 1.0)
    rows["reason"] = [
        _reason(float(q), str(o), row)
        for q, o, row in zip(quality, other, rows[["label", "confidence", "agreement"]].to_dict("records"), strict=True)
    ]
    return rows.sort_values(["suspicion", "text_hash"], ascending=[False, True], kind="stable").reset_index(drop=True)


def _reason(quality: float, other: str, row: Mapping[Any, Any]) -> str:
    reasons = []
    if quality < 0.5 and other != row["label"]:
        reasons.append(f"reads like «{other}»")
    if row["agreement"] < 1.0:
        reasons.append(f"{1.0 - row['agreement']:.0%} of the votes say otherwise")
    if row["confidence"] < 0.5:
        reasons.append(f"confidence {row['confidence']:.2f}")
    return "; ".join(reasons) or "least sure of the rest"


def _self_confidence(
    texts: Sequence[str], labels: Sequence[str], stems: Mapping[str, list[str]], seed: int
) -> tuple[np.ndarray, list[str]]:
    """Out-of-fold probability of each row's own label, and the label that was likeliest."""
    from cleanlab.rank import get_label_quality_scores

    from reviewclf.training.out_of_fold import out_of_fold

    held_out = out_of_fold(texts, labels, stems, seed=seed)
    if held_out is None:
        return np.ones(len(labels)), list(labels)
    classes, y, probabilities = held_out
    quality = get_label_quality_scores(y, probabilities, method="self_confidence")
    return np.asarray(quality, dtype=float), [str(classes[i]) for i in probabilities.argmax(axis=1)]
