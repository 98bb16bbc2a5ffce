"""How much a training row counts, and which rows a big or a noisy class does without. Functions over data frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd


def row_weights(rows: pd.DataFrame, *, hint_weight: float) -> npt.NDArray[np.float64]:
    """Weight of each real row: the confidence in its label, less where only keyword stems speak for it.

    Parameters
    ----------
    rows : DataFrame
        ``confidence``, ``hint``.
    hint_weight : float
        Factor of hints. Beside labels by readers hints weigh little; where they are all there is, they are what the others
        are elsewhere, and the factor is 1.
    """
    factor = 1.0 if rows["hint"].all() else hint_weight
    confidence = rows["confidence"].to_numpy(dtype=np.float64)
    weights: npt.NDArray[np.float64] = np.where(rows["hint"].to_numpy(dtype=bool), confidence * factor, confidence)
    return weights


def over_cap(rows: pd.DataFrame, cap: int | None, *, seed: int) -> list[int]:
    """Index labels of the training rows that a class has beyond `cap`.

    Readers' labels stay before hints, surer ones before others, and among equals a seeded hash decides, so that the same rows
    stay from night to night.

    Parameters
    ----------
    rows : DataFrame
        ``label``, ``split``, ``hint``, ``confidence``, ``text_hash``.
    cap : int or None
        Training rows per class at most; None: no limit.
    """
    train = rows[rows["split"] == "train"]
    if cap is None or train.empty or train["label"].value_counts().max() <= cap:
        return []
    order = [hashlib.blake2b(f"{seed}\x00{key}".encode(), digest_size=16).hexdigest() for key in train["text_hash"]]
    ranked = train.assign(_order=order).sort_values(
        ["label", "hint", "confidence", "_order"], ascending=[True, True, False, True], kind="stable"
    )
    beyond = ranked.groupby("label").cumcount() >= cap
    return [int(place) for place in ranked.index[beyond]]


def suspected_errors(rows: pd.DataFrame, stems: Mapping[str, list[str]], *, seed: int) -> list[int]:
    """Index labels of the training rows whose label is probably wrong.

    cleanlab's confident learning (Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels,
    JAIR 2021) over the out-of-fold probabilities of a linear classifier. Only training rows are looked at: validation and gold
    have to stay what they are. Labels by people are never suspected.

    Parameters
    ----------
    rows : DataFrame
        ``text_clean``, ``label``, ``split``, ``origin``.
    stems : mapping of str to list of str
        Keyword stems by category.
    seed : int
        Of the folds.
    """
    from cleanlab.filter import find_label_issues

    from reviewclf.training.out_of_fold import out_of_fold

    train = rows[rows["split"] == "train"]
    held_out = out_of_fold(train["text_clean"].tolist(), train["label"].tolist(), stems, seed=seed)
    if held_out is None:
        return []
    _, labels, probabilities = held_out
    issues = np.asarray(find_label_issues(labels, probabilities, n_jobs=1), dtype=bool)
    issues &= (train["origin"] != "human").to_numpy()
    return [int(place) for place in train.index[issues]]
