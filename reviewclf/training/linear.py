"""Training of linear classifiers over TF-IDF and keyword-stem features, with probabilities one can trust."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reviewclf.errors import TrainingError
from reviewclf.training.calibration import abstain_thresholds
from reviewclf.training.candidates import LinearCandidate, LinearSettings
from reviewclf.training.features import TextFeatures, prepare
from reviewclf.training.linear_classifier import LinearClassifier

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def train_linear(
    candidate: LinearCandidate,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    classes: Sequence[str],
    stems: Mapping[str, list[str]] | None = None,
    seed: int,
) -> LinearClassifier:
    """Train a linear candidate.

    Parameters
    ----------
    candidate : LinearCandidate
        Where it lists values to search, those are taken that give the best weighted F1 on `validation`.
    train, validation : DataFrame
        Columns ``text_clean``, ``label`` and ``weight``. Training rows of weight 0 or without a text are left out.
        `validation` may be empty and is never fitted on; its weights are not used.
    classes : sequence of str, length k
        All categories; those without a training row get probability 0.
    stems : mapping of str to list of str, optional
        Keyword stems by category, for candidates with a ``stem_weight``.
    seed : int
        Of all randomness: equal inputs give an equal classifier.

    Returns
    -------
    LinearClassifier
        With ``chosen`` and ``validation_probabilities``.

    Raises
    ------
    TrainingError
        A column is missing, a label is unknown, a weight is negative or NaN, fewer than two classes are left, or the texts hold
        no feature; the message names candidate and column or setting.
    """
    title = f"candidate {candidate.name}"
    texts, target, weights = _training_rows(title, train, classes)
    _check_columns(title, "validation", validation)
    # The estimators count the classes that occur, 0, 1, 2, ...: scikit-learn's cross-validation renames all others to that.
    seen, encoded = np.unique(target, return_inverse=True)
    best: tuple[float, LinearClassifier] | None = None
    fitted: tuple[dict[str, Any], TextFeatures, Any] | None = None
    for settings in candidate.params.settings():
        # Neighbouring combinations mostly differ in the estimator alone; then the features are those of the one before.
        shape = settings.model_dump(include={"word", "char", "stem_weight", "digits_as_zero"})
        if fitted is None or fitted[0] != shape:
            features = TextFeatures(settings, stems or {})
            try:
                fitted = (shape, features, features.fit_transform(texts))
            except ValueError as error:
                raise TrainingError(
                    f"{title}: {len(texts)} training texts give no features ({error}); lower min_df or give stems"
                ) from error
        features = TextFeatures(settings, fitted[1].stems, fitted[1].vectorizers)
        classifier = LinearClassifier(
            classes=classes,
            features=features,
            estimator=_fit(settings, fitted[2], encoded, weights, seed=seed),
            seen=seen.tolist(),
            prior=np.bincount(target, weights=weights, minlength=len(classes)) / weights.sum(),
            candidate=candidate.model_dump(mode="json"),
        )
        classifier.validation_probabilities = classifier.predict_proba(validation["text_clean"].tolist())
        score = _weighted_f1(classifier, validation["label"].tolist()) if len(validation) else 0.0
        if best is None or score > best[0]:
            best = (score, classifier)
        if not len(validation):
            break  # nothing to choose by
    assert best is not None  # noqa: S101 - there is always one combination
    probabilities = best[1].validation_probabilities
    if probabilities is not None:
        best[1].abstain = abstain_thresholds(probabilities, validation["label"].tolist(), classes)
    if len(validation):
        logger.info("%s: weighted F1 %.3f on %d validation rows with %s", title, best[0], len(validation), best[1].chosen)
    return best[1]


def _fit(settings: LinearSettings, features: Any, target: Integers, weights: Floats, *, seed: int) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    totals = {int(label): weights[target == label].sum() for label in np.unique(target)}
    by_class = {
        label: float((weights.sum() / (len(totals) * total)) ** settings.class_weight_power) for label, total in totals.items()
    }
    kind = LogisticRegression if settings.estimator == "logistic_regression" else LinearSVC
    estimator: Any = kind(C=settings.C, class_weight=by_class, max_iter=settings.max_iter, random_state=seed)
    if settings.calibration == "sigmoid":
        features, target, weights, folds = _calibration_folds(settings, features, target, weights, seed=seed)
        estimator = CalibratedClassifierCV(estimator, method="sigmoid", cv=folds, ensemble=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(features, target, sample_weight=weights)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        # Still a usable model, judged by the gate like any other.
        logger.warning(
            "%s with C=%g did not converge in %d steps; raise max_iter or lower C",
            settings.estimator,
            settings.C,
            settings.max_iter,
        )
    if settings.calibration == "sigmoid":
        estimator.set_params(cv=None)  # row numbers of the folds, of no use in a saved model
    return estimator


def _calibration_folds(
    settings: LinearSettings, features: Any, target: Integers, weights: Floats, *, seed: int
) -> tuple[Any, Integers, Floats, list[tuple[Integers, Integers]]]:
    """Rows and folds such that every fold is trained on every class.

    A class of one row would be missing wherever that row is held out, so the row is put in twice at half its weight. Its own
    calibration is then no measurement, which with one row it could not be anyway. Classes of fewer rows than folds are simply
    absent from some held-out parts.
    """
    from scipy import sparse
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(target)
    single = np.flatnonzero(counts[target] == 1)
    if len(single):
        weights = weights.copy()
        weights[single] /= 2
        features = sparse.vstack([features, features[single]], format="csr")
        target, weights = np.concatenate([target, target[single]]), np.concatenate([weights, weights[single]])
    folds = max(2, min(settings.calibration_folds, int(np.bincount(target).max())))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        split = StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, target)
        return features, target, weights, list(split)


def _training_rows(title: str, train: pd.DataFrame, classes: Sequence[str]) -> tuple[list[str], Integers, Floats]:
    _check_columns(title, "train", train)
    weights = pd.to_numeric(train["weight"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise TrainingError(
            f"{title}: train, row {row}, column weight: expected a number >= 0, found {train['weight'].iloc[row]!r}"
        )
    texts = [prepare(text) for text in train["text_clean"]]
    keep = [row for row, text in enumerate(texts) if text and weights[row] > 0]
    labels = train["label"].tolist()
    position = {label: i for i, label in enumerate(classes)}
    for row in keep:
        if labels[row] not in position:
            raise TrainingError(
                f"{title}: train, row {row}, column label: {labels[row]!r} is no category of the taxonomy: {', '.join(classes)}"
            )
    target = np.array([position[labels[row]] for row in keep], dtype=np.int64)
    if len(np.unique(target)) < 2:
        found = ", ".join(sorted({labels[row] for row in keep})) or "none"
        raise TrainingError(f"{title}: training needs rows of at least two classes, found {found}; label more reviews")
    return [texts[row] for row in keep], target, weights[keep]


def _check_columns(title: str, name: str, frame: pd.DataFrame) -> None:
    missing = [column for column in ("text_clean", "label", "weight") if column not in frame.columns]
    if missing:
        raise TrainingError(f"{title}: {name} has no column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}")


def _weighted_f1(classifier: LinearClassifier, labels: list[str]) -> float:
    from sklearn.metrics import f1_score

    probabilities = classifier.validation_probabilities
    assert probabilities is not None  # noqa: S101 - set right before
    predicted = [classifier.classes[position] for position in probabilities.argmax(axis=1)]
    return float(f1_score(labels, predicted, average="weighted", zero_division=0))
