"""What a linear classifier says of texts that it was trained without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reviewclf.text import clean_texts
from reviewclf.training.features import FeatureSettings, Ngrams, TextFeatures

_FOLDS = 5
# Rows beyond which a linear classifier gains little, and rows whose features are held in memory together.
_LEARNED, _PORTION = 10_000, 20_000


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

    classes, y = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    if len(classes) < 2 or len(y) < 2 * _FOLDS:
        return None
    settings = FeatureSettings(
        word=Ngrams(ngram_range=(1, 2), min_df=2, max_features=30_000),
        char=Ngrams(ngram_range=(2, 4), min_df=2, max_features=60_000, sublinear_tf=True),
        stem_weight=0.5,
        digits_as_zero=True,
    )
    fold, is_learned = _folds(y, seed), _sampled(y, seed)
    probabilities = np.full((len(y), len(classes)), 1e-6)
    for k in range(_FOLDS):
        train, held = np.flatnonzero((fold != k) & is_learned), np.flatnonzero(fold == k)
        if len(np.unique(y[train])) < 2 or not len(held):
            continue
        features = TextFeatures(settings, stems)
        model = LogisticRegression(C=30.0, max_iter=2000)
        model.fit(features.fit_transform(clean_texts([texts[i] for i in train.tolist()])), y[train])
        for part in np.array_split(held, 1 + len(held) // _PORTION):
            answers = model.predict_proba(features.transform(clean_texts([texts[i] for i in part.tolist()])))
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
