"""What every trained classifier can do, and how it is saved and loaded. A saved classifier is a folder; nothing is pickled."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from reviewclf.errors import RegistryError

logger = logging.getLogger(__name__)

_CARD = "model.json"
_FORMAT = 1

# The answer of a classifier that was asked to say so when it is not sure enough.
UNSURE = "не уверен"


class TextClassifier(ABC):
    """A trained classifier of raw texts.

    Attributes
    ----------
    classes : list of str, length k
        All categories of the taxonomy, in its order, also those without a training row.
    chosen : dict
        The settings that training ended with, where some were searched for; empty after loading an older file without them.
    validation_probabilities : array of shape (m, k) or None
        What the classifier answers on the validation rows it was trained with; not saved, so None after loading.
    abstain : dict of str to float
        By class: the probability below which :meth:`answers` says :data:`UNSURE`, if asked to; missing classes never do.
    alone : bool
        Whether each text goes through it alone, however many it is given.
    exported : dict
        How the served file was made and checked, of the kinds that export one.
    history : list of dict
        Figures of each epoch, of the kinds that have epochs; not saved.
    trials : list of dict
        Settings and score of each trial of a search; not saved.
    figures : dict of str to float
        What else was measured in training, such as steps per second; not saved.
    """

    classes: list[str]
    chosen: dict[str, JsonValue]
    validation_probabilities: NDArray[np.float64] | None
    alone: bool = False
    abstain: Mapping[str, float] = MappingProxyType({})
    exported: Mapping[str, JsonValue] = MappingProxyType({})
    history: Sequence[Mapping[str, float]] = ()
    trials: Sequence[Mapping[str, float]] = ()
    figures: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def predict_proba(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """Probabilities of all categories.

        Parameters
        ----------
        texts : sequence of str, length n
            Reviews as they came; they are cleaned here. A missing text (None, NaN) or one that cleaning empties gets the
            shares of the classes in training.

        Returns
        -------
        array of float64, shape (n, k)
            Columns in the order of `classes`; rows sum to 1. Categories never seen in training have probability 0.
        """

    def predict(self, texts: Sequence[str | None], *, abstain: bool = False) -> list[str]:
        """Label of each text; see :meth:`answers`."""
        return self.answers(self.predict_proba(texts), abstain=abstain)

    def answers(self, probabilities: NDArray[np.float64], *, abstain: bool = False) -> list[str]:
        """Likeliest class of each row; :data:`UNSURE` where `abstain` and the class's threshold say so.

        Parameters
        ----------
        probabilities : array, shape (n, k)
            From :meth:`predict_proba`.
        """
        best = probabilities.argmax(axis=1).tolist() if len(probabilities) else []
        if not abstain:
            return [self.classes[position] for position in best]
        return [
            UNSURE if row[position] < self.abstain.get(self.classes[position], 0.0) else self.classes[position]
            for row, position in zip(probabilities, best, strict=True)
        ]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the classifier into `folder`, which is created; :func:`load_model` reads it back."""


class ModelCard(BaseModel):
    """``model.json``: what lies in the folder beside it.

    Attributes
    ----------
    kind : str
        Which loader reads the rest.
    classes : list of str
        Columns of the probabilities.
    candidate : dict
        The entry of the candidates file that it was trained by.
    chosen : dict
        The settings training ended with.
    versions : dict
        Packages it was trained with.
    extra : dict
        What the loader of this kind needs beside its own files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = _FORMAT
    kind: str
    classes: list[str] = Field(min_length=2)
    candidate: dict[str, JsonValue]
    chosen: dict[str, JsonValue]
    versions: dict[str, str]
    extra: dict[str, JsonValue] = {}

    def write(self, folder: Path) -> None:
        """Write the card into `folder`."""
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=2)
        (folder / _CARD).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """Read the card of `folder`.

        Raises
        ------
        RegistryError
            It is missing or damaged, or of a later format.
        """
        path = folder / _CARD
        try:
            card = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RegistryError(f"{path}: cannot be read ({error.strerror}); give the folder of a saved classifier") from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise RegistryError(f"{path}: is no description of a saved classifier: {error}; train it anew") from error
        if card.format != _FORMAT:
            raise RegistryError(f"{path}: format {card.format}, this version reads {_FORMAT}; train the classifier anew")
        return card


def load_model(folder: str | Path, *, threads: int | None = None) -> TextClassifier:
    """Load a saved classifier.

    Parameters
    ----------
    threads : int, optional
        Threads of one call, of the kinds that use several; default: the physical cores, at most 4. A server that answers
        several calls at once wants 1.

    Raises
    ------
    RegistryError
        A file is missing, damaged or tampered with, or the kind is unknown; the message names the file.
    """
    folder = Path(folder)
    card = ModelCard.read(folder)
    if card.kind == "linear":
        from reviewclf.training.linear_classifier import LinearClassifier

        return LinearClassifier.load(folder, card)
    if card.kind == "encoder":
        from reviewclf.training.encoder_classifier import EncoderClassifier

        return EncoderClassifier.load(folder, card, threads=threads)
    if card.kind == "frozen-encoder":
        from reviewclf.training.frozen import FrozenEncoderClassifier

        return FrozenEncoderClassifier.load(folder, card, threads=threads)
    raise RegistryError(f"{folder / _CARD}: unknown kind {card.kind!r}; this version loads: linear, encoder, frozen-encoder")


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of packages, for a model card."""
    return {name: version(name) for name in names}


def warn_of_other_versions(card: ModelCard, folder: Path) -> None:
    """Log which packages differ from those the classifier was trained with; its answers may then differ a little."""
    for name, trained_with in card.versions.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            here = "none"
        if here != trained_with:
            logger.warning("%s: trained with %s %s, loaded with %s", folder, name, trained_with, here)
