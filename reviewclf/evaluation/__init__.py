"""Scores with their uncertainty: metrics, confusion matrix, calibration, comparison of two models, latency. No files."""

from reviewclf.evaluation.calibration import Calibration, ReliabilityBin, expected_calibration_error, reliability
from reviewclf.evaluation.latency import Latency, measure_latency
from reviewclf.evaluation.metrics import ClassScore, Difference, Evaluation, Interval, evaluate, paired_bootstrap
from reviewclf.evaluation.plots import plot_confusion_matrix, plot_learning_curves, plot_reliability

__all__ = [
    "Calibration",
    "ClassScore",
    "Difference",
    "Evaluation",
    "Interval",
    "Latency",
    "ReliabilityBin",
    "evaluate",
    "expected_calibration_error",
    "measure_latency",
    "paired_bootstrap",
    "plot_confusion_matrix",
    "plot_learning_curves",
    "plot_reliability",
    "reliability",
]
