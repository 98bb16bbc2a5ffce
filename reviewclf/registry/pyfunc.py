"""The logged model as code: MLflow stores this file beside the model's data and runs it to serve; nothing is pickled.

Raw texts in, label, confidence and the probabilities of all categories out.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from reviewclf.training.model import load_model


class ReviewClassifier(PythonModel):
    """Serves a saved :class:`reviewclf.training.model.TextClassifier`."""

    def load_context(self, context: Any) -> None:
        """Load the classifier from the folder that was logged as the artifact ``classifier``."""
        self._classifier = load_model(context.artifacts["classifier"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify reviews.

        Parameters
        ----------
        model_input : DataFrame
            Column ``text``: reviews as they came; the model cleans them itself. Missing texts are allowed.

        Returns
        -------
        DataFrame
            One row a review, same index: ``label``, ``confidence`` (probability of that label, 0 to 1) and ``probabilities``
            (mapping from every label to its probability).
        """
        texts = [text if isinstance(text, str) else "" for text in model_input["text"]]
        probabilities = self._classifier.predict_proba(texts)
        classes = self._classifier.classes
        best = probabilities.argmax(axis=1) if len(texts) else []
        return pd.DataFrame(
            {
                "label": [classes[position] for position in best],
                "confidence": [float(row[position]) for row, position in zip(probabilities, best, strict=True)],
                "probabilities": [dict(zip(classes, map(float, row), strict=True)) for row in probabilities],
            },
            index=model_input.index,
        )


set_model(ReviewClassifier())
