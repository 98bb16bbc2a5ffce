"""The queue of doubtful labels for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

HUMAN = "human"

_FOLDS = 5
# Rows beyond which a linear classifier gains little, and rows whose features are held in memory together.
_LEARNED, _PORTION = 10_000, 20_000
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

    held_out = out_of_fold(texts, labels, stems, seed=seed)
    if held_out is None:
        return np.ones(len(labels)), list(labels)
    classes, y, probabilities = held_out
    quality = get_label_quality_scores(y, probabilities, method="self_confidence")
    return np.asarray(quality, dtype=float), [str(classes[i]) for i in probabilities.argmax(axis=1)]


def out_of_fold(
    texts: Sequence[str], labels: Sequence[str], stems: Mapping[str, list[str]], *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """What a linear classifier says of each text when it was trained without it.

    Beyond 10,000 rows it learns from a sample of them, stratified by label; it answers for all, a portion at a time.

    Returns
    -------
    tuple of arrays, or None
        The k classes that occur, sorted; each row's class among them, shape (n,); probabilities, shape (n, k), rows summing
        to 1. None where there are too few rows or classes to hold any out.
    """
    from sklearn.linear_model import LogisticRegression

    from reviewclf.training.candidates import LinearSettings, Ngrams
    from reviewclf.training.features import TextFeatures, prepare

    classes, y = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    if len(classes) < 2 or len(y) < 2 * _FOLDS:
        return None
    settings = LinearSettings(
        estimator="logistic_regression",
        C=30.0,
        word=Ngrams(ngram_range=(1, 2), min_df=2, max_features=30_000),
        char=Ngrams(ngram_range=(2, 4), min_df=2, max_features=60_000, sublinear_tf=True),
        stem_weight=0.5,
        digits_as_zero=True,
        calibration="none",
    )
    fold = _folds(y, seed)
    is_learned = _sampled(y, seed)
    probabilities = np.full((len(y), len(classes)), 1e-6)
    for k in range(_FOLDS):
        train, held = np.flatnonzero((fold != k) & is_learned), np.flatnonzero(fold == k)
        if len(np.unique(y[train])) < 2 or not len(held):
            continue
        features = TextFeatures(settings, stems)
        model = LogisticRegression(C=settings.C, max_iter=settings.max_iter)
        model.fit(features.fit_transform([prepare(texts[i]) for i in train.tolist()]), y[train])
        for start in range(0, len(held), _PORTION):
            part = held[start : start + _PORTION]
            answers = model.predict_proba(features.transform([prepare(texts[i]) for i in part.tolist()]))
            probabilities[np.ix_(part, model.classes_)] = answers
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return classes, y, probabilities


def _sampled(y: np.ndarray, seed: int) -> np.ndarray:
    """Which rows to learn from: all, or about ``_LEARNED`` of them, of each class alike but no fewer than a hundred."""
    if len(y) <= _LEARNED:
        return np.ones(len(y), dtype=bool)
    sizes = np.bincount(y)
    shares = np.minimum(1.0, np.maximum(_LEARNED / len(y), 100 / np.maximum(1, sizes)))
    is_learned: np.ndarray = np.random.default_rng(seed).random(len(y)) < shares[y]
    return is_learned


def _folds(y: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each row, every class spread evenly; classes with a single row too."""
    generator = np.random.default_rng(seed)
    fold = np.zeros(len(y), dtype=np.intp)
    start = 0
    for k in range(int(y.max()) + 1):
        members = np.flatnonzero(y == k)
        generator.shuffle(members)
        fold[members] = (start + np.arange(len(members))) % _FOLDS
        start += len(members)
    return fold
