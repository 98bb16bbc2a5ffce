"""Small linear classifiers for tests of serving: real ones, trained within a second, that are easily told apart."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from reviewclf.settings import load_settings
from reviewclf.training import train_candidate
from reviewclf.training.candidates import load_candidates
from reviewclf.training.model import TextClassifier

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
    return train_candidate(candidate, frame, frame.iloc[:0], classes=CLASSES, stems=None, seed=0)


def save_small(folder: Path, *, shift: int = 0) -> Path:
    """The same, saved."""
    train_small(shift=shift).save(folder)
    return folder


def answers_of(shift: int) -> list[str]:
    """What the classifier of that `shift` answers to REVIEWS."""
    return [CLASSES[(position + shift) % len(CLASSES)] for position in range(len(CLASSES))]
