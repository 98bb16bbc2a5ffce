"""``model.json``: what lies in the folder of a saved classifier, and what it has learned beside its kind's own files."""

from __future__ import annotations

import json
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, Field, JsonValue, NonNegativeInt, ValidationError, field_validator

from reviewclf.errors import RegistryError
from reviewclf.training.parts import reading

logger = logging.getLogger(__name__)

CARD = "model.json"
_FORMAT = 1


class ModelCard(BaseModel, frozen=True, extra="forbid"):
    """``model.json``: what lies in the folder beside it.

    Attributes
    ----------
    kind : str
        Whose class reads the rest.
    classes : list of str
        Columns of the probabilities.
    candidate : dict
        The entry of the candidates file that it was trained by.
    chosen : dict
        The settings training ended with.
    versions : dict
        Packages it was trained with.
    extra : dict
        What its class needs beside its own files.
    """

    format: int = _FORMAT
    kind: str
    classes: list[str] = Field(min_length=2)
    candidate: dict[str, JsonValue]
    chosen: dict[str, JsonValue]
    versions: dict[str, str]
    extra: dict[str, JsonValue] = {}

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """Read the card of `folder`.

        Raises
        ------
        RegistryError
            It is missing or damaged, or of a later format.
        """
        path = folder / CARD
        with reading(path):
            content = path.read_bytes()
        try:
            card = cls.model_validate_json(content)
        except ValidationError as error:
            raise RegistryError(f"{path}: is no description of a saved classifier: {error}; train it anew") from error
        if card.format != _FORMAT:
            raise RegistryError(f"{path}: format {card.format}, this version reads {_FORMAT}; train the classifier anew")
        return card

    def write(self, folder: Path) -> None:
        """Write the card of `folder`."""
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=2)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    def warn_of_other_versions(self, folder: Path) -> None:
        """Log which packages differ from those it was trained with; its answers may then differ a little."""
        for name, trained_with in self.versions.items():
            try:
                here = version(name)
            except PackageNotFoundError:
                here = "none"
            if here != trained_with:
                logger.warning("%s: trained with %s %s, loaded with %s", folder, name, trained_with, here)


class Learned(BaseModel):
    """What classifiers of all kinds keep in the card's ``extra``."""

    seen: list[NonNegativeInt] = Field(min_length=1)
    prior: list[float]
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    abstain: dict[str, float] = {}
    exported: dict[str, JsonValue] = {}

    @field_validator("seen")
    @classmethod
    def _ascending(cls, seen: list[int]) -> list[int]:
        if seen != sorted(set(seen)):
            raise ValueError("expected ascending positions of classes")
        return seen
