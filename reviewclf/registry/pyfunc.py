"""The logged model as code: MLflow stores this file beside the model's data and runs it to serve; nothing is pickled.

Raw texts in, label, confidence and the probabilities of all categories out.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from reviewclf.errors import DataContractError
from reviewclf.registry.inputs import texts_of
from reviewclf.training.model import load_model


class ReviewClassifier(PythonModel):
    """Serves a saved :class:`reviewclf.training.model.TextClassifier`."""

    def load_context(self, context: Any) -> None:
        """Load the classifier from the folder that was logged as the artifact ``classifier``."""
        self._classifier = load_model(context.artifacts["classifier"])

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify reviews.

        Parameters
        ----------
        model_input : str, list, array, Series, DataFrame or mapping
            Reviews as they came; the model cleans them itself. A table needs a column ``text``, or only one column of texts.
            Missing texts are allowed.
        params : dict, optional
            ``abstain`` (default False): answer «не уверен» where the probability is below the class's threshold, from which on
            95% of the answers were right on validation.

        Returns
        -------
        DataFrame
            One row a review, with the index of what was given: ``label``, ``confidence`` (probability of the likeliest label,
            0 to 1) and ``probabilities`` (mapping from every label to its probability).

        Raises
        ------
        MlflowException
            Something else was given; MLflow's own server answers 400 with what is taken.
        """
        try:
            texts = texts_of(model_input)
        except DataContractError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        probabilities = self._classifier.predict_proba(texts.tolist())
        classes = self._classifier.classes
        return pd.DataFrame(
            {
                "label": self._classifier.answers(probabilities, abstain=bool((params or {}).get("abstain"))),
                "confidence": [float(row.max()) for row in probabilities],
                "probabilities": [dict(zip(classes, map(float, row), strict=True)) for row in probabilities],
            },
            index=texts.index,
        )


set_model(ReviewClassifier())
