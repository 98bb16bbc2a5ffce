"""What a correct reader would hold after each night: an independent model in plain Python.

It shares one thing with the product: which text is the same as another (`clean_text`, `text_hash`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from reviewclf.text import clean_text, text_hash

# Ids that name nothing: a reader makes one of source and text.
NO_IDS = ("", "nan", "None", "1,23457E+17")


class Row(NamedTuple):
    """A row as a source holds it, with the number of its order as well.

    `broken`: it has more fields than columns; `dated`: its time can be read.
    """

    id: str
    order: str
    text: str
    when: str = "2026-03-01"
    broken: bool = False
    dated: bool = True

    @property
    def has_id(self) -> bool:
        """Whether its id names it."""
        return self.id not in NO_IDS


@dataclass
class Told:
    """What a night must tell of one source."""

    rows_in: int = 0
    known: int = 0
    clean: int = 0
    duplicates: int = 0
    unknown_dates: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def quarantined(self) -> int:
        """Rows refused, whatever for."""
        return sum(self.refused.values())


class Books:
    """Everything that was read and published.

    Attributes
    ----------
    current : dict of (source, id) to text hash
        What each review says now; reviews without an id are their own text.
    texts : dict of str to str
        Cleaned text of every hash that was ever visible.
    edited : int
        Reviews that got a newer text, of the last night.
    """

    def __init__(self) -> None:
        self.current: dict[tuple[str, str], str] = {}
        self.texts: dict[str, str] = {}
        self.edited = 0
        self._seen: set[tuple[str, ...]] = set()

    @property
    def visible(self) -> set[tuple[str, str]]:
        """Source and text hash of every review that must be there, and of no other."""
        return {(source, key) for (source, _), key in self.current.items()}

    def publish(self, files: Mapping[str, Sequence[Row]]) -> dict[str, Told]:
        """Read files in the order of their names, as one batch."""
        self.edited = 0
        told: dict[str, Told] = {}
        fresh: set[tuple[str, ...]] = set()
        for source in sorted(files):
            told[source] = Told(rows_in=len(files[source]))
            for row in files[source]:
                identity = (source, row.id if row.has_id or row.broken else "", row.text, "broken" if row.broken else "")
                if identity in self._seen and not self._is_back(source, row):
                    told[source].known += 1
                    continue
                fresh.add(identity)
                self._take(source, row, told[source])
        self._seen |= fresh
        return told

    def _is_back(self, source: str, row: Row) -> bool:
        """Whether a review has returned to a text that it had before it was edited."""
        now = self.current.get((source, row.id))
        return row.has_id and now is not None and now != text_hash(clean_text(row.text))

    def _take(self, source: str, row: Row, told: Told) -> None:
        if row.broken:
            told.refused["too_many_fields"] += 1
            return
        told.unknown_dates += not row.dated
        cleaned = clean_text(row.text)
        if not row.text.strip():
            told.refused["text_missing"] += 1
        elif not cleaned:
            told.refused["text_empty_after_cleaning"] += 1
        else:
            key = text_hash(cleaned)
            if key in self.current.values():
                told.duplicates += 1
            else:
                told.clean += 1
            self.texts[key] = cleaned
            name = (source, row.id if row.has_id else f"text {key}")
            self.edited += self.current.get(name, key) != key
            self.current[name] = key
