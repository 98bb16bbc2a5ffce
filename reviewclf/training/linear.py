"""Linear classifiers over TF-IDF and keyword-stem features, with probabilities one can trust."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator

from reviewclf.errors import TrainingError
from reviewclf.training.candidates import Candidate, ClassWeightPower
from reviewclf.training.features import FeatureSettings, TextFeatures
from reviewclf.training.model import ModelCard, TextClassifier
from reviewclf.training.rows import Floats, Integers, TrainingJob, class_weights
from reviewclf.training.skops_files import read_skops, write_skops

logger = logging.getLogger(__name__)

# A search is chosen on a small validation split: more than this many settings would mostly pick noise, and take long.
_MAX_SETTINGS = 64
_FILE = "model.skops"
# All that a saved file may hold beyond what skops trusts by itself; a file with any other type is not loaded.
TRUSTED_TYPES = frozenset({"sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"})


class LinearSettings(FeatureSettings):
    """Settings of one linear classifier over TF-IDF and keyword-stem features."""

    estimator: Literal["logistic_regression", "linear_svc"]
    C: PositiveFloat = Field(1.0, description="inverse strength of regularisation")
    class_weight_power: ClassWeightPower = 1.0
    calibration: Literal["none", "sigmoid"] = Field("sigmoid", description="sigmoid: Platt scaling on out-of-fold scores")
    calibration_folds: Annotated[int, Field(ge=2, le=20)] = 5
    max_iter: PositiveInt = 2000

    @property
    def features(self) -> FeatureSettings:
        """Those of its settings that say which features there are."""
        return FeatureSettings.model_validate(self.model_dump(include=set(FeatureSettings.model_fields)))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.word is None and self.char is None and self.stem_weight == 0:
            raise ValueError("no features: give `word`, `char` or a `stem_weight` above 0")
        if self.estimator == "linear_svc" and self.calibration == "none":
            raise ValueError("linear_svc has no probabilities of its own; `calibration` must be sigmoid")
        return self


class LinearParams(LinearSettings):
    """Settings, and optionally lists of values to choose among on the validation split.

    Attributes
    ----------
    search : dict
        Values to try, by name of a setting: ``{C: [1, 3, 10]}``. All combinations are tried in the order written; the best
        weighted F1 on validation wins, the earlier one on ties. Without validation rows the first combination is taken.
    """

    search: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})

    @model_validator(mode="after")
    def _search_is_valid(self) -> Self:
        unknown = sorted(set(self.search) - set(LinearSettings.model_fields))
        if unknown:
            raise ValueError(f"search: no setting {', '.join(unknown)}; there are {', '.join(LinearSettings.model_fields)}")
        self.settings()
        return self

    def settings(self) -> list[LinearSettings]:
        """All combinations to try, in order; one when there is nothing to search."""
        fixed = self.model_dump(exclude={"search"})
        combinations = list(itertools.product(*self.search.values()))
        if len(combinations) > _MAX_SETTINGS:
            raise ValueError(
                f"search: {len(combinations)} combinations; at most {_MAX_SETTINGS} can be told apart on validation"
            )
        return [LinearSettings.model_validate(fixed | dict(zip(self.search, values, strict=True))) for values in combinations]


class LinearClassifier(TextClassifier):
    """A fitted linear model with its features.

    Parameters
    ----------
    features : TextFeatures
        Fitted.
    estimator : LogisticRegression or CalibratedClassifierCV
        Fitted on places in `seen`.
    **common
        See :class:`reviewclf.training.model.TextClassifier`.
    """

    kind = "linear"
    packages = ("scikit-learn", "scipy", "skops")

    def __init__(self, *, features: TextFeatures, estimator: Any, **common: Any) -> None:
        super().__init__(**common)
        self._features = features
        self._estimator = estimator

    def seen_probabilities(self, texts: list[str]) -> Floats:  # type: ignore[override]
        """See :class:`reviewclf.training.model.TextClassifier`."""
        answers = self._estimator.predict_proba(self._features.transform(texts))
        result: Floats = answers / answers.sum(axis=1, keepdims=True)
        return result

    def write_parts(self, folder: Path) -> dict[str, JsonValue]:
        """Write ``model.skops``."""
        write_skops({"features": self._features.state(), "estimator": self._estimator}, folder / _FILE)
        return {"stems": dict(self._features.stems)}  # type: ignore[arg-type]

    @classmethod
    def read_parts(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        """Read ``model.skops``, in which only types of scikit-learn are trusted."""
        content = read_skops(folder / _FILE, trusted=TRUSTED_TYPES)
        stems: Any = card.extra["stems"]
        features = TextFeatures(LinearSettings.model_validate(card.chosen), stems)
        features.restore(content["features"])
        return {"features": features, "estimator": content["estimator"]}


class LinearCandidate(Candidate):
    """A linear classifier."""

    params: LinearParams

    @classmethod
    def classifier(cls) -> type[TextClassifier]:
        """See :class:`reviewclf.training.candidates.Candidate`."""
        return LinearClassifier

    def train(self, job: TrainingJob) -> TextClassifier:
        """Fit each combination of settings and keep the best on validation."""
        rows = job.training_rows(self.title)
        job.validation_rows(self.title)  # whose columns are checked so
        labels = job.validation["label"].tolist()
        # The estimators count the classes that occur, 0, 1, 2, ...: scikit-learn's cross-validation renames all others to that.
        encoded = np.searchsorted(rows.seen, rows.target)
        # Neighbouring combinations mostly differ in the estimator alone; then the features are those of the one before.
        learned = lru_cache(maxsize=1)(lambda settings: _features(self.title, settings, rows.texts, job.stems))

        def fitted(settings: LinearSettings) -> tuple[float, LinearClassifier]:
            features, matrix = learned(settings.features)
            classifier = LinearClassifier(
                features=features,
                estimator=_fit(settings, matrix, encoded, rows.weights, seed=job.seed),
                chosen=settings.model_dump(mode="json"),
                **self.common(job, rows),
            )
            answers = classifier.calibrate(job.validation)
            return weighted_f1(labels, classifier.answers(answers)) if labels else 0.0, classifier

        settings = self.params.settings()
        score, best = max(map(fitted, settings if labels else settings[:1]), key=lambda found: found[0])
        if labels:
            logger.info("%s: weighted F1 %.3f on %d validation rows with %s", self.title, score, len(labels), best.chosen)
        return best


def weighted_f1(true: list[str], predicted: list[str]) -> float:
    """Mean of the classes' F1, weighted by their rows."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, average="weighted", zero_division=0))


def fit_or_warn(estimator: Any, features: Any, target: Integers, weights: Floats) -> None:
    """Fit an estimator; one that does not converge is still a usable model, judged by the gate like any other."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(features, target, sample_weight=weights)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("%s did not converge; raise max_iter or lower C", estimator)


def _features(
    title: str, settings: FeatureSettings, texts: list[str], stems: Mapping[str, list[str]]
) -> tuple[TextFeatures, Any]:
    features = TextFeatures(settings, stems)
    try:
        return features, features.fit_transform(texts)
    except ValueError as error:
        raise TrainingError(
            f"{title}: {len(texts)} training texts give no features ({error}); lower min_df or give stems"
        ) from error


def _fit(settings: LinearSettings, features: Any, target: Integers, weights: Floats, *, seed: int) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    by_class = class_weights(target, weights, classes=int(target.max()) + 1, power=settings.class_weight_power)
    kind = LogisticRegression if settings.estimator == "logistic_regression" else LinearSVC
    estimator: Any = kind(
        C=settings.C, class_weight=dict(enumerate(by_class.tolist())), max_iter=settings.max_iter, random_state=seed
    )
    if settings.calibration == "none":
        fit_or_warn(estimator, features, target, weights)
        return estimator
    features, target, weights, folds = _calibration_folds(settings, features, target, weights, seed=seed)
    calibrated = CalibratedClassifierCV(estimator, method="sigmoid", cv=folds, ensemble=False)
    fit_or_warn(calibrated, features, target, weights)
    # Row numbers of the folds are of no use in a saved model.
    return calibrated.set_params(cv=None)


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
