"""Pictures of an evaluation, drawn without a display and outside pyplot's registry, so there is nothing to close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reviewclf.evaluation.calibration import Calibration
from reviewclf.evaluation.metrics import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Draw the confusion matrix: in each cell the rows and their share of the true class, which is also its shade."""
    counts = np.array(evaluation.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    k = len(evaluation.labels)
    figure = _figure(4.0 + 0.8 * k, 2.6 + 0.68 * k)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for i, j in np.argwhere(counts):
        ink = "white" if shares[i, j] > 0.55 else "#14304d"
        axes.text(j, i, f"{counts[i, j]}\n{shares[i, j]:.0%}", ha="center", va="center", color=ink, fontsize=9)
    names = [f"{label} ({int(n)})" for label, n in zip(evaluation.labels, counts.sum(axis=1), strict=True)]
    axes.set_xticks(range(k), evaluation.labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(k), names)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#d5dde5", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (rows)")
    f1 = evaluation.weighted_f1
    interval = f"{evaluation.confidence:.0%} interval {f1.low:.3f} to {f1.high:.3f}"
    axes.set_title(f"{title}\nweighted F1 {f1.value:.3f} ({interval}), n = {evaluation.n}", fontsize=11)
    return figure


def plot_reliability(calibration: Calibration, title: str) -> Figure:
    """Draw how often answers are right by how sure they are: on the diagonal confidence is honest, dots grow with rows."""
    figure = _figure(6.4, 6.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#9aa7b4", linewidth=1.0, linestyle="--")
    for row in calibration.bins:
        if row.confidence is None or row.accuracy is None:
            continue
        axes.plot([row.confidence] * 2, [row.confidence, row.accuracy], color="#c8553d", linewidth=1.2, zorder=1)
        axes.scatter(row.confidence, row.accuracy, s=30 + 300 * row.rows / calibration.n, color="#2b6ca3", zorder=2)
        axes.annotate(str(row.rows), (row.confidence, row.accuracy), xytext=(9, -4), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0.0, 1.03), ylim=(0.0, 1.03), aspect="equal")
    _label(axes, "confidence", "share that is right")
    axes.set_title(f"{title}\nexpected calibration error {calibration.value:.3f}, n = {calibration.n}", fontsize=11)
    return figure


def plot_learning_curves(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Draw loss, and where it was measured weighted F1 on validation, by epoch.

    Parameters
    ----------
    history : sequence of mapping
        One entry an epoch: ``epoch``, ``train_loss``, and with validation rows ``validation_loss`` and ``weighted_f1``.
    """
    from matplotlib.ticker import MaxNLocator

    panels = [("loss", {"train_loss": ("training, weighted", "#c8553d"), "validation_loss": ("validation", "#2b6ca3")})]
    if "weighted_f1" in history[0]:
        scores = {"weighted_f1": ("weighted F1", "#2b6ca3"), "macro_f1": ("macro F1", "#9aa7b4")}
        panels.append(("F1 on validation (agreement with votes)", scores))
    figure = _figure(4.8 * len(panels), 4.0)
    epochs = [entry["epoch"] for entry in history]
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (shown, color) in lines.items():
            if name in history[0]:
                axes.plot(epochs, [entry[name] for entry in history], color=color, marker="o", markersize=4, label=shown)
        _label(axes, "epoch", label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _label(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, axisbelow=True)
    axes.grid(color="#e3e8ee", linewidth=0.8)
    axes.spines[:].set_color("#d5dde5")
