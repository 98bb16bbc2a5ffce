"""Small linear classifiers for tests of serving: real ones, trained within a second, that are easily told apart."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from reviewclf.errors import RegistryError
from reviewclf.registry.deployment import Version
from reviewclf.settings import load_settings
from reviewclf.training.candidates import load_candidates
from reviewclf.training.model import TextClassifier
from reviewclf.training.rows import TrainingJob

CLASSES = ["одежда", "посуда", "электроника"]
_THINGS = {
    "одежда": ("платье", "куртка", "юбка", "свитер"),
    "посуда": ("сковорода", "кастрюля", "тарелка", "кружка"),
    "электроника": ("наушники", "телефон", "зарядка", "колонка"),
}
_WORDS = ("отлично", "не понравилось", "пришло быстро", "вернули деньги", "как на фото")
# One review of each class, in the order of CLASSES.
REVIEWS = ["платье отлично", "сковорода пришло быстро", "наушники не понравилось"]


def train_small(*, shift: int = 0, weight: float = 1.0) -> TextClassifier:
    """A classifier whose labels are off by `shift` classes, so that its answers say which one it is."""
    rows = [
        (f"{thing} {words}", CLASSES[(position + shift) % len(CLASSES)])
        for position, name in enumerate(CLASSES)
        for thing in _THINGS[name]
        for words in _WORDS
    ]
    frame = pd.DataFrame(rows, columns=["text_clean", "label"]).assign(weight=weight)
    candidate = load_candidates(load_settings(_env_file=None).candidates)[0]
    return candidate.train(TrainingJob(frame, frame.iloc[:0], classes=CLASSES))


def save_small(folder: Path, *, shift: int = 0) -> Path:
    """The same, saved."""
    train_small(shift=shift).save(folder)
    return folder


def answers_of(shift: int) -> list[str]:
    """What the classifier of that `shift` answers to REVIEWS."""
    return [CLASSES[(position + shift) % len(CLASSES)] for position in range(len(CLASSES))]


class Folders:
    """A registry of folders: the network's edge, with real models behind it."""

    def __init__(self) -> None:
        self.named: dict[str, str] = {}
        self.folders: dict[str, Path] = {}
        self.away = False
        self.fetched: list[str] = []
        self.tags: dict[str, str] = {}

    def aliases(self) -> dict[str, str]:
        if self.away:
            raise RegistryError("MLflow is away")
        return dict(self.named)

    def version(self, version: str) -> Version:
        return Version(version=version, run_id=f"run{version}", registered_at=datetime(2026, 1, 1, tzinfo=UTC), tags=self.tags)

    def figures(self, version: Version) -> dict[str, float]:
        return {"gold/weighted_f1": 0.9}

    def fetch(self, version: Version, folder: Path) -> None:
        self.fetched.append(version.version)
        if self.away:
            raise RegistryError("MLflow is away")
        shutil.copytree(self.folders[version.version], folder, dirs_exist_ok=True)
