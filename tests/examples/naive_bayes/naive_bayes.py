"""A kind of candidates in a package of one's own: complement naive Bayes over words."""

from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import Pipeline, make_pipeline

from reviewclf.training.candidates import Candidate, Strict
from reviewclf.training.model import ModelCard, TextClassifier
from reviewclf.training.rows import Floats, TrainingJob
from reviewclf.training.skops_files import read_skops, write_skops


class NaiveBayesParams(Strict):
    alpha: float = 1.0


class NaiveBayesClassifier(TextClassifier):
    kind = "naive-bayes"
    packages = ("scikit-learn", "skops")  # what serving it needs

    def __init__(self, *, pipeline: Pipeline, **common: Any) -> None:
        super().__init__(**common)
        self.pipeline = pipeline

    def seen_probabilities(self, texts: list[str]) -> Floats:
        return self.pipeline.predict_proba(texts)

    def write_parts(self, folder: Path) -> dict[str, Any]:
        write_skops({"pipeline": self.pipeline}, folder / "pipeline.skops")
        return {}  # small things could go into model.json this way

    @classmethod
    def read_parts(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        return read_skops(folder / "pipeline.skops")


class NaiveBayesCandidate(Candidate):
    params: NaiveBayesParams

    @classmethod
    def classifier(cls) -> type[TextClassifier]:
        return NaiveBayesClassifier

    def train(self, job: TrainingJob) -> TextClassifier:
        rows = job.training_rows(self.title)
        pipeline = make_pipeline(TfidfVectorizer(max_features=5000), ComplementNB(alpha=self.params.alpha))
        pipeline.fit(rows.texts, rows.target, complementnb__sample_weight=rows.weights)
        classifier = NaiveBayesClassifier(pipeline=pipeline, **self.common(job, rows))
        classifier.calibrate(job.validation, scale=True)
        return classifier
