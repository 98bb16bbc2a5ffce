"""What every trained classifier can do, and how it is saved and loaded. A saved classifier is a folder; nothing is pickled."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from reviewclf.errors import RegistryError

logger = logging.getLogger(__name__)

_CARD = "model.json"
_FORMAT = 1


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
    """

    classes: list[str]
    chosen: dict[str, JsonValue]
    validation_probabilities: NDArray[np.float64] | None

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


def load_model(folder: str | Path) -> TextClassifier:
    """Load a saved classifier.

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
    raise RegistryError(f"{folder / _CARD}: unknown kind {card.kind!r}; this version loads: linear")


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
