"""Runs, models, gate and promotion: the one place where MLflow is called."""

EXPERIMENT = "review-classifier"
REGISTERED_MODEL = "review-classifier"

CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"
