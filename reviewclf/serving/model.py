"""A model on the server: loaded from a folder, tried before the first request gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reviewclf.errors import RegistryError
from reviewclf.registry.deployment import Version
from reviewclf.settings import ServingSettings
from reviewclf.training.model import ModelCard, TextClassifier, load_model
from reviewclf.training.onnx_session import default_threads

# What it will meet: an ordinary review, next to nothing, nothing, control characters, other scripts, more than it reads.
PROBES = (
    "Платье село отлично, но швы кривые и нитки торчат",
    "ок",
    "",
    "   ",
    "👍🔥 !!! \x00 \u200b \ufeff",
    "The dress fits, 尺码合适, مقاس ممتاز",
    "Сковорода пригорает, ручка шатается, вернули деньги не сразу. " * 100,
)
# Rows of probabilities have to sum to 1 as far as 32-bit arithmetic gets there.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ServedModel:
    """One version, ready to answer.

    Attributes
    ----------
    info : Version
        What the registry said about it when it was loaded.
    classifier : TextClassifier
        Answers from several threads at once.
    figures : dict of str to float
        Metrics of its run.
    loaded_at : datetime
        With time zone.
    loaded_from : str
        ``registry`` or ``cache``.
    kind : str
        Of its candidate: ``linear``, ``encoder``, ...
    """

    info: Version
    classifier: TextClassifier
    figures: dict[str, float]
    loaded_at: datetime
    loaded_from: str = "registry"
    kind: str = ""

    @property
    def version(self) -> str:
        """Number of the version."""
        return self.info.version

    @property
    def alone(self) -> bool:
        """Whether each text goes through it alone, however many it is given."""
        return self.classifier.alone

    def answer(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities, shape (texts, classes)."""
        return self.classifier.predict_proba(texts)

    def labels(self, texts: Sequence[str]) -> list[str]:
        """The likeliest class of each text."""
        return self.classifier.answers(self.answer(texts))


def threads_of(serving: ServingSettings) -> int:
    """Threads of one call of a model: all cores where there is one process, else one, as the other processes have theirs."""
    return default_threads() if serving.workers == 1 else 1


def load(folder: Path, *, threads: int, batch: int) -> tuple[TextClassifier, str]:
    """Load the classifier of `folder` and try it out; the classifier and its kind.

    The server reads the files with its own code, never with code that came with a version: what it cannot read it refuses.

    Parameters
    ----------
    threads : int
        See :func:`threads_of`.
    batch : int
        Texts that will go through the model together; it is warmed up with as many.

    Raises
    ------
    RegistryError
        Its format is another one than this package's, its files are damaged, or see :func:`try_out`.
    """
    classifier = load_model(folder, threads=threads)
    try_out(classifier, batch=batch)
    return classifier, ModelCard.read(folder).kind


def try_out(classifier: TextClassifier, *, batch: int) -> None:
    """Let a model answer the probes alone and together, which also warms it up.

    Raises
    ------
    RegistryError
        It fails, or its answers are no probabilities of its classes.
    """
    classes = classifier.classes
    if not classes or len(set(classes)) != len(classes) or not all(isinstance(name, str) and name for name in classes):
        raise RegistryError(f"its classes are {classes!r:.200}, which are no distinct names; train it anew")
    together = [PROBES[i % len(PROBES)] for i in range(max(batch, len(PROBES)))]
    for texts in [*([probe] for probe in PROBES), together]:
        try:
            answers = classifier.predict_proba(texts)
            labels = classifier.answers(answers)
        except Exception as error:  # whatever a broken model raises
            raise RegistryError(f"it fails on a probe: {error!r:.300}; train it anew") from error
        if answers.shape != (len(texts), len(classes)):
            raise RegistryError(f"it answers {answers.shape} to {len(texts)} texts and {len(classes)} classes; train it anew")
        if not np.isfinite(answers).all() or (answers < -_TOLERANCE).any() or (abs(answers.sum(axis=1) - 1) > _TOLERANCE).any():
            raise RegistryError("its answers are no probabilities; train it anew")
        if not set(labels) <= set(classes):
            raise RegistryError(f"it answers labels that are none of its classes: {sorted(set(labels) - set(classes))}")
