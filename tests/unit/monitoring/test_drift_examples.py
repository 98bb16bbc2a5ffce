"""The reviews that an alarm shows are those that show the change, on nights made by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from reviewclf.monitoring.drift import Night, detect_drift
from reviewclf.monitoring.features import FeatureExtractor, Features
from reviewclf.monitoring.report import Signal

ROWS = 100


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor([f"товар {word} пришёл вовремя" for word in ("синий", "красный", "зелёный", "белый")] * 50)


def night(name: str, *, alarmed: bool = False, labels: list[str] | None = None, **columns: Any) -> Night:
    """A night of reviews of ten known words each, called `name` and their number; `columns` are what differs."""
    usual: dict[str, Any] = {
        "length": np.full(ROWS, 4.0),
        "foreign": np.zeros(ROWS),
        "words": np.full(ROWS, 10.0),
        # One in twenty words is unknown, two in ten reviews.
        "unknown": np.tile([1.0, 0.0], ROWS // 2),
        "long_words": np.full(ROWS, 5.0),
        "misspelt": np.zeros(ROWS),
    }
    confidence = columns.pop("confidence", np.tile([0.85, 0.95], ROWS // 2))
    return Night(
        features=Features(**{**usual, **columns}, vectors=np.zeros((ROWS, 2)), phrases=Counter()),
        texts=[f"{name} {row}" for row in range(ROWS)],
        version="1",
        labels=labels or ["обувь", "одежда", "посуда", "текстиль"] * (ROWS // 4),
        confidence=confidence,
        abstained=np.zeros(ROWS, dtype=bool),
        alarmed=alarmed,
    )


def alarm(signal: str, nights: list[Night], extractor: FeatureExtractor) -> Signal:
    past = [night(f"earlier {number}") for number in range(8)]
    found = next(item for item in detect_drift(nights[-1], [*past, *nights[:-1]], None, extractor) if item.name == signal)
    assert found.alarmed, found
    return found


def values(usual: float, *, at: dict[int, float]) -> np.ndarray:
    column = np.full(ROWS, usual)
    column[list(at)] = list(at.values())
    return column


def test_words_of_a_long_review_do_not_hide_the_ones_that_are_full_of_unknown_ones(extractor: FeatureExtractor) -> None:
    unknown = np.tile([1.0, 0.0], ROWS // 2) + values(0, at=dict.fromkeys(range(60, 100), 5.0))
    unknown[0] = 8.0
    words = values(10, at={0: 120})
    raised = alarm("input/unknown_words", [night("tonight", unknown=unknown, words=words)], extractor)
    assert raised.examples == ("tonight 60", "tonight 62", "tonight 64")


def test_fewer_unknown_words_are_shown_by_reviews_that_have_words(extractor: FeatureExtractor) -> None:
    words = values(10, at={0: 0, 1: 0, 2: 0, 7: 40})
    raised = alarm("input/unknown_words", [night("tonight", unknown=np.zeros(ROWS), words=words)], extractor)
    assert raised.value is not None
    assert raised.value < 0
    assert raised.examples == ("tonight 7", "tonight 3", "tonight 4")


def test_night_without_the_change_shows_nothing_of_it(extractor: FeatureExtractor) -> None:
    misspelt = [values(0, at=dict.fromkeys(range(10 + number, 30 + number), 2.0)) for number in range(6)]
    nights = [night(f"night {number}", misspelt=column, alarmed=True) for number, column in enumerate(misspelt)]
    raised = alarm("input/misspellings", [*nights, night("tonight")], extractor)
    assert raised.examples == ("night 5 15", "night 5 16", "night 5 17")


def test_lower_confidence_is_shown_by_answers_below_what_was_usual(extractor: FeatureExtractor) -> None:
    confidence = values(0.95, at={3: 0.4, 4: 0.2}) - np.where(np.arange(ROWS) >= 10, 0.15, 0.0)
    raised = alarm("confidence/mean", [night("tonight", confidence=confidence)], extractor)
    assert raised.examples == ("tonight 4", "tonight 3", "tonight 10")


def test_category_that_vanished_shows_the_one_that_grew_instead(extractor: FeatureExtractor) -> None:
    labels = ["обувь" if row % 4 == 3 else ["обувь", "одежда", "посуда"][row % 4] for row in range(ROWS)]
    raised = alarm("prediction/class_shares", [night("tonight", labels=labels)], extractor)
    assert "«текстиль»: 0.0%" in raised.note
    assert raised.examples == ("tonight 0", "tonight 3", "tonight 4")
