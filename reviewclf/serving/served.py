"""A model on the server: loaded from a folder, tried before the first request gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reviewclf.errors import RegistryError
from reviewclf.training.model import ModelCard, TextClassifier, load_model

if TYPE_CHECKING:
    from reviewclf.registry.deployment import Version

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
    def most_together(self) -> int | None:
        """Texts that go through it together at most; None: any number. Some take each alone."""
        return 1 if self.classifier.alone else None

    @property
    def version(self) -> str:
        """Number of the version."""
        return self.info.version

    def answer(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities, shape (texts, classes)."""
        return self.classifier.predict_proba(texts)


@dataclass(frozen=True)
class Copy:
    """A version without what the registry says about it; see :class:`ServedModel`."""

    identity: str
    version: str
    classifier: TextClassifier

    @property
    def most_together(self) -> int | None:
        """Texts that go through it together at most; None: any number. Some take each alone."""
        return 1 if self.classifier.alone else None

    def answer(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities, shape (texts, classes)."""
        return self.classifier.predict_proba(texts)


def load(folder: Path, *, threads: int | None) -> tuple[TextClassifier, str]:
    """Load the classifier of `folder` and its kind.

    The server reads the files with its own code, never with code that came with a version: what it cannot read it refuses.

    Raises
    ------
    RegistryError
        Its format is another one than this package's, or its files are damaged.
    """
    return load_model(folder, threads=threads), ModelCard.read(folder).kind


def try_out(classifier: TextClassifier, *, batch: int) -> None:
    """Let a model answer the probes alone and together, which also warms it up.

    Raises
    ------
    RegistryError
        It fails, or its answers are no probabilities of its classes.
    """
    classes: Any = classifier.classes
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
