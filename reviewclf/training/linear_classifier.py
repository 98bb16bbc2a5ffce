"""A fitted linear classifier: its answers, its files."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, TypeAdapter, ValidationError

from reviewclf.errors import RegistryError, TaxonomyError
from reviewclf.training.candidates import LinearSettings
from reviewclf.training.features import TextFeatures, prepare
from reviewclf.training.model import ModelCard, TextClassifier, package_versions, warn_of_other_versions

Floats = NDArray[np.float64]

_FILE = "model.skops"
_NUMBERS = TypeAdapter(dict[str, float])
# All that a saved file may hold beyond what skops trusts by itself; a file with any other type is not loaded.
TRUSTED_TYPES = frozenset({"sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"})


class LinearClassifier(TextClassifier):
    """A fitted linear model with its features; see :class:`reviewclf.training.model.TextClassifier`.

    Parameters
    ----------
    classes : sequence of str, length k
        All categories.
    features : TextFeatures
        Fitted.
    estimator : LogisticRegression or CalibratedClassifierCV
        Fitted on positions in `seen`.
    seen : sequence of int
        Positions in `classes` of the classes that had training rows, ascending.
    prior : array, shape (k,)
        Shares of the classes in training; the answer to empty texts.
    candidate : dict
        The entry of the candidates file.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        features: TextFeatures,
        estimator: Any,
        seen: Sequence[int],
        prior: Floats,
        candidate: Mapping[str, JsonValue],
    ) -> None:
        self.classes = list(classes)
        self.chosen = features.settings.model_dump(mode="json")
        self.validation_probabilities = None
        self._features = features
        self._estimator = estimator
        self._seen = list(seen)
        self._prior = prior
        self._candidate = dict(candidate)

    @property
    def seen_classes(self) -> list[str]:
        """The classes that had training rows, in the order of `classes`."""
        return [self.classes[position] for position in self._seen]

    def predict_proba(self, texts: Sequence[str | None]) -> Floats:
        """See :meth:`reviewclf.training.model.TextClassifier.predict_proba`."""
        prepared = [prepare(text) for text in texts]
        result = np.tile(self._prior, (len(prepared), 1))
        rows = [row for row, text in enumerate(prepared) if text]
        if rows:
            answers = self._estimator.predict_proba(self._features.transform([prepared[row] for row in rows]))
            result[np.ix_(rows, self._seen)] = answers / answers.sum(axis=1, keepdims=True)
        return result

    def save(self, folder: Path) -> None:
        """Write ``model.skops`` and ``model.json``."""
        skops = _skops()
        folder.mkdir(parents=True, exist_ok=True)
        content = {"features": self._features.state(), "estimator": self._estimator}
        skops.dump(content, folder / _FILE, compression=zipfile.ZIP_DEFLATED)
        ModelCard(
            kind="linear",
            classes=self.classes,
            candidate=self._candidate,
            chosen=self.chosen,
            versions=package_versions("numpy", "scikit-learn", "scipy", "skops"),
            extra={
                "prior": self._prior.tolist(),
                "seen": list(self._seen),
                "abstain": dict(self.abstain),
                "stems": {name: list(stems) for name, stems in self._features.stems.items()},
            },
        ).write(folder)

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> LinearClassifier:
        """Read what :meth:`save` wrote.

        Raises
        ------
        RegistryError
            A file is missing or damaged, holds a type that no saved classifier has, or does not fit ``model.json``.
        """
        warn_of_other_versions(card, folder)
        content = _load_trusted(folder / _FILE)
        try:
            settings = LinearSettings.model_validate(card.chosen)
            prior = np.array(card.extra["prior"], dtype=np.float64)
            features = TextFeatures(settings, card.extra["stems"])  # type: ignore[arg-type]
            features.restore(content["features"])
            loaded = cls(
                classes=card.classes,
                features=features,
                estimator=content["estimator"],
                seen=card.extra["seen"],  # type: ignore[arg-type]
                prior=prior,
                candidate=card.candidate,
            )
            loaded.abstain = _NUMBERS.validate_python(card.extra.get("abstain", {}))
            # A model whose parts do not fit together fails here and not at the first request.
            answer = loaded.predict_proba(["проверка", ""])
        except (ValidationError, TaxonomyError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RegistryError(
                f"{folder}: its files do not fit together ({error!r:.200}); train the classifier anew"
            ) from error
        if answer.shape != (2, len(card.classes)) or not np.allclose(answer.sum(axis=1), 1.0):
            raise RegistryError(
                f"{folder}: answers are no probabilities of {len(card.classes)} classes; train the classifier anew"
            )
        return loaded


def _skops() -> Any:
    """The module ``skops.io``.

    At its import it asks every loaded module for each function of scipy. Inside Airflow many answer with a warning, a line of
    the log each: thousands, and many seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skops.io
    return skops.io


def _load_trusted(path: Path) -> dict[str, Any]:
    skops = _skops()
    try:
        foreign = sorted(set(skops.get_untrusted_types(file=path)) - TRUSTED_TYPES)
        content = None if foreign else skops.load(path, trusted=sorted(TRUSTED_TYPES))
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read ({error}); give the folder of a saved classifier") from error
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise RegistryError(f"{path}: is damaged ({error!r:.200}); train the classifier anew") from error
    if foreign:
        raise RegistryError(
            f"{path}: holds {', '.join(foreign)}, which no saved classifier does; tampered with, so it is not loaded"
        )
    if not isinstance(content, dict):
        raise RegistryError(f"{path}: holds a {type(content).__name__} in place of a classifier's parts; train it anew")
    return content
